package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"
)

// broker is what devices connect to: this gateway, or Mosquitto.
type broker interface {
	start()
	kill()
	here() string
	pid() int
}

// newBroker makes one that does nothing but serve its own clients.
func newBroker(b *testing.B, name string) broker {
	if name == "mosquitto" {
		return bridge{newCloud(b, "max_inflight_messages 0")}
	}
	return newGateway(b, "[broker]\n  max_clients = 20000")
}

// BenchmarkBroker compares the edge broker with Mosquitto, in turns: memory for idle clients, messages of fifty publishers to one
// subscriber, and the age of a message on arrival. Wanted: 5,000 idle clients in at most 150 MB, a rate of at least 1.3, an age of at most 2.
func BenchmarkBroker(b *testing.B) {
	b.Run("idle", func(b *testing.B) {
		for b.Loop() {
			ours, theirs := idleMemory(b, "tidegate"), idleMemory(b, "mosquitto")
			b.ReportMetric(ours, "MB")
			b.ReportMetric(0, "ns/op")
			b.Logf("resident memory with %d idle clients: %.1f MB (wanted: 150), Mosquitto %.1f MB", idleClients, ours, theirs)
		}
	})
	b.Run("fan-in", func(b *testing.B) {
		for b.Loop() {
			ours, theirs, ratio := sideBySide(b, fanIn)
			b.ReportMetric(ratio, "ratio")
			b.ReportMetric(0, "ns/op")
			b.Logf("50 publishers to one subscriber, QoS 1, 256 B, window 20: %.0f messages/s, Mosquitto %.0f, ratio %.2f (wanted: 1.3)", ours, theirs, ratio)
		}
	})
	for qos := range byte(2) {
		b.Run(fmt.Sprintf("age/qos%d", qos), func(b *testing.B) {
			for b.Loop() {
				ours, theirs, ratio := sideBySide(b, func(b *testing.B, at broker) float64 { return medianAge(b, at, qos) })
				b.ReportMetric(ratio, "ratio")
				b.ReportMetric(0, "ns/op")
				b.Logf("1,000 messages/s, QoS %d: half of them arrive within %.0f µs, with Mosquitto %.0f µs, ratio %.2f (wanted: 2)", qos, ours, theirs, ratio)
			}
		})
	}
}

// sideBySide measures both brokers in turns and returns the medians, and the median ratio of neighbours.
func sideBySide(b *testing.B, measure func(*testing.B, broker) float64) (ours, theirs, ratio float64) {
	const rounds = 7
	names := []string{"tidegate", "mosquitto"}
	brokers := map[string]broker{}
	for _, name := range names {
		brokers[name] = newBroker(b, name)
		brokers[name].start()
		measure(b, brokers[name]) // warms up
	}
	got := map[string][]float64{}
	var ratios []float64
	for range rounds {
		for _, name := range names {
			got[name] = append(got[name], measure(b, brokers[name]))
		}
		n := len(ratios)
		ratios = append(ratios, got["tidegate"][n]/got["mosquitto"][n])
		slices.Reverse(names)
	}
	for _, one := range brokers {
		one.kill()
	}
	return median(got["tidegate"]), median(got["mosquitto"]), median(ratios)
}

const idleClients = 5000

// idleMemory is the resident memory of a broker with idleClients connected, in MB, ten seconds after the last came.
func idleMemory(b *testing.B, name string) float64 {
	b.Helper()
	at := newBroker(b, name)
	at.start()
	defer at.kill()
	for i := range idleClients {
		conn, err := net.Dial("tcp", at.here())
		if err != nil {
			b.Fatalf("client %d: %v", i, err)
		}
		defer conn.Close()
		body := append(text(nil, "MQTT"), 4, 2, 0, 0) // clean session, no keep alive
		if _, err := conn.Write(packet(typeConnect, text(body, fmt.Sprint("idle", i)))); err != nil {
			b.Fatal(err)
		}
		connack := make([]byte, 4)
		if _, err := io.ReadFull(conn, connack); err != nil || connack[3] != 0 {
			b.Fatalf("client %d: CONNACK %x, %v", i, connack, err)
		}
	}
	begin := time.Now()
	waitFor(b, time.Minute, "ten seconds to pass", func() bool { return time.Since(begin) > 10*time.Second })
	n, err := residentOf(at.pid())
	if err != nil {
		b.Fatal(err)
	}
	return float64(n) * 1024 / 1e6
}

// fanIn is the rate of messages of fifty publishers at one subscriber.
func fanIn(b *testing.B, at broker) float64 {
	b.Helper()
	const n = 50_000
	sub := subscribed(b, at, 1)
	defer sub.close()
	l := load{size: 256, window: 20}
	for i := range 50 {
		l.names = append(l.names, fmt.Sprint("dev", i))
	}
	done := make(chan error, 1)
	begin := time.Now()
	go func() { done <- receive(sub, n, nil) }() // ends with the last message
	l.run(b, at.here(), 0, n)
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return n / time.Since(begin).Seconds()
}

// medianAge is how old half of the messages are on arrival, in microseconds, when a thousand come in a second.
func medianAge(b *testing.B, at broker, qos byte) float64 {
	b.Helper()
	const n = 2000
	sub := subscribed(b, at, qos)
	defer sub.close()
	pub, err := dial(at.here(), "3.1.1", login{client: "clock"})
	if err != nil {
		b.Fatal(err)
	}
	defer pub.close()
	if qos > 0 {
		go func() { // ends with the connection
			for {
				if _, err := pub.read(); err != nil {
					return
				}
			}
		}()
	}
	ages := make([]float64, 0, n)
	done := make(chan error, 1)
	go func() { // ends with the last message
		done <- receive(sub, n, func(payload []byte) {
			sent := int64(binary.BigEndian.Uint64(payload[len(payload)-8:]))
			ages = append(ages, float64(time.Now().UnixNano()-sent)/1e3)
		})
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	payload := make([]byte, 256)
	for i := range n {
		<-tick.C
		binary.BigEndian.PutUint64(payload[248:], uint64(time.Now().UnixNano()))
		if err := pub.publish("plant/clock", qos, uint16(i%65535+1), payload); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return median(ages)
}

// subscribed is a client that gets everything below plant/.
func subscribed(b *testing.B, at broker, qos byte) *wire {
	b.Helper()
	w, err := dial(at.here(), "3.1.1", login{client: "sub"})
	if err != nil {
		b.Fatal(err)
	}
	if code, err := w.subscribe("plant/#", qos); err != nil || code != qos {
		b.Fatalf("subscribe: %#x, %v", code, err)
	}
	return w
}

// receive reads n messages, acknowledges those with QoS 1, several at once, and shows each packet's body to f.
func receive(w *wire, n int, f func(body []byte)) error {
	var acks []byte
	for i := range n {
		p, err := w.readWithin(soon)
		if err != nil {
			return fmt.Errorf("after %d of %d messages: %w", i, n, err)
		}
		if p.kind != typePublish {
			return fmt.Errorf("packet %#x", p.kind)
		}
		if f != nil {
			f(p.body)
		}
		if p.flags&0x06 != 0 {
			at := 2 + int(binary.BigEndian.Uint16(p.body))
			acks = append(acks, typePuback, 2, p.body[at], p.body[at+1])
		}
		if len(acks) > 0 && (w.r.Buffered() == 0 || len(acks) >= 64) {
			if err := w.write(acks); err != nil {
				return err
			}
			acks = acks[:0]
		}
	}
	return nil
}
