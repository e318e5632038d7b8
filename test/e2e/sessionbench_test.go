package e2e

import (
	"fmt"
	"testing"
)

// BenchmarkOfflineSessions measures what sessions of ten subscribers that are away cost the devices: the rate of durable
// acknowledgements with them as a ratio to that without, of the same binary in the same run, as BenchmarkDurableAck does it. At
// least 0.85 is wanted.
func BenchmarkOfflineSessions(b *testing.B) {
	clients := map[string]ackRater{"paho": pahoAckRate, "raw": rawAckRate}
	for _, c := range []struct {
		client       string
		size, window int
	}{{"paho", 256, 1000}, {"raw", 256, 4000}, {"raw", 1024, 4000}} {
		b.Run(fmt.Sprintf("%s/%dB/window%d", c.client, c.size, c.window), func(b *testing.B) {
			for b.Loop() {
				compareSessions(b, clients[c.client], c.size, c.window)
			}
		})
	}
}

func compareSessions(b *testing.B, ackRate ackRater, size, window int) {
	const rounds, subscribers = 21, 10
	sections := []string{
		"[broker]\n  session_store = \"8GiB\"\n  session_queue = \"8GiB\"\n[route.up]\n  from = [\"plant/#\"]\n",
		uplinkTo("cloud", "mqtt://127.0.0.1:9", "5", "[uplink.cloud.buffer]\n  max_bytes = \"2GiB\""),
	}
	with, without := newGateway(b, sections...), newGateway(b, sections...)
	with.start()
	without.start()
	for i := range subscribers {
		w, err := dial(with.here(), "5", login{client: fmt.Sprint("away", i), keep: true})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.subscribe("plant/#", 1); err != nil {
			b.Fatal(err)
		}
		w.close()
	}
	waitFor(b, soon, "the subscribers to be away", func() bool { return with.metrics().sum("tidegate_clients_connected") == 0 })
	kept, free, ratios, work := compareRates(b, with, without, rounds, func(g *gateway) float64 { return ackRate(b, g, size, window) })
	if n := with.metrics().sum("tidegate_session_drops_total"); n > 0 {
		b.Fatalf("%v messages were dropped", n)
	}
	b.ReportMetric(kept, "sessions-acks/s")
	b.ReportMetric(free, "plain-acks/s")
	b.ReportMetric(ratios[rounds/2], "ratio")
	b.ReportMetric(work[with]*1e6, "sessions-µs/ack")
	b.ReportMetric(work[without]*1e6, "plain-µs/ack")
	b.ReportMetric(0, "ns/op")
	b.Logf("%d bytes, window %d: %.0f acks/s with %d sessions away, %.0f without, ratio %.2f (wanted: 0.85; worst %.2f, best %.2f); "+
		"processor %.2f and %.2f µs each", size, window, kept, subscribers, free, ratios[rounds/2], ratios[0], ratios[rounds-1], work[with]*1e6, work[without]*1e6)
	with.stop()
	without.stop()
}
