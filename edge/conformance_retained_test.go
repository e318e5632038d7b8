package edge

import (
	"fmt"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// The last message that asks for it is kept for each topic, with its QoS and properties, and goes to whoever subscribes later.
func TestConformanceRetained(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		p := connect(t, b.addr, rawOptions{ID: "p", V: v, Clean: true})
		for qos := range byte(3) {
			pk := toRetain(fmt.Sprint("ret/", qos), "first", qos)
			handOver(t, p, pk)
			pk.Payload = []byte("last")
			pk.Properties.User = []packets.UserProperty{{Key: "a", Val: "2"}, {Key: "c", Val: "3"}}
			handOver(t, p, pk)
		}
		// A message without the flag changes nothing [MQTT-3.3.1-8]; [MQTT-3.3.1-12] of 3.1.1.
		handOver(t, p, toPublish("ret/1", "passes", 1))
		away(t, b, p) // they belong to no session; [MQTT-3.1.2-7] of 3.1.1
		s := connect(t, b.addr, rawOptions{ID: "s", V: v, Clean: true})
		subscribe(t, s, "+/+", 2)
		// [MQTT-3.3.1-5] [MQTT-3.3.1-9] [MQTT-3.3.2-17] [MQTT-3.3.2-18]; [MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-7] [MQTT-3.3.1-8] of 3.1.1.
		got := take(t, s, 3)
		wantSaid(t, got, "ret/0=last/0/retained", "ret/1=last/1/retained", "ret/2=last/2/retained")
		for _, pk := range got {
			if want := map[byte]string{4: "[]", 5: "[{a 2} {c 3}]"}[v]; fmt.Sprint(pk.Properties.User) != want {
				t.Errorf("%s: user properties %v, want %s", pk.TopicName, pk.Properties.User, want)
			}
		}
		// To an established subscription it comes without the flag [MQTT-3.3.1-12]; [MQTT-3.3.1-9] of 3.1.1. One without a
		// payload as well, and then nothing is kept [MQTT-3.3.1-6] [MQTT-3.3.1-7]; [MQTT-3.3.1-10] [MQTT-3.3.1-11] of 3.1.1.
		p = connect(t, b.addr, rawOptions{ID: "p", V: v, Clean: true})
		for qos := range byte(3) {
			handOver(t, p, toRetain(fmt.Sprint("ret/", qos), "", qos))
		}
		wantSaid(t, take(t, s, 3), "ret/0=/0", "ret/1=/1", "ret/2=/2")
		handOver(t, p, toRetain("ret/3", "kept", 1))
		wantSaid(t, take(t, s, 1), "ret/3=kept/1")
		later := connect(t, b.addr, rawOptions{ID: "later", V: v, Clean: true})
		subscribe(t, later, "ret/#", 2)
		wantSaid(t, take(t, later, 1), "ret/3=kept/1/retained")
		// The same filter again replaces the subscription, with its QoS, brings what is retained again and loses nothing
		// [MQTT-3.8.4-3] [MQTT-3.8.4-4]; [MQTT-3.8.4-3] of 3.1.1.
		request(t, later, packets.Subscribe, 4, packets.Subscription{Filter: "ret/#", Qos: 0})
		wantSaid(t, take(t, later, 1), "ret/3=kept/0/retained")
		handOver(t, p, toPublish("ret/4", "once", 1))
		wantSaid(t, take(t, later, 1), "ret/4=once/0")
		silent(t, later, 50*time.Millisecond)
	})
}

// The will of a client that breaks off is published as it was given; that of one that says goodbye is not, nor ever again.
func TestConformanceWill(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		s := connect(t, b.addr, rawOptions{ID: "s", V: v, Clean: true})
		subscribe(t, s, "will/#", 2)
		rich := func(topic string, qos byte, retain bool) func(*packets.Packet) {
			return func(pk *packets.Packet) {
				withWill(topic, "not disconnected", qos)(pk)
				pk.Connect.WillRetain = retain
				pk.Connect.WillProperties.User = []packets.UserProperty{{Key: "a", Val: "2"}, {Key: "c", Val: "3"}}
			}
		}
		// [MQTT-3.1.2-7] [MQTT-3.1.2-8] [MQTT-3.1.2-14] [MQTT-3.1.2-15] [MQTT-3.1.3-10]; [MQTT-3.1.2-8] [MQTT-3.1.2-16] [MQTT-3.1.2-17] of 3.1.1.
		for qos := range byte(3) {
			for _, retain := range []bool{false, true} {
				topic := fmt.Sprintf("will/%d/%v", qos, retain)
				c := connect(t, b.addr, rawOptions{ID: "c", V: v, Clean: true, Mod: rich(topic, qos, retain)})
				_ = c.Close()
				got := take(t, s, 1)
				wantSaid(t, got, fmt.Sprintf("%s=not disconnected/%d", topic, qos))
				if want := map[byte]string{4: "[]", 5: "[{a 2} {c 3}]"}[v]; fmt.Sprint(got[0].Properties.User) != want {
					t.Errorf("user properties %v, want %s", got[0].Properties.User, want)
				}
			}
		}
		later := connect(t, b.addr, rawOptions{ID: "later", V: v, Clean: true})
		subscribe(t, later, "will/#", 2)
		wantSaid(t, take(t, later, 3), "will/0/true=not disconnected/0/retained", "will/1/true=not disconnected/1/retained",
			"will/2/true=not disconnected/2/retained")
		// Gone with a DISCONNECT [MQTT-3.1.2-10] [MQTT-3.14.4-3]; [MQTT-3.1.2-10] [MQTT-3.14.4-3] of 3.1.1. Once published it is
		// gone as well, and who gave none leaves none; [MQTT-3.1.2-12] of 3.1.1.
		o := kept("goodbye", v)
		o.Mod = rich("will/goodbye", 1, false)
		away(t, b, connect(t, b.addr, o))
		o.Mod = rich("will/once", 1, false)
		_ = connect(t, b.addr, o).Close()
		wantSaid(t, take(t, s, 1), "will/once=not disconnected/1")
		o.Mod = nil
		c := connect(t, b.addr, o)
		_ = c.Close()
		eventually(t, "gone", func() bool { return b.Clients() == 2 })
		silent(t, s, 100*time.Millisecond)
	})
}
