package buffer

import (
	"testing"
	"testing/synctest"
)

// TestWear: a small commit costs the disk a page, now and then two, and nothing beside; what is counted is what was written.
func TestWear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := openLog(t, "log", Options{FS: newMemFS(), SegmentBytes: 1 << 20})
		q := queueOf(t, l, "q", QueueOptions{})
		put(t, l, Record{Queue: q, Data: payload(0, 256)})
		synctest.Wait() // the spare is filled with zeros
		before := l.Stats()
		if before.WrittenBytes < 1<<20 {
			t.Errorf("%d bytes counted, the zeros of a segment are more", before.WrittenBytes)
		}
		const n = 200
		for i := range n {
			put(t, l, Record{Queue: q, Data: payload(i, 256)})
		}
		after := l.Stats()
		if got := after.PayloadBytes - before.PayloadBytes; got != n*256 {
			t.Errorf("%d payload bytes, want %d", got, n*256)
		}
		pages := float64(after.WrittenBytes-before.WrittenBytes) / pageBytes / n
		if pages < 1 || pages > 1.25 {
			t.Errorf("%.2f pages for a commit", pages)
		}
		_ = l.Close()
	})
}
