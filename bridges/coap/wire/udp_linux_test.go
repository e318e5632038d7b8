package wire

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// TestControlMessages: what is written to choose an address is what is read of one.
func TestControlMessages(t *testing.T) {
	for text, want := range map[string]struct {
		iface  int32
		single bool
	}{
		"192.0.2.1":   {0, false}, // as it is written it has no address of the packet
		"2001:db8::1": {0, true},
		"fe80::1":     {7, true},
		"ff02::fd":    {0, false},
	} {
		local := netip.MustParseAddr(text)
		b := appendLocal(nil, local, 7)
		got, iface, single := localOf(b)
		if got != local || iface != want.iface || single != want.single {
			t.Errorf("%s is read as %v, interface %d, single %v", text, got, iface, single)
		}
	}
	if b := appendLocal(nil, netip.Addr{}, 7); len(b) != 0 {
		t.Errorf("no address is % x", b)
	}
	for n := range 40 {
		if _, _, single := localOf(make([]byte, n)); !single {
			t.Errorf("%d zero bytes are a group", n)
		}
	}
}

func TestListen(t *testing.T) {
	conns, err := Listen("localhost:0")
	if err != nil || len(conns) != 2 {
		t.Fatalf("%v, %v", conns, err)
	}
	for _, c := range conns {
		u, ok := c.(*udp)
		if !ok || u.Buffer() == 0 {
			t.Errorf("buffer of %d bytes", u.Buffer())
		}
		if err := c.StopReading(); err != nil {
			t.Error(err)
		}
		if _, _, err := c.Read(make([]byte, 10)); err == nil {
			t.Error("read after StopReading")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := c.Write([]byte{1}, peerPath(1)); err == nil {
			t.Error("wrote to a closed socket")
		}
	}
	for _, bad := range []string{"", "127.0.0.1", "127.0.0.1:x", "192.0.2.1:0", "no.such.host.invalid:1"} {
		if conns, err := Listen(bad); err == nil {
			t.Errorf("%q: %v", bad, conns)
		}
	}
}

// TestRequestsToEverybodyAreIgnored: a broadcast would be answered by every gateway at once, and its sender may be a lie.
func TestRequestsToEverybodyAreIgnored(t *testing.T) {
	conns, err := Listen("0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan Path, 10)
	s := New(Options{Handler: func(r *Request) {
		got <- r.path
		r.Reply(Response{Code: codes.Content})
	}}, conns...)
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	peer, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	port := portOf(conns[0])
	for _, to := range []string{"127.255.255.255", "127.0.0.5"} { // broadcast on the loopback, then an address on it
		if _, err := peer.WriteToUDP(con(1, "a"), &net.UDPAddr{IP: net.ParseIP(to), Port: port}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case p := <-got:
		if p.Local != netip.MustParseAddr("127.0.0.5") {
			t.Errorf("handled a request to %v", p.Local)
		}
	case <-time.After(time.Minute):
		t.Fatal("no request came")
	}
	b := make([]byte, 100)
	n, from, err := peer.ReadFromUDP(b)
	if err != nil || from.IP.String() != "127.0.0.5" || n == 0 {
		t.Errorf("answered from %v: %v", from, err)
	}
}
