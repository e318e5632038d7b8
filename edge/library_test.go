package edge

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// What the library does that this package is built around, on the bare library: an update that changes one of these is to
// be noticed here.

// spyHook is a hook whose behaviour a test sets.
type spyHook struct {
	admitAll
	onPublish   func(packets.Packet) error
	onPublished func()
	onRead      func(packets.Packet) (packets.Packet, error)
	onSelect    func()
	onACL       func(topic string, write bool) bool
	mu          sync.Mutex
	order       []string
}

func (h *spyHook) note(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.order = append(h.order, s)
}

func (h *spyHook) Provides(b byte) bool {
	switch b {
	case mqtt.OnPublish:
		return h.onPublish != nil
	case mqtt.OnPublished:
		return h.onPublished != nil
	case mqtt.OnPacketRead:
		return h.onRead != nil
	case mqtt.OnSelectSubscribers:
		return h.onSelect != nil
	case mqtt.OnConnect, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished, mqtt.OnPacketEncode:
		return true
	}
	return h.admitAll.Provides(b)
}

func (h *spyHook) OnPublish(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	return pk, h.onPublish(pk)
}
func (h *spyHook) OnPublished(*mqtt.Client, packets.Packet) { h.onPublished() }
func (h *spyHook) OnPacketRead(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	return h.onRead(pk)
}

func (h *spyHook) OnSelectSubscribers(s *mqtt.Subscribers, _ packets.Packet) *mqtt.Subscribers {
	h.onSelect()
	return s
}

func (h *spyHook) OnACLCheck(_ *mqtt.Client, topic string, write bool) bool {
	return h.onACL == nil || h.onACL(topic, write)
}

func (h *spyHook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool {
	h.note("authenticate")
	return true
}

func (h *spyHook) OnConnect(*mqtt.Client, packets.Packet) error {
	h.note("connect")
	return nil
}
func (h *spyHook) OnSessionEstablish(*mqtt.Client, packets.Packet)   { h.note("establish") }
func (h *spyHook) OnSessionEstablished(*mqtt.Client, packets.Packet) { h.note("established") }
func (h *spyHook) OnPacketEncode(_ *mqtt.Client, pk packets.Packet) packets.Packet {
	h.note("encode " + packets.PacketNames[pk.FixedHeader.Type])
	return pk
}

// spy starts the bare library with h and returns its address. It is never stopped for good: stopping is one of its
// defects; its listener and connections are closed.
func spy(t *testing.T, h *spyHook) (string, *mqtt.Server) {
	t.Helper()
	s, addr, err := newBare(h)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, cl := range s.Clients.GetAll() {
			cl.Stop(nil)
		}
		_ = s.Close()
	})
	return addr(), s
}

func TestLibraryHooksAroundConnect(t *testing.T) {
	h := &spyHook{}
	h.onRead = func(pk packets.Packet) (packets.Packet, error) {
		h.note("read " + packets.PacketNames[pk.FixedHeader.Type])
		return pk, nil
	}
	addr, _ := spy(t, h)
	connect(t, addr, rawOptions{ID: "c", V: 5, Clean: true})
	want := "[read Connect connect authenticate establish encode Connack established]"
	eventually(t, want, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return fmt.Sprint(h.order) == want
	})
}

func TestLibraryInertPacket(t *testing.T) {
	h := &spyHook{onRead: func(pk packets.Packet) (packets.Packet, error) {
		if pk.FixedHeader.Type == packets.Publish || pk.FixedHeader.Type == packets.Subscribe {
			return inert(), nil
		}
		return pk, nil
	}}
	addr, _ := spy(t, h)
	c := connect(t, addr, rawOptions{ID: "c", V: 5, Clean: true})
	_ = c.Publish(1, "a", 1, nil)
	_ = c.Publish(2, "a", 2, nil)
	_ = c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: 1,
		Filters: packets.Subscriptions{{Filter: "a"}},
	})
	_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	expect(t, c, packets.Pingresp)
}

func TestLibraryRejectInOnPacketReadCloses(t *testing.T) {
	h := &spyHook{onRead: func(pk packets.Packet) (packets.Packet, error) {
		if pk.FixedHeader.Type == packets.Publish {
			return pk, packets.ErrRejectPacket
		}
		return pk, nil
	}}
	addr, _ := spy(t, h)
	c := connect(t, addr, rawOptions{ID: "c", V: 4, Clean: true})
	_ = c.Publish(0, "a", 0, nil)
	if before := closed(t, c); len(before) > 0 {
		t.Errorf("packets before the end: %v", before)
	}
}

func TestLibraryOnPublishComesBeforeTheAck(t *testing.T) {
	enter, leave := make(chan struct{}), make(chan struct{})
	var published atomic.Bool
	h := &spyHook{
		onPublish:   func(packets.Packet) error { close(enter); <-leave; return nil },
		onPublished: func() { published.Store(true) },
	}
	addr, _ := spy(t, h)
	c := connect(t, addr, rawOptions{ID: "c", V: 4, Clean: true})
	_ = c.Publish(1, "a", 1, nil)
	<-enter
	_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	silent(t, c, 50*time.Millisecond) // blocked: neither the acknowledgement nor the next packet
	if published.Load() {
		t.Error("OnPublished came before OnPublish ended")
	}
	close(leave)
	expect(t, c, packets.Puback)
	expect(t, c, packets.Pingresp)
	eventually(t, "OnPublished", published.Load)
}

// What OnPublish returns, and what becomes of the message.
func TestLibraryErrorsOfOnPublish(t *testing.T) {
	tests := []struct {
		name      string
		err       error
		version   byte
		acked     int // reason code, -1 for no acknowledgement
		delivered bool
	}{
		{"nothing", nil, 4, 0, true},
		{"a plain error does not refuse", errors.New("no"), 5, 0, true},
		{"a code does not refuse on 3.1.1", packets.ErrQuotaExceeded, 4, 0, true},
		{"a code refuses on 5", packets.ErrQuotaExceeded, 5, 0x97, false},
		{"reject withholds the acknowledgement", packets.ErrRejectPacket, 5, -1, false},
		{"ignore acknowledges and does not route", packets.CodeSuccessIgnore, 4, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr, _ := spy(t, &spyHook{onPublish: func(packets.Packet) error { return tt.err }})
			s := connect(t, addr, rawOptions{ID: "s", V: 4, Clean: true})
			subscribe(t, s, "a", 0)
			p := connect(t, addr, rawOptions{ID: "p", V: tt.version, Clean: true})
			_ = p.Publish(1, "a", 1, number(1))
			if tt.acked < 0 {
				silent(t, p, 50*time.Millisecond)
			} else if ack := expect(t, p, packets.Puback); int(ack.ReasonCode) != tt.acked {
				t.Errorf("PUBACK %#x", ack.ReasonCode)
			}
			if tt.delivered {
				expect(t, s, packets.Publish)
			} else {
				silent(t, s, 50*time.Millisecond)
			}
		})
	}
}

// A wrapped code ends the process where the library runs the connection; here it runs on the test's goroutine.
func TestLibraryPanicsOnWrappedCode(t *testing.T) {
	h := &spyHook{onPublish: func(packets.Packet) error { return fmt.Errorf("full: %w", packets.ErrQuotaExceeded) }}
	s, _, err := newBare(h)
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	defer func() { _ = here.Close() }()
	panicked := make(chan any, 1)
	go func() {
		defer func() { panicked <- recover() }()
		_ = s.EstablishConnection("pipe", there)
	}()
	c := &rawClient{Conn: here, V: 5}
	_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, Connect: packets.ConnectParams{
		ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: "c",
	}})
	_, _ = here.Read(make([]byte, 256))
	_ = c.Publish(1, "a", 1, nil)
	if r := <-panicked; r == nil {
		t.Error("no panic")
	}
}

func TestLibrarySelectsOnlyForSharedSubscriptions(t *testing.T) {
	var n atomic.Int64
	addr, _ := spy(t, &spyHook{onSelect: func() { n.Add(1) }})
	c := connect(t, addr, rawOptions{ID: "c", V: 5, Clean: true})
	subscribe(t, c, "a", 0)
	_ = c.Publish(0, "a", 0, nil)
	expect(t, c, packets.Publish)
	if n.Load() != 0 {
		t.Error("asked without a shared subscription")
	}
	subscribe(t, c, "$share/g/b", 0)
	_ = c.Publish(0, "b", 0, nil)
	expect(t, c, packets.Publish)
	if n.Load() != 1 {
		t.Error("not asked with one")
	}
}

func TestLibraryWillsPassNoCheck(t *testing.T) {
	var asked atomic.Bool
	h := &spyHook{
		onPublish: func(packets.Packet) error { asked.Store(true); return packets.ErrRejectPacket },
		onACL: func(topic string, write bool) bool {
			if write {
				asked.Store(true)
			}
			return !write
		},
	}
	addr, _ := spy(t, h)
	s := connect(t, addr, rawOptions{ID: "s", V: 4, Clean: true})
	subscribe(t, s, "w", 0)
	w := connect(t, addr, rawOptions{ID: "w", V: 4, Clean: true, Mod: withWill("w", "gone", 0)})
	_ = w.Close()
	expect(t, s, packets.Publish)
	if asked.Load() {
		t.Error("the will was checked")
	}
}

func TestLibraryStampsExpiry(t *testing.T) {
	addr, _ := spy(t, &spyHook{})
	c := connect(t, addr, rawOptions{ID: "c", V: 5, Clean: true})
	subscribe(t, c, "a", 0)
	_ = c.Publish(0, "a", 0, nil)
	if pk := expect(t, c, packets.Publish); pk.Properties.MessageExpiryInterval == 0 {
		t.Error("no expiry on a message that had none: the option need not be set any more")
	}
}

// The library holds the client's lock while it writes: a Write that blocks stops everybody who wants to write there.
func TestLibraryHoldsLockWhileWriting(t *testing.T) {
	s, _, err := newBare(nil)
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe() // unbuffered: a write blocks until it is read
	cl := s.NewClient(there, "pipe", "c", false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingresp}})
	}()
	eventually(t, "the lock is held", func() bool {
		if !cl.TryLock() {
			return true
		}
		cl.Unlock()
		return false
	})
	_ = here.Close()
	<-done
}

// withWill adds a will to a CONNECT.
func withWill(topic, payload string, qos byte) func(*packets.Packet) {
	return func(pk *packets.Packet) {
		c := &pk.Connect
		c.WillFlag, c.WillTopic, c.WillPayload, c.WillQos = true, topic, []byte(payload), qos
	}
}
