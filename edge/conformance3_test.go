package edge

// What MQTT 3.1.1 asks otherwise than MQTT 5. Every tag in this file is of 3.1.1.

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
)

// Without an identifier a client gets one of its own if it needs no session [MQTT-3.1.3-6] [MQTT-3.1.3-7], and else an answer that
// says why not [MQTT-3.1.3-8] [MQTT-3.1.3-9] [MQTT-3.2.2-4] [MQTT-3.2.2-5].
func TestConformance3ZeroLengthClientIdentifier(t *testing.T) {
	b := startBroker(t, nil)
	if got := answerTo(t, b.addr, connectBytes(4, 0, nil, "")...); !bytes.Equal(got, []byte{0x20, 2, 0, oldIdentifier}) {
		t.Errorf("a kept session without a name: answered by %x", got)
	}
	one := connect(t, b.addr, rawOptions{V: 4, Clean: true})
	two := connect(t, b.addr, rawOptions{V: 4, Clean: true})
	for i, c := range []*rawClient{one, two} {
		subscribe(t, c, fmt.Sprint("own/", i), 1)
		handOver(t, c, toPublish(fmt.Sprint("own/", i), "x", 1))
		wantSaid(t, take(t, c, 1), fmt.Sprintf("own/%d=x/1", i))
	}
}

// A client whose CONNECT is refused is told so by a code that MQTT 3.1.1 knows, is closed [MQTT-3.2.2-4] [MQTT-3.2.2-5], and
// nothing is taken that came behind the CONNECT [MQTT-3.1.4-5].
func TestConformance3RefusedConnect(t *testing.T) {
	no := false
	b := startBroker(t, func(o *Options) {
		o.Listeners["closed"] = config.Listener{Listen: "mqtt://127.0.0.1:0", Anonymous: &no}
	})
	behind := append(connectBytes(4, 2, nil, "c"), 0x30, 4, 0, 1, 'a', 'x')
	if got := answerTo(t, b.Addrs()["closed"].String(), behind...); !bytes.Equal(got, []byte{0x20, 2, 0, oldNotAuthorized}) {
		t.Errorf("answered by %x", got)
	}
	if n := b.disk.n.Load(); n != 0 {
		t.Errorf("%d messages taken from a client that was refused", n)
	}
}

// A message that no rule allows is acknowledged all the same, and goes nowhere [MQTT-3.3.5-2].
func TestConformance3PublishNotAllowed(t *testing.T) {
	b := startBroker(t, func(o *Options) {
		o.ACL = rules(t, config.Rule{User: "*", Publish: []string{"ok"}, Subscribe: []string{"#"}})
	})
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	subscribe(t, c, "#", 2)
	for qos := range byte(3) {
		handOver(t, c, toPublish("no", "x", qos))
		handOver(t, c, toPublish("ok", "x", qos))
	}
	wantSaid(t, take(t, c, 3), "ok=x/0", "ok=x/1", "ok=x/2")
	silent(t, c, 50*time.Millisecond)
}

// Through overlapping subscriptions a message comes once, with the highest QoS of them [MQTT-3.3.5-1].
func TestConformance3OverlappingSubscriptions(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	request(t, c, packets.Subscribe, 1, packets.Subscription{Filter: "over/#", Qos: 2}, packets.Subscription{Filter: "over/+", Qos: 1})
	handOver(t, c, toPublish("over/x", "both", 2))
	wantSaid(t, take(t, c, 1), "over/x=both/2")
	handOver(t, c, toPublish("over", "one", 2))
	wantSaid(t, take(t, c, 1), "over=one/2")
	silent(t, c, 50*time.Millisecond)
}
