package session

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// BenchmarkRoute measures one publication to a log with one queue of an uplink, without and with ten sessions away that take it.
func BenchmarkRoute(b *testing.B) {
	for _, away := range []int{0, 1, 10} {
		b.Run(fmt.Sprintf("away%d", away), func(b *testing.B) {
			l, err := buffer.Open(b.TempDir(), buffer.Options{Compress: true, Sync: time.Second})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			q, err := l.Queue("uplink/x/normal", buffer.QueueOptions{Bound: l.NewBound(1<<30, buffer.DropOldest)})
			if err != nil {
				b.Fatal(err)
			}
			st, err := OpenStore(l, 1<<30, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			m := New(Options{Store: st, QueueBytes: 1 << 30})
			leaveAway(m, away)
			var last message.Ticket
			var scratch []byte
			take := func(msg *message.Message, r Riders) (message.Ticket, error) {
				scratch, _ = msg.AppendBinary(scratch[:0])
				recs := append([]Record{{Queue: q, Data: scratch}}, r.May...)
				recs = append(recs, r.Must...)
				if r.Message { // as the forwarder does it
					recs[1].SameEnd = len(scratch)
				}
				for {
					pos, err := l.Append(recs...)
					if err == nil {
						copy(r.May, recs[1:])
						last = message.NewTicket(l, pos)
						return last, nil
					}
					_ = wait(last)
				}
			}
			payload := make([]byte, 1024)
			b.ReportAllocs()
			for b.Loop() {
				msg := message.Message{ID: message.NewID(), Topic: "plant/line/press/temperature", Payload: payload, QoS: 1, Received: time.Now()}
				if _, err := m.Route(Publication{Msg: &msg, Client: "d", Take: take}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// leaveAway makes n kept sessions without a connection that take everything below plant.
func leaveAway(m *Manager, n int) {
	for i := range n {
		conn := &null{}
		s, _, _ := m.Attach(Connect{Conn: conn, Client: fmt.Sprint("c", i), Version: 5, Expiry: time.Hour, Allow: allowAll})
		s.Subscribe(conn, []*Subscription{{Filter: "plant/#", QoS: 1}}, nil)
		m.Detach(s, conn)
		s.Left(nil)
	}
	m.Flush()
}

// BenchmarkRestore measures opening a log in which 400,000 messages of 500 bytes wait for ten sessions, and making these again; and
// the memory that is in use then.
func BenchmarkRestore(b *testing.B) {
	const messages, away = 400_000, 10
	dir := b.TempDir()
	open := func() (*buffer.Log, *Manager) {
		l, err := buffer.Open(dir, buffer.Options{Compress: true, Sync: time.Second})
		if err != nil {
			b.Fatal(err)
		}
		st, err := OpenStore(l, 1<<30, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		allow := func(string, string) func(string) bool { return allowAll }
		return l, New(Options{Store: st, QueueBytes: 1 << 30, Allow: allow, MaxExpiry: time.Hour})
	}
	l, m := open()
	leaveAway(m, away)
	noise := rand.New(rand.NewPCG(1, 1))
	for range messages {
		payload := make([]byte, 500)
		for i := range payload {
			payload[i] = byte(noise.Uint32())
		}
		m.Publish(&message.Message{ID: message.NewID(), Topic: "plant/line/press/temperature", Payload: payload, QoS: 1, Received: time.Now()}, "d")
	}
	m.Flush()
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		l, m := open()
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		if n := m.Len(); n != away {
			b.Fatalf("%d sessions", n)
		}
		for _, s := range m.All() {
			if n := s.queue.Len(); n != messages {
				b.Fatalf("%d messages wait", n)
			}
		}
		b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/(1<<20), "MiB")
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
