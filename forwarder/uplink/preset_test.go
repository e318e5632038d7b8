package uplink

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// service is a peer that behaves like a cloud service: reached by its name, with TLS of its own, and strict.
type service struct {
	*testpeer.Cloud
	proxy *proxyPeer // stands for the name service
	dir   string     // with ca.crt, gateway.crt, gateway.key

	mu    sync.Mutex
	hello []tls.ConnectionState
}

// newService starts a peer for a host name and the port that the preset is to find. protocols are those of ALPN.
func newService(t *testing.T, host, port string, clientCert bool, protocols ...string) *service {
	t.Helper()
	a := newAuthority(t)
	a.leaf(t, "cloud", host)
	a.leaf(t, "gateway")
	s := &service{dir: a.dir}
	conf := a.server(t, "cloud")
	if !clientCert {
		conf.ClientAuth = tls.NoClientCert
	}
	conf.NextProtos = protocols
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.hello = append(s.hello, cs)
		return nil
	}
	s.Cloud = cloud(t, testpeer.Options{TLS: conf})
	_, mine, _ := net.SplitHostPort(s.Addr())
	s.proxy = newProxyPeer(t, nil, func(p *proxyPeer) { p.ports = map[string]string{port: mine} })
	return s
}

func (s *service) file(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// run reads an [uplink.c] as a user writes it, and runs it.
func (s *service) run(t *testing.T, topic, text string, edit func(*config.Uplink), commands message.Handler) *harness {
	t.Helper()
	h := s.open(t, topic, text, edit)
	h.start(t, commands)
	return h
}

func (s *service) open(t *testing.T, topic, text string, edit func(*config.Uplink)) *harness {
	t.Helper()
	text = "[gateway]\nid = 'gw'\n[route.r]\nfrom = ['#']\ntopic = '" + topic + "'\n[uplink.c]\nca = 'ca.crt'\nproxy = 'http://" +
		s.proxy.addr() + "'\n" + text
	c, err := config.Parse(filepath.Join(s.dir, "t.toml"), []byte(text))
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	return open(t, variants()[0], func(u *config.Uplink) {
		*u = c.Uplinks["c"]
		if edit != nil {
			edit(u)
		}
	}, c.Uplinks["c"].Servers...)
}

// handshake is what the first TLS handshake agreed on.
func (s *service) handshake(t *testing.T) tls.ConnectionState {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.hello) == 0 {
		t.Fatal("no handshake")
	}
	return s.hello[0]
}

// sendAll sends messages over one connection and returns what became of each.
func sendAll(t *testing.T, h *harness, list []message.Message) []error {
	t.Helper()
	link := connected(t, h)
	results := make([]error, len(list))
	var all sync.WaitGroup
	for i, m := range list {
		all.Add(1)
		err := link.Send(within(t, 60*time.Second), m, identity(i), func(err error) { results[i] = err; all.Done() })
		if err != nil {
			t.Fatalf("message %d: %v\n%s", i, err, h.log)
		}
	}
	all.Wait()
	return results
}

func refusedWith(t *testing.T, err error, code byte, text string) {
	t.Helper()
	var r *RefusedError
	if !errors.As(err, &r) || r.Code != code || !strings.Contains(r.Error(), text) {
		t.Errorf("got %v, want %#x with %q", err, code, text)
	}
}

func (h *harness) stripped(what string) float64 {
	return testutil.ToFloat64(h.metrics.stripped.WithLabelValues(what))
}

// TestStrippedOfBatches: the messages in a batch are counted and not the batch, and nothing where nothing is lost.
func TestStrippedOfBatches(t *testing.T) {
	h := open(t, variants()[0], nil, "mqtt://h")
	p := newTestConn(version311)
	p.hooks, p.granted.retain = h.settings.hooks, true
	for _, most := range []byte{1, 2} {
		p.granted.maxQoS = most
		for _, id := range []Identity{{Exactly: 3}, {ID: "a"}} {
			if err := p.send(t.Context(), message.Message{Topic: "t", QoS: 2}, id, func(error) {}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := h.stripped("qos"); n != 4 {
		t.Errorf("%g messages were counted", n)
	}
}

func TestAWSPreset(t *testing.T) {
	t.Parallel()
	const host = "abc-ats.iot.eu-central-1.amazonaws.com"
	for port, protocol := range map[string]string{"443": "x-amzn-mqtt-ca", "8883": ""} {
		aws := newService(t, host, port, true, "x-amzn-mqtt-ca", "mqtt")
		// What AWS would end the connection over.
		aws.SetScript(testpeer.Script{
			Connect: func(c testpeer.Connect) testpeer.Greeting {
				return testpeer.Greeting{Cut: c.WillRetain || c.WillQoS > 1 || c.KeepAlive < 30, ReceiveMaximum: 100}
			},
			Publish: func(r testpeer.Received) testpeer.Answer {
				if r.Retain || r.QoS > 1 || len(r.Topic) > 256 || strings.Count(r.Topic, "/") > 7 || len(r.Payload) > 128<<10 {
					return testpeer.Answer{Drop: true, Then: testpeer.Fault{Kind: testpeer.Cut}}
				}
				return testpeer.Answer{}
			},
		})
		server := "mqtts://" + host
		if port != "8883" {
			server += ":" + port
		}
		h := aws.run(t, "{topic}", "preset = 'aws-iot-core'\nservers = ['"+server+"']\ncert = 'gateway.crt'\nkey = 'gateway.key'\n", nil, nil)
		got := sendAll(t, h, []message.Message{
			{Topic: "plant/a", Payload: []byte("1"), QoS: 1},
			{Topic: "plant/a", Payload: []byte("2"), QoS: 1, Retain: true},
			{Topic: "plant/a", Payload: []byte("3"), QoS: 2},
			{Topic: "plant/a", Payload: make([]byte, 128<<10), QoS: 1},
			{Topic: "plant/a", Payload: make([]byte, 128<<10+1), QoS: 1},
			{Topic: "1/2/3/4/5/6/7/8", QoS: 1},
			{Topic: "1/2/3/4/5/6/7/8/9", QoS: 1},
			{Topic: strings.Repeat("x", 257), QoS: 1},
			{Topic: "plant/b", Payload: []byte("4"), QoS: 1},
		})
		for _, i := range []int{0, 1, 2, 3, 5, 8} {
			if got[i] != nil {
				t.Errorf("message %d: %v", i, got[i])
			}
		}
		refusedWith(t, got[4], codePacketTooLarge, "a payload of 131073 bytes, aws-iot-core takes 131072")
		refusedWith(t, got[6], codeTopicInvalid, "a topic with 8 slashes, aws-iot-core takes 7")
		refusedWith(t, got[7], codeTopicInvalid, "a topic of 257 bytes, aws-iot-core takes 256")
		if n := len(aws.Connects()); n != 1 || len(telemetry(aws.Cloud)) != 6 {
			t.Errorf("%d connections, %d messages\n%s", n, len(telemetry(aws.Cloud)), h.log)
		}
		if h.stripped("retain") != 1 || h.stripped("qos") != 1 {
			t.Errorf("counted %g retain flags, %g levels", h.stripped("retain"), h.stripped("qos"))
		}
		if cs := aws.handshake(t); cs.ServerName != host || cs.NegotiatedProtocol != protocol || len(cs.PeerCertificates) != 1 {
			t.Errorf("on %s the handshake has the name %q and the protocol %q", port, cs.ServerName, cs.NegotiatedProtocol)
		}
		if w := h.Status().Window; w != 100 {
			t.Errorf("%d in flight", w)
		}
		h.stop()
	}
}

// hubVerifies is what IoT Hub looks at in a login, put together here independently of the code that is tested.
func hubVerifies(c testpeer.Connect, host, device string, key []byte) (lapses time.Time, ok bool) {
	rest, found := strings.CutPrefix(c.Password, "SharedAccessSignature ")
	fields, err := url.ParseQuery(rest)
	if !found || err != nil || c.Version != 4 || c.Client != device || c.Username != host+"/"+device+"/?api-version=2021-04-12" {
		return time.Time{}, false
	}
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write([]byte(strings.ReplaceAll(host+"/devices/"+device, "/", "%2F") + "\n" + fields.Get("se")))
	sig, err := base64.StdEncoding.DecodeString(fields.Get("sig"))
	unix, _ := strconv.ParseInt(fields.Get("se"), 10, 64)
	lapses = time.Unix(unix, 0)
	return lapses, err == nil && hmac.Equal(sig, mac.Sum(nil)) && fields.Get("sr") == host+"/devices/"+device && time.Now().Before(lapses)
}

func TestIoTHubPreset(t *testing.T) {
	t.Parallel()
	const host, device, prefix = "contoso.azure-devices.net", "press-hall-3", "devices/press-hall-3/messages/events/"
	key := []byte("a key of the device")
	hub := newService(t, host, "8883", false)
	var mu sync.Mutex
	var lapses time.Time
	hub.SetScript(testpeer.Script{
		Connect: func(c testpeer.Connect) testpeer.Greeting {
			mu.Lock()
			defer mu.Unlock()
			ok := false
			lapses, ok = hubVerifies(c, host, device, key)
			if !ok || c.WillRetain || !strings.HasPrefix(c.WillTopic, prefix) {
				return testpeer.Greeting{Code: 5}
			}
			return testpeer.Greeting{}
		},
		Publish: func(r testpeer.Received) testpeer.Answer {
			mu.Lock()
			defer mu.Unlock()
			if r.Retain || r.QoS > 1 || !strings.HasPrefix(r.Topic, prefix) || len(r.Payload) > 256<<10 || time.Now().After(lapses) {
				return testpeer.Answer{Drop: true, Then: testpeer.Fault{Kind: testpeer.Cut}}
			}
			return testpeer.Answer{}
		},
	})
	hub.file(t, "device.sas", base64.StdEncoding.EncodeToString(key)+"\n")
	text := "preset = 'azure-iot-hub'\nservers = ['mqtts://" + host + "']\nclient_id = '" + device + "'\nsas_key = { file = 'device.sas' }\n"
	h := hub.run(t, prefix, text, nil, nil)
	got := sendAll(t, h, []message.Message{
		{Topic: prefix, Payload: []byte("1"), QoS: 1, Retain: true},
		{Topic: "plant/a", Payload: []byte("2"), QoS: 1},
		{Topic: prefix + "a=b", Payload: make([]byte, 256<<10), QoS: 1},
		{Topic: prefix + "a=b", Payload: []byte("3"), QoS: 2},
		{Topic: "tidegate/gw/uplink/c/gaps", Payload: []byte("4"), QoS: 1},
	})
	if got[0] != nil || got[3] != nil || got[4] != nil {
		t.Errorf("results %v\n%s", got, h.log)
	}
	refusedWith(t, got[1], codeTopicInvalid, "the topic does not begin with "+prefix)
	refusedWith(t, got[2], codePacketTooLarge, "the broker takes 262144")
	topics := map[string]bool{}
	for _, r := range hub.Received() {
		topics[r.Topic] = true
	}
	for _, want := range []string{prefix + "topic=tidegate%2Fgw%2Fstatus", prefix + "topic=tidegate%2Fgw%2Fuplink%2Fc%2Fgaps"} {
		if !topics[want] {
			t.Errorf("nothing came on %s", want)
		}
	}
	if n := len(hub.Connects()); n != 1 {
		t.Errorf("%d connections\n%s", n, h.log)
	}
	if cs := hub.handshake(t); cs.ServerName != host {
		t.Errorf("asked for %q", cs.ServerName)
	}
	h.stop()

	wrong := hub.run(t, prefix, strings.Replace(text, "{ file = 'device.sas' }", "'"+base64.StdEncoding.EncodeToString([]byte("another"))+"'", 1), nil, nil)
	eventually(t, "refused, and where to look", func() bool {
		return strings.Contains(wrong.Status().LastError, "not authorized); check sas_key, client_id and the clock")
	})
	if all := wrong.log.String() + wrong.Status().LastError; strings.Contains(all, "SharedAccess") {
		t.Error("the token is logged")
	}
	wrong.stop()
}

// TestIoTHubTokenIsRenewed: messages flow all the time, tokens are replaced every second, the hub ends a connection whose token has
// lapsed, and nobody notices: no connection is lost, no message sent twice.
func TestIoTHubTokenIsRenewed(t *testing.T) {
	t.Parallel()
	const host, device, prefix = "contoso.azure-devices.net", "d1", "devices/d1/messages/events/"
	key := []byte("a key of the device")
	hub := newService(t, host, "8883", false)
	var mu sync.Mutex
	lapses := map[int]time.Time{}
	hub.SetScript(testpeer.Script{
		Connect: func(c testpeer.Connect) testpeer.Greeting {
			at, ok := hubVerifies(c, host, device, key)
			mu.Lock()
			defer mu.Unlock()
			lapses[c.Conn] = at
			return testpeer.Greeting{Code: map[bool]byte{true: 0, false: 5}[ok]}
		},
		Publish: func(r testpeer.Received) testpeer.Answer {
			mu.Lock()
			defer mu.Unlock()
			if time.Now().After(lapses[r.Conn]) {
				return testpeer.Answer{Drop: true, Then: testpeer.Fault{Kind: testpeer.Cut}}
			}
			return testpeer.Answer{Delay: 5 * time.Millisecond}
		},
	})
	hub.file(t, "device.sas", base64.StdEncoding.EncodeToString(key))
	text := "preset = 'azure-iot-hub'\nservers = ['mqtts://" + host + "']\nclient_id = '" + device + "'\nsas_key = { file = 'device.sas' }\n"
	h := hub.open(t, prefix, text, nil)
	h.settings.tokens.lifetime, h.settings.tokens.renewAt = 100*time.Second, 1
	h.start(t, nil)
	const n = 2000
	l := newLedger(n)
	err := l.drain(within(t, 60*time.Second), h.Client, func(i int) message.Message {
		time.Sleep(2 * time.Millisecond)
		return message.Message{Topic: prefix, Payload: []byte(strconv.Itoa(i)), QoS: 1}
	})
	if err != nil {
		t.Fatalf("%v, %+v\n%s", err, h.Status(), h.log)
	}
	l.once(t, success)
	var came []string
	for _, r := range hub.Received() {
		if r.Topic == prefix {
			came = append(came, string(r.Payload))
		}
	}
	for i, payload := range came {
		if payload != strconv.Itoa(i) {
			t.Fatalf("message %s arrived in the place of %d: lost, twice or out of order", payload, i)
		}
	}
	if len(came) != n {
		t.Errorf("%d of %d messages arrived", len(came), n)
	}
	if h.reconnects(endRenewed) < 2 || h.reconnects(endNetwork) != 0 || h.Status().LastError != "" {
		t.Errorf("%g renewals, %g losses, %q\n%s", h.reconnects(endRenewed), h.reconnects(endNetwork), h.Status().LastError, h.log)
	}
	if wills := hub.Wills(); len(wills) != 0 {
		t.Errorf("%d wills were published", len(wills))
	}
}

// TestRenewalWithoutANextConnection: the token is renewed, and then the hub cannot be reached any more. What the cloud heard last
// is not that the gateway is online.
func TestRenewalWithoutANextConnection(t *testing.T) {
	t.Parallel()
	hub := newService(t, "contoso.azure-devices.net", "8883", false)
	hub.SetScript(testpeer.Script{Connect: func(c testpeer.Connect) testpeer.Greeting { return testpeer.Greeting{Cut: c.Conn > 1} }})
	hub.file(t, "device.sas", "MDEyMzQ1Njc4OWFiY2RlZg==")
	h := hub.open(t, "devices/d1/messages/events/", "preset = 'azure-iot-hub'\nservers = ['mqtts://contoso.azure-devices.net']\nclient_id = 'd1'\n"+
		"sas_key = { file = 'device.sas' }\n", nil)
	h.settings.tokens.lifetime, h.settings.tokens.renewAt = 100*time.Second, 1
	h.start(t, nil)
	eventually(t, "renewed in vain", func() bool { return h.reconnects(endRenewed) == 1 && len(hub.Connects()) > 2 })
	var said []string
	for _, r := range hub.Received() {
		said = append(said, stateOf(t, r.Payload))
	}
	if said[len(said)-1] != "offline" && len(hub.Wills()) == 0 { // the will, where this machine was too slow to say it
		t.Errorf("the cloud heard %q and no will", said)
	}
}

func TestEventGridPreset(t *testing.T) {
	t.Parallel()
	const host = "contoso.westeurope-1.ts.eventgrid.azure.net"
	grid := newService(t, host, "8883", true)
	grid.SetScript(testpeer.Script{
		Connect: func(c testpeer.Connect) testpeer.Greeting {
			return testpeer.Greeting{Cut: c.WillRetain || c.Username != "client1" || c.Client != "client1-session"}
		},
		Publish: func(r testpeer.Received) testpeer.Answer {
			if r.Retain || r.QoS > 1 || len(r.Payload) > 512<<10 {
				return testpeer.Answer{Drop: true, Then: testpeer.Fault{Kind: testpeer.Cut}}
			}
			return testpeer.Answer{}
		},
	})
	h := grid.run(t, "{topic}", "preset = 'azure-event-grid'\nservers = ['mqtts://"+host+"']\nclient_id = 'client1-session'\nusername = 'client1'\n"+
		"cert = 'gateway.crt'\nkey = 'gateway.key'\n[[uplink.c.command]]\nfrom = 'cmd/#'\nto = 'cmd/{rest}'\n", nil, func(context.Context, message.Message) error { return message.ErrNotAllowed })
	got := sendAll(t, h, []message.Message{
		{Topic: "a", Payload: []byte("1"), QoS: 2, Retain: true},
		{Topic: "a", Payload: make([]byte, 512<<10), QoS: 1},
		{Topic: "a", Payload: []byte("2"), QoS: 1},
	})
	if got[0] != nil || got[2] != nil {
		t.Errorf("results %v\n%s", got, h.log)
	}
	refusedWith(t, got[1], codePacketTooLarge, "the broker takes 524288")
	eventually(t, "subscribed", func() bool { return grid.Subscribed("cmd/#") })
	grid.Send(testpeer.Command{Topic: "cmd/x", Payload: []byte("no"), QoS: 1})
	eventually(t, "acknowledged", func() bool { return len(grid.CommandAcks()) == 1 })
	if a := grid.CommandAcks()[0]; a.Code != 0 {
		t.Errorf("a refused command is acknowledged with %#x, over which Event Grid ends the connection", a.Code)
	}
	if len(grid.Connects()) != 1 {
		t.Errorf("%d connections\n%s", len(grid.Connects()), h.log)
	}
}

// TestEMQXAndHiveMQPresets: the usual port of WebSocket there, a name in the handshake, user and password, with a mosquitto in
// the part of the service.
func TestEMQXAndHiveMQPresets(t *testing.T) {
	t.Parallel()
	passwords := filepath.Join(t.TempDir(), "passwords")
	if out, err := exec.Command("mosquitto_passwd", "-b", "-c", passwords, "gw", "right").CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v %s", err, out)
	}
	broker := listenEveryWay(t, "allow_anonymous false", "password_file "+passwords)
	port := func(scheme string) string {
		_, p, _ := net.SplitHostPort(strings.TrimPrefix(broker.servers[scheme], scheme+"://"))
		return p
	}
	s := &service{dir: broker.authority.dir}
	s.proxy = newProxyPeer(t, nil, func(p *proxyPeer) {
		p.ports = map[string]string{"8084": port("wss"), "8884": port("wss"), "8883": port("mqtts")}
	})
	s.file(t, "word", "right\n")
	s.file(t, "wrong", "left\n")
	for _, preset := range []string{"emqx-cloud", "hivemq-cloud"} {
		for _, scheme := range []string{"wss", "mqtts"} {
			text := "preset = '" + preset + "'\nservers = ['" + scheme + "://" + brokerName + "']\nusername = 'gw'\npassword = { file = 'word' }\n"
			h := s.run(t, "{topic}", text, nil, nil)
			l := newLedger(100)
			if err := l.drain(within(t, 60*time.Second), h.Client, func(i int) message.Message { return reading(i, 2) }); err != nil {
				t.Fatalf("%s: %v, %+v\n%s", preset, err, h.Status(), h.log)
			}
			l.once(t, success)
			h.stop()
			wrong := s.run(t, "{topic}", strings.Replace(text, "'word'", "'wrong'", 1), nil, nil)
			eventually(t, "a wrong password is refused", func() bool { return strings.Contains(wrong.Status().LastError, "not authorized") })
			wrong.stop()
		}
	}
}

// TestResumedSessionWithoutQoS2: a service that knows no QoS 2 is never sent a PUBREL, however its connections end.
func TestResumedSessionWithoutQoS2(t *testing.T) {
	peer := cloud(t, testpeer.Options{})
	released := make(chan uint16, 1000)
	peer.SetScript(testpeer.Script{
		Publish: func(r testpeer.Received) testpeer.Answer {
			// The first connections end before anything is taken.
			return testpeer.Answer{Drop: r.Conn < 5, Then: map[bool]testpeer.Fault{true: {Kind: testpeer.Cut}}[r.Conn < 5]}
		},
		Release: func(id uint16) testpeer.Answer {
			released <- id
			return testpeer.Answer{Then: testpeer.Fault{Kind: testpeer.Cut}}
		},
	})
	for _, v := range variants() {
		if !v.commands || v.ws {
			continue
		}
		h := run(t, v, func(c *config.Uplink) {
			withCommands(c)
			c.Limits = config.Limits{Service: "test", MaxQoS: 1}
		}, nil, peer.URL())
		eventually(t, "a connection that lasts", func() bool { return h.Status().Connected && h.Status().InFlight == 0 && peer.Count() > 4 })
		h.stop()
	}
	if len(released) > 0 {
		t.Errorf("%d identifiers were released at a service without QoS 2", len(released))
	}
}
