package opcua

import (
	"context"
	"syscall"
	"testing"
	"time"

	"tidegate/bridges/opcua/link"
	"tidegate/config"
	"tidegate/message"
)

// nullBus takes everything and has it on disk at once.
type nullBus struct{ n int }

func (b *nullBus) Publish(message.Message) (message.Ticket, error) {
	b.n++
	return message.Ticket{}, nil
}

func (b *nullBus) Subscribe(string, message.Handler) (func(), error) { return func() {}, nil }
func (b *nullBus) Retained(string) []message.Message                 { return nil }

// BenchmarkTake is what the bridge itself costs per value: payload, message, hand-over.
func BenchmarkTake(b *testing.B) {
	c := counterConfig("opc.tcp://127.0.0.1:1", 1000)
	bridge, err := New("press1", c, Options{Bus: &nullBus{}, GatewayID: "gw"})
	if err != nil {
		b.Fatal(err)
	}
	values := make([]link.Value, len(c.Nodes))
	for i := range values {
		if err := bridge.Resolve(i, link.Description{}); err != nil {
			b.Fatal(err)
		}
		values[i] = link.Value{Item: i, DataValue: link.DataValue{
			Value: link.Variant{Type: 11, Value: 21.5}, Source: 134_000_000_000_000_000,
		}}
	}
	b.ReportAllocs()
	for b.Loop() {
		bridge.Take(context.Background(), values, func(error) {})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(values)), "ns/value")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFromServer is the whole way from a server that changes a thousand nodes every 100 ms. The server is the slower
// of the two by far, so what counts is the processor time per value on our side. One iteration is one second of it.
func BenchmarkFromServer(b *testing.B) {
	for _, security := range []string{"None", "Basic256Sha256/SignAndEncrypt"} {
		b.Run(security, func(b *testing.B) {
			peer := startPeer(b, peerOptions{Counters: counterNodes, Interval: 100})
			bus := newBus()
			c := counterConfig(peer.url(), counterNodes)
			c.Security = security
			dir := b.TempDir()
			if security != "None" {
				target := Target{Name: "press1", Config: config.OPCUA{Endpoint: peer.url(), Security: security}, Dir: dir, GatewayID: "gw"}
				_, _ = Read(b.Context(), target, "i=2258")
				if _, err := Trust(dir, "press1"); err != nil {
					b.Fatal(err)
				}
			}
			bridge := runBridge(b, c, bus, dir)
			until(b, 20*time.Second, "connected", func() bool { return bridge.Status().Up })
			peer.do("run")
			time.Sleep(2 * time.Second)
			from, cpu := bus.count(), cpuTime(b)
			b.ResetTimer()
			for b.Loop() {
				time.Sleep(time.Second)
			}
			n, used := bus.count()-from, cpuTime(b)-cpu
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "values/s")
			b.ReportMetric(float64(used.Microseconds())/float64(n), "cpu-µs/value")
			b.ReportMetric(100*used.Seconds()/b.Elapsed().Seconds(), "cpu-%")
			peer.do("stop")
		})
	}
}
