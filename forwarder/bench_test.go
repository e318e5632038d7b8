package forwarder

import (
	"context"
	"fmt"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/message"
)

// instantCloud acknowledges at once, from within Send: what is measured is the forwarder and the buffer.
type instantCloud struct{ link *instantLink }

type instantLink struct {
	lost chan struct{}
	n    int
}

func (c instantCloud) Run(ctx context.Context, _ message.Handler) error { <-ctx.Done(); return nil }
func (c instantCloud) Connected(context.Context) (Link, error)          { return c.link, nil }
func (c instantCloud) Status() LinkStatus                               { return LinkStatus{Connected: true} }

func (l *instantLink) Send(_ context.Context, _ message.Message, _ Identity, done func(error)) error {
	l.n++
	done(nil)
	return nil
}
func (l *instantLink) Lost() <-chan struct{} { return l.lost }
func (l *instantLink) Proven() bool          { return true }
func (l *instantLink) ClosedByPeer() bool    { return false }
func (l *instantLink) Close(error)           {}

func benchMessage(i int) message.Message {
	return message.Message{
		ID: message.NewID(), Topic: fmt.Sprintf("plant/press%d/temperature", i%50), Payload: make([]byte, 186), QoS: 1,
		Source: message.Source{Protocol: message.MQTT, Client: "press"}, Received: time.Now(),
	}
}

func benchRig(b *testing.B, sync time.Duration, uplinks ...string) *rig {
	cfg := testConfig(map[string]config.Route{"telemetry": {From: []string{"plant/#"}, Topic: "sites/{gateway}/{topic}"}}, uplinks...)
	clouds := map[string]*fakeCloud{}
	for _, u := range uplinks {
		cfg.Uplinks[u] = config.Uplink{Buffer: config.Buffer{MaxBytes: 1 << 30}}
		clouds[u] = newFakeCloud(takeAll)
	}
	return openWith(b, b.TempDir(), cfg, clouds, buffer.Options{Sync: sync})
}

// BenchmarkIngest is the first half: route, encode, append, without waiting for the disk except where it is full.
func BenchmarkIngest(b *testing.B) {
	for _, c := range []struct {
		name    string
		sync    time.Duration
		uplinks []string
	}{{"always", 0, []string{"one"}}, {"always-two", 0, []string{"one", "two"}}, {"interval", time.Minute, []string{"one"}}} {
		b.Run(c.name, func(b *testing.B) {
			r := benchRig(b, c.sync, c.uplinks...)
			defer r.close()
			msgs := make([]message.Message, 1000)
			for i := range msgs {
				msgs[i] = benchMessage(i)
			}
			b.ReportAllocs()
			var last message.Ticket
			for i := 0; b.Loop(); i++ {
				tk, err := r.f.Ingest(msgs[i%len(msgs)])
				for err != nil {
					if err := last.Wait(context.Background()); err != nil {
						b.Fatal(err)
					}
					tk, err = r.f.Ingest(msgs[i%len(msgs)])
				}
				last = tk
			}
			if err := last.Wait(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}

// BenchmarkDrain is the second half: read, decode, send, acknowledge, count.
func BenchmarkDrain(b *testing.B) {
	r := benchRig(b, 0, "one")
	defer r.close()
	const n = 200_000
	link := &instantLink{lost: make(chan struct{})}
	r.f.outs[0].uplink = instantCloud{link}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		var last message.Ticket
		for i := range n {
			m := benchMessage(i)
			tk, err := r.f.Ingest(m)
			for err != nil {
				if err := last.Wait(context.Background()); err != nil {
					b.Fatal(err)
				}
				tk, err = r.f.Ingest(m)
			}
			last = tk
		}
		if err := last.Wait(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		r.start()
		for r.queued() > 0 {
			time.Sleep(time.Millisecond)
		}
		r.stop()
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "msgs/s")
	if r.entry("telemetry", "one").Places["delivered"] != uint64(b.N)*n {
		b.Errorf("ledger: %+v", r.entry("telemetry", "one"))
	}
}
