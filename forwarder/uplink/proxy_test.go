package uplink

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// everyListener is a mosquitto that listens in all four ways, under a name that only a proxy can resolve.
type everyListener struct {
	*mosquitto
	authority *authority
	servers   map[string]string // by scheme
}

const brokerName = "broker.test"

func listenEveryWay(t *testing.T, extra ...string) *everyListener {
	t.Helper()
	a := newAuthority(t)
	a.leaf(t, "cloud", brokerName, "localhost")
	ports := map[string]string{}
	for _, scheme := range []string{"mqtts", "wss"} {
		_, port, err := net.SplitHostPort(unusedAddr(t))
		if err != nil {
			t.Fatal(err)
		}
		ports[scheme] = port
	}
	secure := []string{"cafile " + a.path("ca.crt"), "certfile " + a.path("cloud.crt"), "keyfile " + a.path("cloud.key")}
	lines := append([]string{"listener " + ports["mqtts"] + " 127.0.0.1"}, secure...)
	lines = append(lines, "listener "+ports["wss"]+" 127.0.0.1", "protocol websockets")
	lines = append(append(lines, secure...), extra...)
	e := &everyListener{authority: a, mosquitto: startMosquitto(t, lines...)}
	ws, _ := webSocketListeners.Load("127.0.0.1:" + e.port)
	_, ports["ws"], _ = net.SplitHostPort(strings.TrimPrefix(ws.(string), "ws://"))
	ports["mqtt"] = e.port
	e.servers = map[string]string{}
	for scheme, port := range ports {
		e.servers[scheme] = scheme + "://" + brokerName + ":" + port
	}
	return e
}

// through sends some messages through a proxy over one of the four ways and checks that the broker took them.
func (e *everyListener) through(t *testing.T, scheme string, p config.Proxy) *harness {
	t.Helper()
	h := run(t, variants()[0], func(c *config.Uplink) {
		c.Proxy = p
		if scheme == "mqtts" || scheme == "wss" {
			c.CA = e.authority.path("ca.crt")
		}
	}, nil, e.servers[scheme])
	l := newLedger(200)
	if err := l.drain(within(t, 60*time.Second), h.Client, func(i int) message.Message { return reading(i, 1) }); err != nil {
		t.Fatalf("%s: %v, %+v\n%s", scheme, err, h.Status(), h.log)
	}
	l.once(t, success)
	return h
}

func TestProxies(t *testing.T) {
	t.Parallel()
	broker := listenEveryWay(t)
	secret := config.NewSecret("s3cret-word")
	login := func(p *proxyPeer) { p.user, p.pass = "gw", "s3cret-word" }
	for name, c := range map[string]struct {
		scheme string
		login  func(*proxyPeer)
		tls    bool
	}{
		"http":             {scheme: "http"},
		"http with login":  {scheme: "http", login: login},
		"https":            {scheme: "https", tls: true},
		"https with login": {scheme: "https", tls: true, login: login},
		"socks5":           {scheme: "socks5"},
		"socks5 and login": {scheme: "socks5", login: login},
	} {
		t.Run(name, func(t *testing.T) {
			var peer *proxyPeer
			if c.tls {
				conf := broker.authority.server(t, "cloud")
				conf.ClientAuth = 0
				peer = newProxyPeer(t, conf, c.login)
			} else {
				peer = newProxyPeer(t, nil, c.login)
			}
			p := config.Proxy{URL: c.scheme + "://" + peer.addr()}
			if c.tls {
				_, port, _ := net.SplitHostPort(peer.addr())
				p.URL, p.CA = "https://localhost:"+port, broker.authority.path("ca.crt")
			}
			if c.login != nil {
				p.Username, p.Password = "gw", secret
			}
			for _, scheme := range []string{"mqtt", "mqtts", "ws", "wss"} {
				before := len(peer.requests())
				h := broker.through(t, scheme, p)
				asked := peer.requests()[before:]
				_, want, _ := strings.Cut(broker.servers[scheme], "://")
				if len(asked) == 0 || slices.ContainsFunc(asked, func(a string) bool { return a != want }) {
					t.Errorf("%s: the proxy was asked for %q, want %s\n%s", scheme, asked, want, h.log)
				}
				if strings.Contains(h.log.String(), "s3cret") {
					t.Errorf("the log has the password:\n%s", h.log)
				}
				h.stop()
			}
		})
	}
}

// TestInterimAnswersOfAProxy: a client has to take any number of them before the final one (RFC 9110, 15.2).
func TestInterimAnswersOfAProxy(t *testing.T) {
	t.Parallel()
	for head, want := range map[string]string{
		"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n": "",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n":                                        `("403 Forbidden")`,
		strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 10000):                                               "wait for its answer about b:1",
	} {
		addr := answering(t, head+"hello")
		nc, tcp, err := proxySettings{url: "http://" + addr}.dial(within(t, 60*time.Second), "b:1")
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%.60q: %v", head, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%.60q: %v", head, err)
			continue
		}
		if got, _ := io.ReadAll(nc); string(got) != "hello" {
			t.Errorf("%.60q: then %q", head, got)
		}
		_ = tcp.Close()
	}
}

func TestProxyThatDoesNotConnect(t *testing.T) {
	secret := config.NewSecret("s3cret-word")
	with := func(f func(*proxyPeer)) *proxyPeer { return newProxyPeer(t, nil, f) }
	login := func(p *proxyPeer) { p.user, p.pass = "gw", "other" }
	for name, c := range map[string]struct {
		peer         *proxyPeer
		scheme, user string
		want         string
	}{
		"407":              {with(login), "http", "", `("407 Proxy Authentication Required"): it wants a user name and a password: set username and password of proxy`},
		"407 with login":   {with(login), "http", "gw", `("407 Proxy Authentication Required"): it does not take this user name and password`},
		"407 ntlm":         {with(func(p *proxyPeer) { login(p); p.ways = "Negotiate,NTLM" }), "http", "gw", `it wants a login by "negotiate, ntlm", which this build does not speak`},
		"407 and basic":    {with(func(p *proxyPeer) { login(p); p.ways = "NTLM,Basic realm=x" }), "http", "", "it wants a user name and a password"},
		"403":              {with(func(p *proxyPeer) { p.status = 403 }), "http", "", `("403 Forbidden"): allow CONNECT to this address in its rules`},
		"502":              {with(nil), "http", "", `("502 Bad Gateway"): it cannot reach the server itself`},
		"socks login":      {with(login), "socks5", "", "it wants a user name and a password: set username and password of proxy"},
		"socks wrong word": {with(login), "socks5", "gw", "correct username and password of proxy"},
		"socks rule":       {with(func(p *proxyPeer) { p.rule = true }), "socks5", "", "allow this address in its rules"},
		"socks refused":    {with(nil), "socks5", "", "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, port, _ := net.SplitHostPort(unusedAddr(t))
			h := run(t, variants()[0], func(u *config.Uplink) {
				u.Proxy = config.Proxy{URL: c.scheme + "://" + c.peer.addr(), Username: c.user}
				if c.user != "" {
					u.Proxy.Password = secret
				}
			}, nil, "mqtt://"+brokerName+":"+port)
			eventually(t, "refused", func() bool { return strings.Contains(h.Status().LastError, c.want) })
			if text := h.Status().LastError; !strings.Contains(text, "proxy "+c.scheme+"://"+c.peer.addr()+" does not connect to "+brokerName+":"+port) {
				t.Errorf("the error does not name the proxy and the server: %s", text)
			}
			if h.reconnects(endProxy) == 0 {
				t.Error("not counted as the proxy's doing")
			}
			if all := h.log.String() + h.Status().LastError; strings.Contains(all, "s3cret") || strings.Contains(all, "gw:") {
				t.Errorf("the log has the login:\n%s", all)
			}
		})
	}
	gone := run(t, variants()[0], func(u *config.Uplink) { u.Proxy = config.Proxy{URL: "http://" + unusedAddr(t)} }, nil, "mqtt://"+brokerName)
	eventually(t, "nobody there", func() bool { return strings.Contains(gone.Status().LastError, "cannot be reached") })
}

// TestProxyThatHangs: a proxy, over TLS or not, that takes the connection and never answers does not hold anything up.
func TestProxyThatHangs(t *testing.T) {
	peer := newProxyPeer(t, nil, func(p *proxyPeer) { p.hang = true })
	for _, scheme := range []string{"http", "https", "socks5"} {
		ctx, cancel := context.WithTimeoutCause(context.Background(), 200*time.Millisecond, errors.New("no answer in time"))
		p := proxySettings{url: scheme + "://" + peer.addr(), username: "gw", password: config.NewSecret("x")}
		_, _, err := p.dial(ctx, "broker.test:1883")
		cancel()
		if err == nil || !strings.Contains(err.Error(), "no answer in time") || endLabel(err) != endProxy {
			t.Errorf("%s: %v", scheme, err)
		}
	}
}

func TestProxyOfTheEnvironment(t *testing.T) {
	for _, name := range []string{"HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "https_proxy", "all_proxy", "no_proxy"} {
		t.Setenv(name, "")
	}
	p := proxySettings{env: true}
	for _, c := range []struct {
		name  string
		env   map[string]string
		addr  string
		want  string
		login string
	}{
		{name: "nothing set", addr: "broker.test:8883"},
		{name: "https", env: map[string]string{"HTTPS_PROXY": "http://p:3128"}, addr: "broker.test:1883", want: "http://p:3128"},
		{name: "without a scheme", env: map[string]string{"HTTPS_PROXY": "p:3128"}, addr: "broker.test:1883", want: "http://p:3128"},
		{name: "without a port", env: map[string]string{"HTTPS_PROXY": "https://p"}, addr: "broker.test:1883", want: "https://p:443"},
		{name: "small letters", env: map[string]string{"https_proxy": "http://p:3128"}, addr: "broker.test:1883", want: "http://p:3128"},
		{name: "all", env: map[string]string{"ALL_PROXY": "socks5h://u:w@p"}, addr: "broker.test:1883", want: "socks5://p:1080", login: "u:w"},
		{name: "https before all", env: map[string]string{"ALL_PROXY": "socks5://p", "HTTPS_PROXY": "http://q:1"}, addr: "b:1", want: "http://q:1"},
		{name: "excepted", env: map[string]string{"ALL_PROXY": "socks5://p", "NO_PROXY": "other,.test"}, addr: "broker.test:1883"},
		{name: "excepted network", env: map[string]string{"ALL_PROXY": "socks5://p", "no_proxy": "10.0.0.0/8"}, addr: "10.1.2.3:1883"},
		{name: "excepted port", env: map[string]string{"ALL_PROXY": "socks5://p", "NO_PROXY": "broker.test:1"}, addr: "broker.test:1883", want: "socks5://p:1080"},
		{name: "this machine", env: map[string]string{"ALL_PROXY": "socks5://p"}, addr: "127.0.0.1:1883"},
	} {
		for name, value := range c.env {
			t.Setenv(name, value)
		}
		got, err := p.fromEnvironment(c.addr)
		if err != nil || got.url != c.want || c.login != "" && got.username+":"+got.password.Reveal() != c.login {
			t.Errorf("%s: %q %v, want %q", c.name, got.url, err, c.want)
		}
		for name := range c.env {
			t.Setenv(name, "")
		}
	}
	for _, value := range []string{"socks4://u:s3cret@p", "http://u:s3cret@p:x"} {
		t.Setenv("ALL_PROXY", value)
		if _, err := p.fromEnvironment("b:1"); err == nil || strings.Contains(err.Error(), "s3cret") || endLabel(err) != endProxy {
			t.Errorf("%s: %v", value, err)
		}
	}
	t.Setenv("ALL_PROXY", "")

	peer := newProxyPeer(t, nil, func(p *proxyPeer) { p.user, p.pass = "gw", "word" })
	t.Setenv("HTTPS_PROXY", "http://gw:word@"+peer.addr())
	listenEveryWay(t).through(t, "mqtts", config.Proxy{Env: true})
	if len(peer.requests()) == 0 {
		t.Error("the proxy of the environment was not used")
	}
}

// TestBlackHoleBehindAProxy: what watches a connection watches it through a proxy too.
func TestBlackHoleBehindAProxy(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "socks5"} {
		cloud := cloud(t, testpeer.Options{})
		hole, err := testpeer.NewProxy(cloud.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(hole.Close)
		peer := newProxyPeer(t, nil, nil)
		_, port, _ := net.SplitHostPort(hole.Addr())
		h := run(t, variants()[0], func(c *config.Uplink) {
			c.Proxy = config.Proxy{URL: scheme + "://" + peer.addr()}
			c.KeepAlive = config.Duration(time.Second)
		}, nil, "mqtt://"+brokerName+":"+port)
		first := connected(t, h)
		hole.BlackHole(true)
		select {
		case <-first.Lost():
		case <-time.After(60 * time.Second):
			t.Fatal("a dead connection was not noticed")
		}
		eventually(t, "counted", func() bool { return h.reconnects(endKeepAlive) == 1 })
		hole.Cut()
		hole.BlackHole(false)
		connected(t, h)
		h.stop()
	}
}

// FuzzConnectAnswer: whatever a proxy answers, the end is a tunnel or an error, never a panic or a hang.
func FuzzConnectAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n\x20\x02\x00\x00"))
	f.Add([]byte("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 99999\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 200\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"))
	f.Add([]byte("\x05\x00"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		near, far := net.Pipe()
		defer near.Close()
		go func() { // ends when far is closed here or near by the fuzz body
			_, _ = bufio.NewReader(far).ReadString('\n')
			go func() { _, _ = far.Write(answer); _ = far.Close() }()
			b := make([]byte, 1024)
			for {
				if _, err := far.Read(b); err != nil {
					return
				}
			}
		}()
		p := proxySettings{url: "http://p:1"}
		u, err := url.Parse(p.url)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		nc, err := p.connect(ctx, near, u, "b:1")
		if err == nil && nc == nil || ctx.Err() != nil {
			t.Fatalf("%v %v", nc, err)
		}
	})
}
