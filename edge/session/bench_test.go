package session

import (
	"fmt"
	"log/slog"
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
			for i := range away {
				conn := &null{}
				s, _, _ := m.Attach(Connect{Conn: conn, Client: fmt.Sprint("c", i), Version: 5, Expiry: time.Hour, Allow: allowAll})
				s.Subscribe(conn, []*Subscription{{Filter: "plant/#", QoS: 1}}, nil)
				m.Detach(s, conn)
				s.Left(nil)
			}
			m.Flush()
			var last message.Ticket
			var scratch []byte
			take := func(msg *message.Message, r Riders) (message.Ticket, error) {
				scratch, _ = msg.AppendBinary(scratch[:0])
				recs := append([]Record{{Queue: q, Data: scratch}}, r.Must...)
				recs = append(recs, r.May...)
				for {
					pos, err := l.Append(recs...)
					if err == nil {
						copy(r.May, recs[1+len(r.Must):])
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
