package edge

import (
	"fmt"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// What a publisher says about its message reaches every subscriber as it was said, with each QoS: [MQTT-3.3.2-4] [MQTT-3.3.2-15]
// [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20].
func TestConformance5Properties(t *testing.T) {
	b := startBroker(t, nil)
	subs := []*rawClient{
		connect(t, b.addr, rawOptions{ID: "s1", V: 5, Clean: true}), connect(t, b.addr, rawOptions{ID: "s2", V: 5, Clean: true}),
	}
	for _, s := range subs {
		subscribe(t, s, "prop", 2)
	}
	old := connect(t, b.addr, rawOptions{ID: "old", V: 4, Clean: true})
	subscribe(t, old, "prop", 2)
	p := connect(t, b.addr, rawOptions{ID: "p", V: 5, Clean: true})
	for _, name := range []string{"all", "none", "user", "format"} {
		for qos := range byte(3) {
			pk := toPublish("prop", "", qos) // without a payload, which must not matter
			props := &pk.Properties
			if name == "all" || name == "user" { // equal keys, in this order
				props.User = []packets.UserProperty{{Key: "c", Val: "3"}, {Key: "a", Val: "2"}, {Key: "c", Val: ""}, {Key: "", Val: "ä"}, {Key: "a", Val: "2"}}
			}
			if name == "all" || name == "format" {
				props.PayloadFormat, props.PayloadFormatFlag = 1, true
				props.ContentType = "My name"
			}
			if name == "all" {
				props.ResponseTopic, props.CorrelationData = "re/ply", []byte{0, 255, 0}
			}
			handOver(t, p, pk)
			for _, s := range subs {
				got := take(t, s, 1)[0]
				g := got.Properties
				want := fmt.Sprint(props.User, props.PayloadFormat, props.ContentType, props.ResponseTopic, props.CorrelationData)
				if text := fmt.Sprint(g.User, g.PayloadFormat, g.ContentType, g.ResponseTopic, g.CorrelationData); text != want || got.FixedHeader.Qos != qos {
					t.Errorf("%s with QoS %d: got %s with QoS %d, want %s", name, qos, text, got.FixedHeader.Qos, want)
				}
			}
			wantSaid(t, take(t, old, 1), fmt.Sprintf("prop=/%d", qos))
		}
	}
}

// A request is answered to its Response Topic with its Correlation Data [MQTT-3.3.2-15] [MQTT-3.3.2-16], on one topic by two clients
// that do not hear themselves [MQTT-3.8.3-3].
func TestConformance5RequestResponse(t *testing.T) {
	b := startBroker(t, nil)
	asks := connect(t, b.addr, rawOptions{ID: "asks", V: 5, Clean: true})
	answers := connect(t, b.addr, rawOptions{ID: "answers", V: 5, Clean: true})
	for _, c := range []*rawClient{asks, answers} {
		subscribeWith(t, c, packets.Subscription{Filter: "talk", Qos: 2, NoLocal: true})
	}
	pk := toPublish("talk", "request", 1)
	pk.Properties.ResponseTopic, pk.Properties.CorrelationData = "talk", []byte("334")
	handOver(t, asks, pk)
	got := take(t, answers, 1)
	wantSaid(t, got, "talk=request/1")
	reply := toPublish(got[0].Properties.ResponseTopic, "response", 1)
	reply.Properties.CorrelationData = got[0].Properties.CorrelationData
	handOver(t, answers, reply)
	got = take(t, asks, 1)
	wantSaid(t, got, "talk=response/1")
	if c := string(got[0].Properties.CorrelationData); c != "334" {
		t.Errorf("correlation data %q", c)
	}
	silent(t, answers, 50*time.Millisecond)
}

// No Local [MQTT-3.8.3-3], also of a connection that came after the subscription; Retain As Published [MQTT-3.3.1-12]
// [MQTT-3.3.1-13].
func TestConformance5NoLocalAndRetainAsPublished(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, kept("c", 5))
	other := connect(t, b.addr, rawOptions{ID: "other", V: 5, Clean: true})
	for _, s := range []*rawClient{c, other} {
		subscribeWith(t, s, packets.Subscription{Filter: "local", Qos: 2, NoLocal: true})
	}
	away(t, b, c)
	c = connect(t, b.addr, kept("c", 5))
	for qos := range byte(3) {
		handOver(t, c, toPublish("local", "mine", qos))
		wantSaid(t, take(t, other, 1), fmt.Sprintf("local=mine/%d", qos))
	}
	handOver(t, other, toPublish("local", "theirs", 1))
	wantSaid(t, take(t, c, 1), "local=theirs/1")

	subscribeWith(t, c, packets.Subscription{Filter: "kept", Qos: 2, RetainAsPublished: true})
	subscribeWith(t, other, packets.Subscription{Filter: "kept", Qos: 2})
	handOver(t, c, toPublish("kept", "false", 1))
	handOver(t, c, toRetain("kept", "true", 1))
	wantSaid(t, take(t, c, 2), "kept=false/1", "kept=true/1/retained")
	wantSaid(t, take(t, other, 2), "kept=false/1", "kept=true/1")
	silent(t, other, 50*time.Millisecond)
}

// Retain Handling: every time [MQTT-3.3.1-9], with the first subscription [MQTT-3.3.1-10] or never [MQTT-3.3.1-11].
func TestConformance5RetainHandling(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	for qos := range byte(3) {
		handOver(t, c, toRetain(fmt.Sprint("kept/", qos), "x", qos))
	}
	all := []string{"kept/0=x/0/retained", "kept/1=x/1/retained", "kept/2=x/2/retained"}
	for handling, want := range [][2]bool{{true, true}, {true, false}, {false, false}} {
		for i, come := range want {
			request(t, c, packets.Subscribe, 3, packets.Subscription{Filter: "kept/+", Qos: 2, RetainHandling: byte(handling)})
			// A mark behind them shows that nothing more comes.
			request(t, c, packets.Subscribe, 4, packets.Subscription{Filter: "mark", Qos: 2})
			handOver(t, c, toPublish("mark", "x", 1))
			expected := []string{"mark=x/1"}
			if come {
				expected = append(expected, all...)
			}
			t.Run(fmt.Sprintf("%d, subscription %d", handling, i+1), func(t *testing.T) { wantSaid(t, take(t, c, len(expected)), expected...) })
		}
		request(t, c, packets.Unsubscribe, 5, packets.Subscription{Filter: "kept/+"})
	}
}

// A message says by which subscriptions it came [MQTT-3.3.4-3], in one copy by all of them [MQTT-3.3.4-4] with the highest QoS
// [MQTT-3.3.4-2].
func TestConformance5SubscriptionIdentifiers(t *testing.T) {
	b := startBroker(t, nil)
	one := connect(t, b.addr, rawOptions{ID: "one", V: 5, Clean: true})
	subscribeWith(t, one, packets.Subscription{Filter: "ident", Qos: 2, Identifier: 268435455})
	two := connect(t, b.addr, rawOptions{ID: "two", V: 5, Clean: true})
	subscribeWith(t, two, packets.Subscription{Filter: "ident", Qos: 1, Identifier: 2})
	subscribeWith(t, two, packets.Subscription{Filter: "ident/#", Qos: 2, Identifier: 3})
	subscribeWith(t, two, packets.Subscription{Filter: "+", Qos: 0}) // has none
	for i, want := range []string{"[2 3]", "[7 3]"} {
		handOver(t, two, toPublish("ident", "x", 2))
		got := take(t, two, 1)
		wantSaid(t, got, "ident=x/2")
		ids := got[0].Properties.SubscriptionIdentifier
		if text := fmt.Sprint(ids); text != want && text != map[string]string{"[2 3]": "[3 2]", "[7 3]": "[3 7]"}[want] {
			t.Errorf("came by %s, want %s", text, want)
		}
		got = take(t, one, 1)
		if ids := fmt.Sprint(got[0].Properties.SubscriptionIdentifier); ids != "[268435455]" {
			t.Errorf("came by %s", ids)
		}
		if i == 0 { // the same filter again replaces the identifier as well [MQTT-3.8.4-3]
			subscribeWith(t, two, packets.Subscription{Filter: "ident", Qos: 1, Identifier: 7})
		}
	}
	silent(t, two, 50*time.Millisecond)
}
