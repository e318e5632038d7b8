package e2e

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkLink measures the relay over a line with a round trip of 200 ms: its rate as a ratio to what is possible there, the lesser of its
// rate without delay and one window per round trip. At least 0.9 is wanted. The window is what the sink grants, or with 0 the gateway's own.
func BenchmarkLink(b *testing.B) {
	for _, granted := range []int{20, 1000, 0} {
		b.Run(fmt.Sprintf("granted%d", granted), func(b *testing.B) {
			for b.Loop() {
				compareLines(b, granted)
			}
		})
	}
}

func compareLines(b *testing.B, granted int) {
	const roundTrip = 200 * time.Millisecond
	cloud := newSink(b)
	cloud.granted = uint16(granted)
	line := newProxy(b, cloud.addr)
	g := newGateway(b, "[route.up]\n  from = [\"plant/#\"]\n",
		uplinkTo("cloud", line.url(), "5", "[uplink.cloud.buffer]\n  max_bytes = \"2GiB\""))
	g.start()
	g.requireConnected("cloud")
	window := g.uplink("cloud").Window
	bound := float64(window) / roundTrip.Seconds()
	l := load{names: []string{"dev0", "dev1", "dev2", "dev3"}, size: 200, window: 2000}
	sent := 0
	// rate lets n messages through and returns their rate, apart from the first window, which a long line takes at once.
	rate := func(n int) float64 {
		n = n / len(l.names) * len(l.names)
		cloud.reset()
		l.run(b, g.here(), sent/len(l.names), n)
		sent += n
		waitFor(b, 5*time.Minute, "the messages to arrive", func() bool { return cloud.arrived() == n }, g.uplinkText)
		r := cloud.rate()
		return r * float64(n-min(window, n/2)) / float64(n)
	}
	near := rate(400_000)
	line.set(func(p *proxy) { p.delay = roundTrip / 2 })
	far := rate(int(bound*10) + window)
	ratio := far / min(near, bound)
	b.ReportMetric(near, "near-messages/s")
	b.ReportMetric(far, "far-messages/s")
	b.ReportMetric(ratio, "ratio")
	b.ReportMetric(0, "ns/op")
	b.Logf("window %d: %.0f messages/s without delay, %.0f with a round trip of %v, where %.0f are possible: ratio %.2f (wanted: 0.9)",
		window, near, far, roundTrip, min(near, bound), ratio)
	g.stop()
}
