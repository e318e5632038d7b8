package edge

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// A client need not wait for the CONNACK, and a packet may come in any pieces: all in one, byte by byte, or cut in the middle. The
// CONNACK is the first answer all the same: [MQTT-3.2.0-1]; [MQTT-3.2.0-1] of 3.1.1.
func TestConformancePieces(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		properties := ""
		if v == 5 {
			properties = "\x00"
		}
		sent := slices.Concat(
			connectBytes(v, 2, nil, "pieces"),
			frame(0x82, "\x00\x01"+properties+text("in")+"\x01"),
			frame(0x32, text("in")+"\x00\x02"+properties+"one"),
			frame(0x34, text("in")+"\x00\x03"+properties+"two"),
			frame(0x62, "\x00\x03"),
			frame(0x30, text("in")+properties+"nought"),
			frame(0xa2, "\x00\x04"+properties+text("in")),
			frame(0xc0, ""),
		)
		for _, size := range []int{len(sent), 1, 2, 7, 20} {
			c, err := net.Dial("tcp", b.addr)
			if err != nil {
				t.Fatal(err)
			}
			for piece := range slices.Chunk(sent, size) {
				if _, err := c.Write(piece); err != nil {
					t.Fatal(err)
				}
				if size < len(sent) {
					time.Sleep(100 * time.Microsecond) // so that they do not come together
				}
			}
			r := &rawClient{Conn: c, R: bufio.NewReader(c), V: v}
			expect(t, r, packets.Connack)
			var acks, messages []string
			for len(acks) < 6 || len(messages) < 3 {
				pk, err := r.Recv(patience)
				if err != nil {
					t.Fatalf("pieces of %d: after %v and %v: %v", size, acks, messages, err)
				}
				if pk.FixedHeader.Type == packets.Publish {
					messages = append(messages, string(pk.Payload))
				} else {
					acks = append(acks, fmt.Sprint(packets.PacketNames[pk.FixedHeader.Type], " ", pk.PacketID))
				}
			}
			slices.Sort(acks) // those that wait for the disk may come behind the others
			if want := "[Pingresp 0 Puback 2 Pubcomp 3 Pubrec 3 Suback 1 Unsuback 4]"; fmt.Sprint(acks) != want {
				t.Errorf("pieces of %d: %v, want %s", size, acks, want)
			}
			if want := "[one two nought]"; fmt.Sprint(messages) != want {
				t.Errorf("pieces of %d: %v, want %s", size, messages, want)
			}
			_ = c.Close()
		}
	})
}

// What a client gets is no sign that it is there: one that only listens, and does not even acknowledge, is closed
// [MQTT-3.1.2-22]; [MQTT-3.1.2-24] of 3.1.1.
func TestConformanceKeepAliveOfListener(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		t.Parallel()
		c := connect(t, b.addr, rawOptions{ID: "c", V: v, Clean: true, KeepAlive: 1})
		subscribe(t, c, "news", 0)
		quit := make(chan struct{})
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(quit)
		wg.Go(func() { // ends with the test, or when it took far too long
			for range 600 {
				select {
				case <-quit:
					return
				case <-time.After(50 * time.Millisecond):
					_ = b.Deliver(t.Context(), msg("news", "x"))
				}
			}
		})
		begin := time.Now()
		before := closed(t, c)
		if d := time.Since(begin); d > patience {
			t.Errorf("closed after %v", d)
		}
		if len(before) == 0 || before[0].FixedHeader.Type != packets.Publish {
			t.Errorf("got %v", before)
		}
	})
}

// What came before a packet that ends the connection is taken and answered, in both ways; what came behind it is not looked at.
func TestAnswersBeforeAnError(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		properties := ""
		if v == 5 {
			properties = "\x00"
		}
		for name, bad := range map[string][]byte{
			"malformed": frame(0x32, "\x00\x09a"), "protocol error": frame(0x32, text("a")+"\x00\x00"+properties), "too large": {0x32, 0xff, 0xff, 0xff, 0x7f},
		} {
			before := b.disk.n.Load()
			c := connect(t, b.addr, rawOptions{ID: "c", V: v, Clean: true})
			_ = c.Raw(slices.Concat(
				frame(0x32, text("good")+"\x00\x01"+properties+"x"), frame(0x34, text("good")+"\x00\x02"+properties+"x"), bad,
				frame(0x32, text("behind")+"\x00\x03"+properties+"x"),
			))
			var got []string
			for _, pk := range closed(t, c) {
				got = append(got, fmt.Sprint(packets.PacketNames[pk.FixedHeader.Type], " ", pk.PacketID))
			}
			want := "[Puback 1 Pubrec 2]"
			if v == 5 {
				want = "[Puback 1 Pubrec 2 Disconnect 0]"
			}
			if fmt.Sprint(got) != want {
				t.Errorf("%s: got %v, want %s", name, got, want)
			}
			if n := b.disk.n.Load() - before; n != 2 {
				t.Errorf("%s: %d messages taken, want the 2 before it", name, n)
			}
		}
	})
}
