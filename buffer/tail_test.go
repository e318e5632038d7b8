package buffer

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestTail: a second reader follows the end while Next is far behind; neither disturbs the other, and both end with the log.
func TestTail(t *testing.T) {
	m := newMemFS()
	synctest.Test(t, func(t *testing.T) {
		l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10})
		q := queueOf(t, l, "q", QueueOptions{})
		for i := range 300 {
			put(t, l, Record{Queue: q, Data: fmt.Appendf(nil, "old %d", i+1)})
		}
		tail := q.Tail()
		defer tail.Close()
		after := q.Stored()
		if after != 300 {
			t.Fatalf("stored up to %d", after)
		}
		got := make(chan string, 100)
		ended := make(chan error, 1)
		go func() { // ends with the log
			var b Batch
			for {
				if err := tail.Next(t.Context(), after, &b); err != nil {
					ended <- err
					return
				}
				for _, r := range b.Recs {
					got <- string(r.Data)
					after = r.Seq
				}
			}
		}()
		var b Batch
		if err := q.Next(t.Context(), 0, &b); err != nil || string(b.Recs[0].Data) != "old 1" {
			t.Fatalf("%v", err)
		}
		for i := range 50 {
			put(t, l, Record{Queue: q, Data: fmt.Appendf(nil, "new %d", i+1)})
			synctest.Wait()
			if s := <-got; s != fmt.Sprintf("new %d", i+1) {
				t.Fatalf("the tail reads %q", s)
			}
		}
		if all := drain(t, q, 0); len(all) != 350 {
			t.Errorf("%d records", len(all))
		}
		// What is acknowledged in front of the backlog goes, and the backlog stays.
		for seq := Seq(301); seq <= 350; seq++ {
			q.Ack(seq)
		}
		time.Sleep(time.Minute)
		if st := q.Stats(); st.Records != 300 || st.Floor != 0 || st.Last != 300 {
			t.Errorf("%+v", st)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Errorf("the tail ends with %v", err)
		}
	})
}
