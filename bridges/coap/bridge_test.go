package coap

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"tidegate/bridges"
	"tidegate/config"
)

func TestAddresses(t *testing.T) {
	for listen, want := range map[string]int{
		"coap://127.0.0.1:0": 1, "coap://[::1]:0": 1, "coap://localhost:0": 2, "coap://:0": 2, "coap://[::]:0": 2, "coap://0.0.0.0:0": 1,
	} {
		g := start(t, nil, listen)
		if n := len(g.Addrs()); n != want {
			t.Errorf("%s: %v, want %d sockets", listen, g.Addrs(), want)
		}
		for _, a := range g.Addrs() {
			u, ok := a.(*net.UDPAddr)
			if !ok || u.Port == 0 {
				t.Fatalf("%s: address %v", listen, a)
			}
			to := *u
			if u.IP.IsUnspecified() {
				to.IP = net.IPv6loopback
				if u.IP.To4() != nil {
					to.IP = net.IPv4(127, 0, 0, 1)
				}
			}
			dial(t, &to).want(codes.Changed, codes.POST, "/ps/a", "x")
		}
		if want == 2 {
			first, second := g.Addrs()[0].(*net.UDPAddr), g.Addrs()[1].(*net.UDPAddr)
			if first.Port != second.Port {
				t.Errorf("%s: ports %d and %d", listen, first.Port, second.Port)
			}
		}
	}
}

func TestSeveralAddressesInTheirOrder(t *testing.T) {
	g := start(t, nil, "coap://127.0.0.2:0", "coap://127.0.0.1:0")
	if a := g.Addrs(); len(a) != 2 || !strings.HasPrefix(a[0].String(), "127.0.0.2:") || !strings.HasPrefix(a[1].String(), "127.0.0.1:") {
		t.Errorf("%v", a)
	}
	for _, a := range g.Addrs() {
		dial(t, a).want(codes.Changed, codes.POST, "/ps/a", "x")
	}
}

// TestAnswersComeFromWhereTheRequestWent: a client with a connected socket hears nothing from another address.
func TestAnswersComeFromWhereTheRequestWent(t *testing.T) {
	g := start(t, nil, "coap://0.0.0.0:0")
	g.bus.disk.setSlow(func() time.Duration { return time.Millisecond })
	port := g.Addrs()[0].(*net.UDPAddr).Port
	for _, ip := range []string{"127.0.0.1", "127.0.0.2", "127.1.2.3"} {
		dial(t, &net.UDPAddr{IP: net.ParseIP(ip), Port: port}).want(codes.Changed, codes.POST, "/ps/a", ip)
	}
}

func TestNewFreesWhatItBound(t *testing.T) {
	taken, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	free, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	o := Options{Bus: newBus(), ACL: rules{}, Metrics: prometheus.NewRegistry()}
	goroutines := runtime.NumGoroutine()
	for _, second := range []string{taken.LocalAddr().String(), "127.0.0.1:port", "no.such.host.invalid:0", "127.0.0.1"} {
		_, err = New(config.CoAP{Listen: []string{"coap://" + free.LocalAddr().String(), "coap://" + second}}, o)
		if err == nil || !strings.Contains(err.Error(), second) {
			t.Fatalf("%s: %v", second, err)
		}
	}
	if _, err := New(config.CoAP{}, o); err == nil {
		t.Error("no address is no error")
	}
	b, err := New(config.CoAP{Listen: []string{"coap://" + free.LocalAddr().String()}}, o)
	if err != nil {
		t.Fatalf("the first address is still bound: %v", err)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines more", n-goroutines)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	// The same registry cannot hold two bridges, which is an error and no panic.
	if _, err := New(config.CoAP{Listen: []string{"coap://127.0.0.1:0"}}, o); err == nil {
		t.Error("registered twice")
	}
}

func TestStatusAndStop(t *testing.T) {
	told := make(statuses, 10)
	var logged bytes.Buffer
	g := &gateway{bus: newBus()}
	var err error
	g.Bridge, err = New(config.CoAP{Listen: []string{"coap://127.0.0.1:0"}}, Options{
		Bus: g.bus, ACL: rules{}, Anonymous: true, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(&logged, nil)),
		OnStatus: func(s bridges.Status) { told <- s },
	})
	if err != nil {
		t.Fatal(err)
	}
	if g.Name() != "coap" || g.Status().Up {
		t.Errorf("%s is %+v before it runs", g.Name(), g.Status())
	}
	goroutines := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	if s := told.next(t); !s.Up {
		t.Errorf("told %+v", s)
	}
	c := dial(t, g.Addrs()[0])
	g.bus.disk.setSlow(nil)
	c.send(c.request(codes.POST, "/ps/a", "topsecretpayload"))
	waitFor(t, "a record waits", func() bool { return g.bus.disk.pending() == 1 })
	running := runtime.NumGoroutine()
	cancel()
	waitFor(t, "nothing is read any more", func() bool { return runtime.NumGoroutine() < running })
	g.bus.disk.settleAll(nil)
	if got, ok := c.receive(patience); !ok || got.Code != codes.Changed {
		t.Errorf("answered %v while stopping", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := told.next(t); s.Up {
		t.Errorf("told %+v", s)
	}
	waitFor(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
	if strings.Contains(logged.String(), "topsecretpayload") {
		t.Error("a payload was logged")
	}
	again, err := net.ListenPacket("udp4", g.Addrs()[0].String())
	if err != nil {
		t.Errorf("the port is not free: %v", err)
	} else {
		_ = again.Close()
	}
}

func TestMetrics(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	c.want(codes.Created, codes.PUT, "/ps/a", "x")
	c.want(codes.NotFound, codes.GET, "/ps/b", "")
	c.want(codes.MethodNotAllowed, 5, "/ps/b", "")
	m := c.request(codes.POST, "/ps/a", "x")
	c.exchange(m)
	c.exchange(m)
	c.exchange(option.Message{Type: option.Confirmable, Code: codes.Empty, MessageID: 1}) // a ping
	if _, err := c.conn.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the datagram is dropped", func() bool { return g.server.Stats().Malformed == 1 })
	want := `
# HELP tidegate_coap_dropped_total Datagrams that changed nothing, by reason.
# TYPE tidegate_coap_dropped_total counter
tidegate_coap_dropped_total{reason="malformed"} 1
tidegate_coap_dropped_total{reason="send_failed"} 0
tidegate_coap_dropped_total{reason="unexpected"} 1
# HELP tidegate_coap_duplicates_total Requests that came again and were answered from memory.
# TYPE tidegate_coap_duplicates_total counter
tidegate_coap_duplicates_total 1
# HELP tidegate_coap_parked Requests that wait for the disk, or for the client to acknowledge their answer.
# TYPE tidegate_coap_parked gauge
tidegate_coap_parked 0
# HELP tidegate_coap_peers Clients whose requests are remembered.
# TYPE tidegate_coap_peers gauge
tidegate_coap_peers 1
# HELP tidegate_coap_requests_total Requests of CoAP clients by method and the code they were answered with.
# TYPE tidegate_coap_requests_total counter
tidegate_coap_requests_total{code="2.01",method="PUT"} 1
tidegate_coap_requests_total{code="2.04",method="POST"} 1
tidegate_coap_requests_total{code="4.04",method="GET"} 1
tidegate_coap_requests_total{code="4.05",method="other"} 1
# HELP tidegate_coap_retransmissions_total Separate responses that were sent again.
# TYPE tidegate_coap_retransmissions_total counter
tidegate_coap_retransmissions_total 0
`
	err := testutil.GatherAndCompare(g.reg, strings.NewReader(want), "tidegate_coap_requests_total", "tidegate_coap_duplicates_total",
		"tidegate_coap_dropped_total", "tidegate_coap_parked", "tidegate_coap_peers", "tidegate_coap_retransmissions_total")
	if err != nil {
		t.Error(err)
	}
}

// TestGoCoAPClient is a third client, of another house again.
func TestGoCoAPClient(t *testing.T) {
	g := start(t, nil)
	g.bus.disk.setSlow(func() time.Duration { return 2 * time.Millisecond })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := udp.Dial(g.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	put, err := conn.Put(ctx, "/ps/a/b", option.AppJSON, strings.NewReader("1"))
	if err != nil || put.Code() != codes.Created {
		t.Fatalf("%v, %v", put, err)
	}
	got, err := conn.Get(ctx, "/ps/a/b")
	if err != nil || got.Code() != codes.Content {
		t.Fatalf("%v, %v", got, err)
	}
	body, err := got.ReadBody()
	if f, ferr := got.ContentFormat(); err != nil || string(body) != "1" || ferr != nil || f != option.AppJSON {
		t.Errorf("read %q as %v: %v, %v", body, f, err, ferr)
	}
	if post, err := conn.Post(ctx, "/ps/a", option.TextPlain, strings.NewReader("x")); err != nil || post.Code() != codes.Changed {
		t.Errorf("%v, %v", post, err)
	}
	if del, err := conn.Delete(ctx, "/ps/a/b"); err != nil || del.Code() != codes.Deleted {
		t.Errorf("%v, %v", del, err)
	}
	if err := conn.Ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
}
