package edge

import (
	"net"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
)

// relisten changes the listeners.
func relisten(t *testing.T, b *testBroker, want map[string]config.Listener) {
	t.Helper()
	c, err := b.PrepareListeners(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(); err != nil {
		t.Fatal(err)
	}
}

// freePort returns an address that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Listeners come, go and change one by one; the clients of those that stay notice nothing.
func TestListenersChange(t *testing.T) {
	p := newPKI(t)
	stays, goes, comes := freePort(t), freePort(t), freePort(t)
	b := startBroker(t, func(o *Options) {
		o.Listeners = map[string]config.Listener{
			"test": {Listen: "mqtt://127.0.0.1:0"}, "stays": {Listen: "mqtt://" + stays}, "goes": {Listen: "mqtt://" + goes},
		}
	})
	staying := connect(t, b.addr, rawOptions{ID: "1", V: 5})
	changing := connect(t, stays, rawOptions{ID: "2", V: 5})
	going := connect(t, goes, rawOptions{ID: "3", V: 5})

	secure := p.listener("mqtts://"+stays, config.ClientAuthOptional)
	relisten(t, b, map[string]config.Listener{
		"test": {Listen: "mqtt://127.0.0.1:0"}, "stays": secure, "comes": {Listen: "mqtt://" + comes},
	})
	for _, c := range []*rawClient{changing, going} {
		if before := closed(t, c); len(before) != 1 || before[0].ReasonCode != codeAdministrative {
			t.Errorf("a client whose listener is gone got %v", before)
		}
	}
	if _, err := net.Dial("tcp", goes); err == nil {
		t.Error("the removed listener still accepts")
	}
	connect(t, comes, rawOptions{ID: "4", V: 5})
	connect(t, stays, rawOptions{ID: "2", V: 5, TLS: p.device("two", "two")})
	no := false
	relisten(t, b, map[string]config.Listener{
		"test": {Listen: "mqtt://127.0.0.1:0", Anonymous: &no}, "stays": secure, "comes": {Listen: "mqtt://" + comes},
	}) // that is for Rejudge
	_ = staying.Publish(1, "a", 1, nil)
	expect(t, staying, packets.Puback)
	if got := b.Addrs(); len(got) != 3 || got["stays"].String() != stays || got["test"].String() != b.addr {
		t.Errorf("listening on %v", got)
	}
}

// Two listeners change places, and one grows to every address of the machine.
func TestListenersTradePlaces(t *testing.T) {
	one, two := freePort(t), freePort(t)
	b := startBroker(t, func(o *Options) {
		o.Listeners = map[string]config.Listener{
			"test": {Listen: "mqtt://127.0.0.1:0"}, "one": {Listen: "mqtt://" + one}, "two": {Listen: "mqtt://" + two},
		}
	})
	relisten(t, b, map[string]config.Listener{"test": {Listen: "mqtt://127.0.0.1:0"}, "one": {Listen: "mqtt://" + two}, "two": {Listen: "mqtt://" + one}})
	if got := b.Addrs(); got["one"].String() != two || got["two"].String() != one {
		t.Fatalf("listening on %v", got)
	}
	connect(t, one, rawOptions{ID: "1"})
	_, port, _ := net.SplitHostPort(one)
	relisten(t, b, map[string]config.Listener{"test": {Listen: "mqtt://127.0.0.1:0"}, "one": {Listen: "mqtt://" + two}, "two": {Listen: "mqtt://:" + port}})
	connect(t, one, rawOptions{ID: "1"})
	connect(t, two, rawOptions{ID: "2"})
	relisten(t, b, map[string]config.Listener{"test": {Listen: "mqtt://127.0.0.1:0"}, "two": {Listen: "mqtt://" + one}})
	connect(t, one, rawOptions{ID: "1"})
}

// A set of listeners of which one cannot be had changes nothing.
func TestListenersRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	comes, here := freePort(t), freePort(t)
	b := startBroker(t, func(o *Options) { o.Listeners["here"] = config.Listener{Listen: "mqtt://" + here} })
	c := connect(t, here, rawOptions{ID: "c", V: 5})
	_, err = b.PrepareListeners(map[string]config.Listener{
		"comes": {Listen: "mqtt://" + comes}, "taken": {Listen: "mqtt://" + taken.Addr().String()},
	})
	if err == nil || !strings.Contains(err.Error(), "listener taken") {
		t.Errorf("got %v", err)
	}
	_, err = b.PrepareListeners(map[string]config.Listener{"comes": {Listen: "mqtts://" + here, Cert: "no such", Key: "file"}})
	if err == nil {
		t.Error("a listener without its certificate was prepared")
	}
	if l, err := net.Listen("tcp", comes); err != nil {
		t.Errorf("what was bound was not freed: %v", err)
	} else {
		_ = l.Close()
	}
	_ = c.Publish(1, "a", 1, nil)
	expect(t, c, packets.Puback)
	connect(t, here, rawOptions{ID: "d"})
	connect(t, b.addr, rawOptions{ID: "e"})
}

// TestOnlyThatFamily: who configures 0.0.0.0 is not reached over IPv6, which a firewall or a rule for IPv4 knows nothing of. A listener at an
// IPv6 address of the same port has room beside it, as `check` says.
func TestOnlyThatFamily(t *testing.T) {
	p, err := openPort("0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, number, err := net.SplitHostPort(p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", number))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if c, err := net.Dial("tcp", net.JoinHostPort("::1", number)); err == nil {
		_ = c.Close()
		t.Errorf("%s is reached over IPv6", p.Addr())
	}
}
