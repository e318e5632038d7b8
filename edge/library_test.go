package edge

import (
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Defects of the library as a broker that need a hook to be seen.

// spyHook is a hook whose behaviour a test sets.
type spyHook struct {
	admitAll
	onPublish func(packets.Packet) error
	onACL     func(topic string, write bool) bool
}

func (h *spyHook) Provides(b byte) bool {
	return b == mqtt.OnPublish && h.onPublish != nil || h.admitAll.Provides(b)
}

func (h *spyHook) OnPublish(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	return pk, h.onPublish(pk)
}

func (h *spyHook) OnACLCheck(_ *mqtt.Client, topic string, write bool) bool {
	return h.onACL == nil || h.onACL(topic, write)
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
		closed := make(chan struct{})
		go func() { // hangs where a client leaves meanwhile: Close takes a read lock twice
			defer close(closed)
			_ = s.Close()
		}()
		select {
		case <-closed:
		case <-time.After(5 * time.Second):
		}
	})
	return addr(), s
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

// withWill adds a will to a CONNECT.
func withWill(topic, payload string, qos byte) func(*packets.Packet) {
	return func(pk *packets.Packet) {
		c := &pk.Connect
		c.WillFlag, c.WillTopic, c.WillPayload, c.WillQos = true, topic, []byte(payload), qos
	}
}
