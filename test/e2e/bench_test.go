package e2e

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	benchTopic = "plant/line/press/temperature"
	benchSpan  = 700 * time.Millisecond // of one measurement
)

// BenchmarkDurableAck measures what durability costs one pipelined QoS 1 client: the rate of acknowledgements of a gateway
// that stores every message before it acknowledges it, as a ratio to the rate of the same binary without an uplink, where
// nothing is stored. Both run in turns, several times; the ratio is the median of those of neighbouring measurements. At
// least 0.8 is wanted where the window is large enough for the disk: one flush takes a millisecond or more, and a window that
// is empty after half of that measures the disk's latency, not the gateway.
//
// The paho client is one that devices have. The raw one writes packets that it made before and only counts what comes back: it
// takes less time for a message than the gateway does, so that on two cores it shows every bit of work that durability costs.
func BenchmarkDurableAck(b *testing.B) {
	clients := map[string]ackRater{"paho": pahoAckRate, "raw": rawAckRate}
	for _, c := range []struct {
		client       string
		size, window int
	}{{"paho", 256, 1000}, {"paho", 1024, 1000}, {"raw", 256, 1000}, {"raw", 256, 4000}, {"raw", 256, 16000}, {"raw", 1024, 4000}} {
		b.Run(fmt.Sprintf("%s/%dB/window%d", c.client, c.size, c.window), func(b *testing.B) {
			for b.Loop() {
				compareAcks(b, clients[c.client], c.size, c.window)
			}
		})
	}
}

// ackRater keeps a window of messages in flight for benchSpan and returns the acknowledgements per second.
type ackRater func(b *testing.B, g *gateway, size, window int) float64

func compareAcks(b *testing.B, ackRate ackRater, size, window int) {
	const rounds = 11
	// The buffer is large enough for all of it: what eviction costs is another question.
	stored := newGateway(b, "[route.up]\n  from = [\"plant/#\"]\n",
		uplinkTo("cloud", "mqtt://127.0.0.1:9", "5", "[uplink.cloud.buffer]\n  max_bytes = \"2GiB\""))
	plain := newGateway(b)
	stored.start()
	plain.start()
	durable, free, ratios, work := compareRates(b, stored, plain, rounds, func(g *gateway) float64 { return ackRate(b, g, size, window) })
	ratio := ratios[rounds/2]
	b.ReportMetric(durable, "durable-acks/s")
	b.ReportMetric(free, "plain-acks/s")
	b.ReportMetric(ratio, "ratio")
	b.ReportMetric(work[stored]*1e6, "durable-µs/ack")
	b.ReportMetric(work[plain]*1e6, "plain-µs/ack")
	b.ReportMetric(0, "ns/op")
	b.Logf("%d bytes, window %d: %.0f durable acks/s, %.0f without a buffer, ratio %.2f (wanted: 0.8; of %d pairs the worst %.2f, the best %.2f); "+
		"processor %.2f and %.2f µs each", size, window, durable, free, ratio, rounds, ratios[0], ratios[rounds-1], work[stored]*1e6, work[plain]*1e6)
	stored.stop()
	plain.stop()
}

// compareRates measures both gateways in turns. It returns the median rate of each, the ratios of neighbouring measurements in
// order of size, and the processor seconds of each for one acknowledgement.
func compareRates(b *testing.B, one, other *gateway, rounds int, rate func(*gateway) float64) (ofOne, ofOther float64, ratios []float64, work map[*gateway]float64) {
	both := []*gateway{one, other}
	rates := map[*gateway][]float64{}
	work = map[*gateway]float64{}
	for _, g := range both {
		rate(g) // warms up: the first segments are made
	}
	for range rounds {
		for _, g := range both {
			before := processorTime(b, g)
			got := rate(g)
			rates[g] = append(rates[g], got)
			work[g] += (processorTime(b, g) - before) / (got * benchSpan.Seconds()) / float64(rounds)
		}
		ratios = append(ratios, rates[one][len(ratios)]/rates[other][len(ratios)])
		slices.Reverse(both) // neither is always the first
	}
	slices.Sort(ratios)
	return median(rates[one]), median(rates[other]), ratios, work
}

// median sorts list.
func median(list []float64) float64 { slices.Sort(list); return list[len(list)/2] }

// processorTime is what the gateway's process has used so far, in seconds.
func processorTime(b *testing.B, g *gateway) float64 { return processorTimeOf(b, g.pid()) }

func processorTimeOf(b testing.TB, pid int) float64 {
	b.Helper()
	text := readFile(b, fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	total := 0.0
	for _, f := range fields[11:13] { // user and system time
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			b.Fatal(err)
		}
		total += n / 100 // ticks of 10 ms, on every Linux
	}
	return total
}

// pahoAckRate is the ackRater of paho.mqtt.golang.
func pahoAckRate(b *testing.B, g *gateway, size, window int) float64 {
	b.Helper()
	c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + g.addr(devices)).SetClientID("dev").SetAutoReconnect(false).
		SetStore(noStore{}))
	if t := c.Connect(); !t.WaitTimeout(soon) || t.Error() != nil {
		b.Fatalf("connect: %v", t.Error())
	}
	defer c.Disconnect(0)
	payload := make([]byte, size)
	flight := make(chan mqtt.Token, window)
	acked := make(chan int, 1)
	begin := time.Now()
	go func() { // ends when flight is closed
		n := 0
		for t := range flight {
			if t.Wait(); t.Error() == nil {
				n++
			}
		}
		acked <- n
	}()
	for time.Since(begin) < benchSpan {
		flight <- c.Publish(benchTopic, 1, false, payload)
	}
	close(flight)
	n := <-acked
	return float64(n) / time.Since(begin).Seconds()
}

// noStore keeps nothing: the messages of a benchmark need not survive their connection.
type noStore struct{}

func (noStore) Open()                             {}
func (noStore) Put(string, packets.ControlPacket) {}
func (noStore) Get(string) packets.ControlPacket  { return nil }
func (noStore) All() []string                     { return nil }
func (noStore) Del(string)                        {}
func (noStore) Close()                            {}
func (noStore) Reset()                            {}

// rawAckRate is the ackRater that spends as little time as it can.
func rawAckRate(b *testing.B, g *gateway, size, window int) float64 {
	b.Helper()
	w, err := dial(g.addr(devices), "3.1.1", login{client: "dev"})
	if err != nil {
		b.Fatal(err)
	}
	defer w.close()
	packet := publishPacket("3.1.1", benchTopic, 1, 1, make([]byte, size))
	identifier := len(packet) - size - 2 // where it stands in the packet
	credit := make(chan int, window)     // acknowledgements that free a place in the window
	credit <- window
	quit := make(chan struct{})
	ended := make(chan error, 1)
	go func() { // ends with quit, or when the connection breaks
		id := uint16(0)
		var batch []byte
		for {
			n := 0
			select {
			case n = <-credit:
			case <-quit:
				ended <- nil
				return
			}
			for batch = batch[:0]; n > 0; n-- {
				if id++; id == 0 {
					id = 1
				}
				binary.BigEndian.PutUint16(packet[identifier:], id)
				batch = append(batch, packet...)
			}
			if err := w.write(batch); err != nil {
				ended <- err
				return
			}
		}
	}()
	acks, free := 0, 0
	begin := time.Now()
	_ = w.conn.SetReadDeadline(begin.Add(benchSpan + soon))
	for time.Since(begin) < benchSpan {
		// A PUBACK of 3.1.1 has four bytes; all that have come are taken together, so that counting costs little.
		if _, err := w.r.Peek(4); err != nil {
			b.Fatalf("after %d acknowledgements: %v", acks, err)
		}
		got, _ := w.r.Peek(w.r.Buffered() / 4 * 4)
		for i := 0; i < len(got); i += 4 {
			if got[i] != typePuback {
				b.Fatalf("after %d acknowledgements: packet %#x", acks, got[i])
			}
		}
		_, _ = w.r.Discard(len(got))
		acks += len(got) / 4
		free += len(got) / 4
		if free >= max(1, window/16) {
			credit <- free
			free = 0
		}
	}
	rate := float64(acks) / time.Since(begin).Seconds()
	close(quit)
	w.close()
	<-ended
	return rate
}
