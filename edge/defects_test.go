package edge

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Each probe is run against the bare library, which must fail it, and against our broker, which must pass. A probe
// returns what is wrong, or nothing.
func TestDefectsOfTheLibrary(t *testing.T) {
	probes := []struct {
		name  string
		tries int // the bare library fails in one of so many tries
		probe func(t *testing.T, addr string) string
	}{
		{"1 deadlock with Receive Maximum", 3, probeDeadlock},
		{"2 stall with Receive Maximum", 3, probeStall},
		{"3 loss by a shared packet identifier", 1, probeLoss},
		{"4 SUBSCRIBE refused for its packet identifier", 1, probeSubscribeIdentifier},
		{"5 order of an offline queue", 2, probeOfflineOrder},
		{"6 shared subscription with an expired member", 2, probeSharedExpired},
		{"6 shared subscription with an offline member", 2, probeSharedOffline},
		{"7 one stuck subscriber", 2, probeStuck},
		{"8 expiry after a day", 1, probeExpiryOfOthers},
		{"9 QoS 2 resent with DUP", 1, probeDupQoS2},
		{"10 unknown topic alias", 1, probeUnknownAlias},
		{"10 bad filter", 1, probeBadFilter},
		{"10 QoS 1 to a reserved topic is answered", 1, probeReservedAnswer},
		{"10 QoS 1 to an invalid topic is answered", 1, probeInvalidAnswer},
		{"15 empty will payload", 1, probeEmptyWill},
	}
	for _, p := range probes {
		t.Run(p.name, func(t *testing.T) {
			t.Run("bare", func(t *testing.T) {
				for range p.tries {
					if wrong := p.probe(t, startBare(t)); wrong != "" {
						t.Logf("the bare library: %s", wrong)
						return
					}
				}
				t.Errorf("the bare library passes %d times: this defect is gone", p.tries)
			})
			t.Run("ours", func(t *testing.T) {
				if wrong := p.probe(t, startBroker(t, nil).addr); wrong != "" {
					t.Error(wrong)
				}
			})
		})
	}
}

// publisher connects and publishes n messages with QoS 1 in the background; wait returns when all are acknowledged or
// the connection is closed.
func publisher(t *testing.T, addr, topic string, n, window, size int) (wait func() int) {
	t.Helper()
	return publishOn(t, connect(t, addr, rawOptions{ID: "pub-" + topic, V: 4, Clean: true}), topic, n, window, size)
}

func publishOn(t *testing.T, p *rawClient, topic string, n, window, size int) (wait func() int) {
	t.Helper()
	var wg sync.WaitGroup
	acked := 0
	wg.Go(func() {
		acked, _ = p.PublishAll(topic, 1, n, window, func(i int) []byte {
			return append(number(i), make([]byte, size)...)
		}, 60*time.Second)
	})
	t.Cleanup(func() { _ = p.Close(); wg.Wait() })
	return func() int { wg.Wait(); return acked }
}

// collect acknowledges what arrives until n messages came, nothing comes for the given time or a minute is over. It returns how many came
// and how often a number was lower than the one before.
func collect(c *rawClient, n int, idle time.Duration) (got, inversions int) {
	last := -1
	for end := time.Now().Add(60 * time.Second); got < n && time.Now().Before(end); {
		pk, err := c.Recv(idle)
		if err != nil {
			return got, inversions
		}
		switch pk.FixedHeader.Type {
		case packets.Pubrel:
			_ = c.Ack(packets.Pubcomp, pk.PacketID)
		case packets.Publish:
			got++
			if i := numberOf(pk); i < last {
				inversions++
			} else {
				last = i
			}
			switch pk.FixedHeader.Qos {
			case 1:
				_ = c.Ack(packets.Puback, pk.PacketID)
			case 2:
				_ = c.Ack(packets.Pubrec, pk.PacketID)
			}
		}
	}
	return got, inversions
}

func probeDeadlock(t *testing.T, addr string) string {
	const publishers, each = 20, 500
	s := connect(t, addr, rawOptions{ID: "s", V: 5, Clean: true, RM: 20})
	subscribe(t, s, "d/+", 1)
	var clients []*rawClient
	for i := range publishers {
		clients = append(clients, connect(t, addr, rawOptions{ID: fmt.Sprintf("p%d", i), V: 4, Clean: true}))
	}
	for i, p := range clients {
		publishOn(t, p, fmt.Sprintf("d/%d", i), each, 20, 250)
	}
	if got, _ := collect(s, publishers*each, 2*time.Second); got != publishers*each {
		return fmt.Sprintf("%d of %d messages", got, publishers*each)
	}
	return ""
}

func probeStall(t *testing.T, addr string) string {
	s := connect(t, addr, rawOptions{ID: "s", V: 5, Clean: true, RM: 20})
	subscribe(t, s, "st", 1)
	publisher(t, addr, "st", 500, 500, 250)
	if got, inversions := collect(s, 500, 2*time.Second); got != 500 || inversions > 0 {
		return fmt.Sprintf("%d of 500 messages, %d inversions", got, inversions)
	}
	return ""
}

// unacked gives a client a message that it does not acknowledge, and returns its packet identifier.
func unacked(t *testing.T, addr string, o rawOptions) (*rawClient, uint16) {
	t.Helper()
	c := connect(t, addr, o)
	subscribe(t, c, "mine", 1)
	publisher(t, addr, "mine", 1, 1, 0)()
	return c, expect(t, c, packets.Publish).PacketID
}

func probeLoss(t *testing.T, addr string) string {
	for _, o := range []rawOptions{{ID: "c4", V: 4}, {ID: "c5", V: 5, Expiry: 60}} {
		c, id := unacked(t, addr, o)
		_ = c.Publish(id, "other", 1, number(7))
		expect(t, c, packets.Puback)
		_ = c.Close()
		time.Sleep(100 * time.Millisecond)
		c = connect(t, addr, o)
		if got, _ := collect(c, 1, time.Second); got != 1 {
			return fmt.Sprintf("version %d: not sent again", o.V)
		}
	}
	return ""
}

func probeSubscribeIdentifier(t *testing.T, addr string) string {
	c, id := unacked(t, addr, rawOptions{ID: "c", V: 5, Expiry: 60})
	pk, err := c.Subscribe(id, "more", 1)
	if err != nil || len(pk.ReasonCodes) != 1 || pk.ReasonCodes[0] != 1 {
		return fmt.Sprintf("SUBACK %#x, %v", pk.ReasonCodes, err)
	}
	return ""
}

func probeOfflineOrder(t *testing.T, addr string) string {
	o := rawOptions{ID: "c", V: 4}
	c := connect(t, addr, o)
	subscribe(t, c, "off", 1)
	c.Disconnect()
	time.Sleep(100 * time.Millisecond)
	publisher(t, addr, "off", 200, 20, 0)()
	c = connect(t, addr, o)
	if got, inversions := collect(c, 200, time.Second); got != 200 || inversions > 0 {
		return fmt.Sprintf("%d of 200 messages, %d inversions", got, inversions)
	}
	return ""
}

func probeSharedExpired(t *testing.T, addr string) string {
	return probeShared(t, addr, rawOptions{ID: "gone", V: 5, Expiry: 1}, 3500*time.Millisecond)
}

func probeSharedOffline(t *testing.T, addr string) string {
	return probeShared(t, addr, rawOptions{ID: "away", V: 5, Expiry: 600}, 100*time.Millisecond)
}

func probeShared(t *testing.T, addr string, away rawOptions, wait time.Duration) string {
	a := connect(t, addr, away)
	subscribe(t, a, "$share/g/sh", 1)
	a.Disconnect()
	time.Sleep(wait)
	c := connect(t, addr, rawOptions{ID: "live", V: 5, Clean: true})
	subscribe(t, c, "$share/g/sh", 1)
	publisher(t, addr, "sh", 200, 20, 0)
	if got, _ := collect(c, 200, time.Second); got != 200 {
		return fmt.Sprintf("the live member got %d of 200", got)
	}
	return ""
}

func probeStuck(t *testing.T, addr string) string {
	stuck := connect(t, addr, rawOptions{ID: "stuck", V: 4, Clean: true, KeepAlive: 600, RcvBuf: 4096})
	subscribe(t, stuck, "x", 1)
	s := connect(t, addr, rawOptions{ID: "s", V: 4, Clean: true, KeepAlive: 600})
	subscribe(t, s, "x", 1)
	const n = 5000
	publisher(t, addr, "x", n, 20, 4096)
	if got, _ := collect(s, n, 2*time.Second); got != n {
		return fmt.Sprintf("another subscriber got %d of %d", got, n)
	}
	return ""
}

// probeExpiryOfOthers: a message whose sender set no expiry has none, so that a retained one does not vanish either.
func probeExpiryOfOthers(t *testing.T, addr string) string {
	publisher(t, addr, "kept", 1, 1, 0)()
	c := connect(t, addr, rawOptions{ID: "c", V: 4, Clean: true})
	_ = c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Retain: true}, PacketID: 1, TopicName: "kept", Payload: number(1),
	})
	expect(t, c, packets.Puback)
	s := connect(t, addr, rawOptions{ID: "s", V: 5, Clean: true})
	subscribe(t, s, "kept", 1)
	pk := expect(t, s, packets.Publish)
	if !pk.FixedHeader.Retain || pk.Properties.MessageExpiryInterval != 0 {
		return fmt.Sprintf("a retained message expires after %d s", pk.Properties.MessageExpiryInterval)
	}
	return ""
}

func probeDupQoS2(t *testing.T, addr string) string {
	c := connect(t, addr, rawOptions{ID: "c", V: 5, Expiry: 60})
	s := connect(t, addr, rawOptions{ID: "s", V: 4, Clean: true})
	subscribe(t, s, "dup", 0)
	_ = c.Publish(9, "dup", 2, number(1))
	expect(t, c, packets.Pubrec)
	_ = c.Close()
	time.Sleep(100 * time.Millisecond)
	c = connect(t, addr, rawOptions{ID: "c", V: 5, Expiry: 60})
	_ = c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2, Dup: true}, PacketID: 9, TopicName: "dup", Payload: number(1),
	})
	if rec := expect(t, c, packets.Pubrec); rec.ReasonCode != 0 {
		return fmt.Sprintf("PUBREC %#x", rec.ReasonCode)
	}
	_ = c.Ack(packets.Pubrel, 9)
	if pk, err := c.Recv(time.Second); err != nil || pk.FixedHeader.Type != packets.Pubcomp || pk.ReasonCode != 0 {
		return fmt.Sprintf("want one PUBCOMP, got %s %#x %v", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode, err)
	}
	if got, _ := collect(s, 2, 300*time.Millisecond); got != 1 {
		return fmt.Sprintf("delivered %d times", got)
	}
	return ""
}

func probeUnknownAlias(t *testing.T, addr string) string {
	c := connect(t, addr, rawOptions{ID: "c", V: 5, Clean: true})
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 1, Payload: number(1)}
	pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = 5, true
	_ = c.Send(pk)
	got, err := c.Recv(2 * time.Second)
	if err != nil || got.FixedHeader.Type != packets.Disconnect || got.ReasonCode != codeProtocolError {
		return fmt.Sprintf("answered by %s %#x %v", packets.PacketNames[got.FixedHeader.Type], got.ReasonCode, err)
	}
	return ""
}

func probeBadFilter(t *testing.T, addr string) string {
	c := connect(t, addr, rawOptions{ID: "c", V: 5, Clean: true})
	if code := subscribe(t, c, "a+/b", 0); code < codeUnspecified {
		return fmt.Sprintf("granted %d", code)
	}
	return ""
}

func probeReservedAnswer(t *testing.T, addr string) string {
	c := connect(t, addr, rawOptions{ID: "c", V: 4, Clean: true})
	_ = c.Publish(1, "$SYS/x", 1, number(1))
	if pk, err := c.Recv(time.Second); err != nil || pk.FixedHeader.Type != packets.Puback {
		return fmt.Sprintf("no PUBACK: %v", err)
	}
	return ""
}

func probeInvalidAnswer(t *testing.T, addr string) string {
	c := connect(t, addr, rawOptions{ID: "c", V: 4, Clean: true})
	_ = c.Publish(1, "a/+/b", 1, number(1))
	if pk, err := c.Recv(time.Second); err != nil || pk.FixedHeader.Type != packets.Puback {
		return fmt.Sprintf("no PUBACK: %v", err)
	}
	return ""
}

func probeEmptyWill(t *testing.T, addr string) string {
	c, err := rawDial(addr, rawOptions{ID: "c", V: 4, Clean: true, Mod: func(pk *packets.Packet) {
		pk.Connect.WillFlag, pk.Connect.WillTopic = true, "w"
	}})
	if err != nil {
		return err.Error()
	}
	_ = c.Close()
	return ""
}
