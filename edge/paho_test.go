package edge

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"

	"tidegate/message"
)

// The clients that devices really use: each QoS both ways, in order, with a reconnect that resumes the session.
func TestPaho3(t *testing.T) {
	b := startBroker(t, nil)
	options := func(id string) *paho3.ClientOptions {
		return paho3.NewClientOptions().AddBroker("tcp://" + b.addr).SetClientID(id).SetCleanSession(false).
			SetProtocolVersion(4).SetAutoReconnect(false).SetOrderMatters(true)
	}
	wait := func(tok paho3.Token) {
		t.Helper()
		if !tok.WaitTimeout(5*time.Second) || tok.Error() != nil {
			t.Fatalf("paho: %v", tok.Error())
		}
	}
	var mu sync.Mutex
	got := map[string][]string{}
	receive := func(_ paho3.Client, m paho3.Message) {
		mu.Lock()
		defer mu.Unlock()
		got[m.Topic()] = append(got[m.Topic()], string(m.Payload()))
	}
	of := func(topic string) []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), got[topic]...)
	}
	count := func(topic string) int { return len(of(topic)) }
	sub := paho3.NewClient(options("sub").SetDefaultPublishHandler(receive))
	wait(sub.Connect())
	wait(sub.Subscribe("q/#", 2, receive))
	pub := paho3.NewClient(options("pub"))
	wait(pub.Connect())
	publish := func(from, to int) {
		for qos := range byte(3) {
			for i := from; i < to; i++ {
				wait(pub.Publish(fmt.Sprintf("q/%d", qos), qos, false, fmt.Sprint(i)))
			}
		}
	}
	publish(0, 100)
	for qos := range 3 {
		eventually(t, "100 messages", func() bool { return count(fmt.Sprintf("q/%d", qos)) == 100 })
	}
	sub.Disconnect(50)
	publish(100, 200)
	sub = paho3.NewClient(options("sub").SetDefaultPublishHandler(receive))
	wait(sub.Connect())
	for qos := 1; qos < 3; qos++ {
		topic := fmt.Sprintf("q/%d", qos)
		// What the client could not acknowledge before it left comes again. That is so with QoS 2 as well, as the new client
		// object knows nothing of the old one's identifiers.
		once := func() []string {
			seen := map[string]bool{}
			return slices.DeleteFunc(of(topic), func(p string) bool {
				again := seen[p]
				seen[p] = true
				return again
			})
		}
		eventually(t, "200 messages", func() bool { return len(once()) == 200 })
		for i, p := range once() {
			if p != fmt.Sprint(i) {
				t.Fatalf("%s: message %d is %s", topic, i, p)
			}
		}
	}
	sub.Disconnect(50)
	pub.Disconnect(50)
}

func TestPaho5(t *testing.T) {
	b := startBroker(t, nil)
	open := func(id string, receive func(*paho.Publish)) *paho.Client {
		t.Helper()
		conn, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		c := paho.NewClient(paho.ClientConfig{Conn: conn, OnPublishReceived: []func(paho.PublishReceived) (bool, error){
			func(r paho.PublishReceived) (bool, error) { receive(r.Packet); return true, nil },
		}})
		if _, err := c.Connect(t.Context(), &paho.Connect{ClientID: id, KeepAlive: 30, CleanStart: true}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Disconnect(&paho.Disconnect{}) })
		return c
	}
	var mu sync.Mutex
	var got []*paho.Publish
	sub := open("sub", func(p *paho.Publish) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, p)
	})
	id := 7
	if _, err := sub.Subscribe(t.Context(), &paho.Subscribe{
		Properties:    &paho.SubscribeProperties{SubscriptionIdentifier: &id},
		Subscriptions: []paho.SubscribeOptions{{Topic: "five/+", QoS: 2}},
	}); err != nil {
		t.Fatal(err)
	}
	pub := open("pub", func(*paho.Publish) {})
	format, expiry := byte(1), uint32(100)
	for qos := range byte(3) {
		res, err := pub.Publish(t.Context(), &paho.Publish{
			Topic: fmt.Sprintf("five/%d", qos), QoS: qos, Payload: []byte("hello"),
			Properties: &paho.PublishProperties{
				ContentType: "text/plain", ResponseTopic: "reply", CorrelationData: []byte("c"), PayloadFormat: &format,
				MessageExpiry: &expiry, User: paho.UserProperties{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}},
			},
		})
		if err != nil || res != nil && res.ReasonCode != 0 {
			t.Fatalf("publish QoS %d: %v %v", qos, res, err)
		}
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(got) }
	eventually(t, "three messages", func() bool { return count() == 3 })
	for i, p := range got {
		pr := p.Properties
		if p.QoS != byte(i) || string(p.Payload) != "hello" || pr.ContentType != "text/plain" || pr.ResponseTopic != "reply" ||
			string(pr.CorrelationData) != "c" || *pr.PayloadFormat != 1 || *pr.MessageExpiry > 100 || *pr.MessageExpiry < 98 ||
			len(pr.User) != 2 || pr.User[1].Value != "2" || *pr.SubscriptionIdentifier != 7 {
			t.Errorf("message %d: %+v %+v", i, p, pr)
		}
	}
	m := b.disk.messages()[1]
	if m.ContentType != "text/plain" || m.ResponseTopic != "reply" || string(m.CorrelationData) != "c" || !m.PayloadUTF8 ||
		len(m.Properties) != 2 || m.Expires.Sub(m.Received) != 100*time.Second || m.QoS != 1 ||
		m.Source != (message.Source{Protocol: message.MQTT, Client: "pub"}) || m.ID.IsZero() {
		t.Errorf("ingested %+v", m)
	}
}

func TestMosquittoClients(t *testing.T) {
	b := startBroker(t, nil)
	host, port, _ := net.SplitHostPort(b.addr)
	for _, version := range []string{"mqttv311", "mqttv5"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		sub := exec.CommandContext(ctx, "mosquitto_sub", "-h", host, "-p", port, "-V", version, "-i", "msub", "-t", "m/#",
			"-q", "1", "-C", "100", "-F", "%t %p")
		var out strings.Builder
		sub.Stdout = &out
		if err := sub.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "subscribed", func() bool { return len(b.sessions.Subscribers("m/1")) == 1 })
		pub := exec.CommandContext(ctx, "mosquitto_pub", "-h", host, "-p", port, "-V", version, "-t", "m/1", "-q", "2", "-l")
		var lines, want strings.Builder
		for i := range 100 {
			fmt.Fprintf(&lines, "%d\n", i)
			fmt.Fprintf(&want, "m/1 %d\n", i)
		}
		pub.Stdin = strings.NewReader(lines.String())
		if text, err := pub.CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_pub: %v %s", err, text)
		}
		if err := sub.Wait(); err != nil {
			t.Fatalf("mosquitto_sub: %v", err)
		}
		if out.String() != want.String() {
			t.Errorf("%s: got\n%s", version, out.String())
		}
	}
}
