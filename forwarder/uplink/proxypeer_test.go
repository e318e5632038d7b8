package uplink

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// proxyPeer is a small proxy: HTTP CONNECT or SOCKS5, as the first byte of a client says. It resolves every name to this
// machine, so that a test sees who resolved it.
type proxyPeer struct {
	listener   net.Listener
	user, pass string            // wanted; empty: nobody has to log in
	ways       string            // of logging in, for Proxy-Authenticate; empty: it does not say
	status     int               // answered to every CONNECT; 0: it connects
	rule       bool              // SOCKS5: not allowed by ruleset
	hang       bool              // takes connections and says nothing
	ports      map[string]string // which port of this machine stands for one that was asked for; absent: that port

	running sync.WaitGroup
	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	asked   []string // addresses as they were asked for
}

func newProxyPeer(t *testing.T, conf *tls.Config, edit func(*proxyPeer)) *proxyPeer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if conf != nil {
		l = tls.NewListener(l, conf)
	}
	p := &proxyPeer{listener: l, conns: map[net.Conn]struct{}{}}
	if edit != nil {
		edit(p)
	}
	p.running.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		p.running.Wait()
	})
	return p
}

func (p *proxyPeer) addr() string { return p.listener.Addr().String() }

func (p *proxyPeer) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.track(c)
		p.running.Go(func() {
			defer c.Close()
			p.serve(c)
		})
	}
}

func (p *proxyPeer) track(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = struct{}{}
}

func (p *proxyPeer) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxyPeer) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.asked...)
}

func (p *proxyPeer) serve(c net.Conn) {
	r := bufio.NewReader(c)
	first, err := r.Peek(1)
	switch {
	case err != nil:
	case p.hang:
		_, _ = io.Copy(io.Discard, r)
	case first[0] == 5:
		p.socks(c, r)
	default:
		p.http(c, r)
	}
}

// open connects to what was asked for, on this machine whatever its name is.
func (p *proxyPeer) open(address string) (net.Conn, error) {
	p.mu.Lock()
	p.asked = append(p.asked, address)
	p.mu.Unlock()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	out, err := net.Dial("tcp", "127.0.0.1:"+cmp.Or(p.ports[port], port))
	if err == nil {
		p.track(out)
	}
	return out, err
}

func (p *proxyPeer) http(c net.Conn, r *bufio.Reader) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	answer := func(status int) {
		ways := ""
		if p.ways != "" && status == http.StatusProxyAuthRequired {
			ways = "Proxy-Authenticate: " + strings.ReplaceAll(p.ways, ",", "\r\nProxy-Authenticate: ") + "\r\n"
		}
		fmt.Fprintf(c, "HTTP/1.1 %d %s\r\n%sContent-Length: 5\r\n\r\nsorry", status, http.StatusText(status), ways)
	}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.pass))
	switch {
	case req.Method != http.MethodConnect:
		answer(http.StatusMethodNotAllowed)
		return
	case p.user != "" && req.Header.Get("Proxy-Authorization") != want:
		answer(http.StatusProxyAuthRequired)
		return
	case p.user == "" && req.Header.Get("Proxy-Authorization") != "":
		answer(http.StatusBadRequest)
		return
	case p.status != 0:
		answer(p.status)
		return
	}
	out, err := p.open(req.Host)
	if err != nil {
		answer(http.StatusBadGateway)
		return
	}
	_, _ = io.WriteString(c, "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
	relayBoth(c, r, out)
}

// socks speaks SOCKS5 (RFC 1928) with a user name and password where one is wanted (RFC 1929).
func (p *proxyPeer) socks(c net.Conn, r *bufio.Reader) {
	take := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return make([]byte, n)
		}
		return b
	}
	methods := string(take(int(take(2)[1])))
	method := byte(0)
	if p.user != "" {
		method = 2
	}
	if !strings.Contains(methods, string(rune(method))) {
		_, _ = c.Write([]byte{5, 0xff})
		return
	}
	_, _ = c.Write([]byte{5, method})
	if method == 2 {
		user := string(take(int(take(2)[1])))
		pass := string(take(int(take(1)[0])))
		if user != p.user || pass != p.pass {
			_, _ = c.Write([]byte{1, 1})
			return
		}
		_, _ = c.Write([]byte{1, 0})
	}
	host := ""
	switch head := take(4); head[3] {
	case 1:
		host = net.IP(take(4)).String()
	case 3:
		host = string(take(int(take(1)[0])))
	case 4:
		host = net.IP(take(16)).String()
	}
	port := take(2)
	if p.rule {
		_, _ = c.Write([]byte{5, 2, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	out, err := p.open(net.JoinHostPort(host, strconv.Itoa(int(port[0])<<8|int(port[1]))))
	if err != nil {
		_, _ = c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	_, _ = c.Write([]byte{5, 0, 0, 1, 127, 0, 0, 1, 0, 1})
	relayBoth(c, r, out)
}

// relayBoth moves bytes until either side ends.
func relayBoth(c net.Conn, r io.Reader, out net.Conn) {
	var ways sync.WaitGroup
	ways.Go(func() {
		_, _ = io.Copy(out, r)
		_ = out.Close()
	})
	ways.Go(func() {
		_, _ = io.Copy(c, out)
		_ = c.Close()
	})
	ways.Wait()
}
