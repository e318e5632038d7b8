package buffer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const benchRecord = 256

// rawFile is the floor that the log is measured against: one write and one fdatasync per commit.
type rawFile struct {
	f    File
	off  int64
	size int64 // where to begin again; 0 for a file that only grows
}

func newRawFile(b *testing.B, dir, name string, size int64) *rawFile {
	b.Helper()
	f, err := osFS{}.Create(filepath.Join(dir, name))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	if size > 0 {
		if err := zeroFill(f, size, nil); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	return &rawFile{f: f, size: size}
}

func (r *rawFile) commit(p []byte) error {
	if r.size > 0 && r.off+int64(len(p)) > r.size {
		r.off = 0
	}
	if err := writeAt(r.f, p, r.off); err != nil {
		return err
	}
	r.off += int64(len(p))
	return r.f.Sync()
}

// byAnother lets f run on a goroutine of its own, one call at a time, as one committer has to.
func byAnother(b *testing.B, f func() error) func() error {
	ask, answer := make(chan struct{}), make(chan error)
	b.Cleanup(func() { close(ask) })
	go func() { // ends with the benchmark
		for range ask {
			answer <- f()
		}
	}()
	return func() error {
		ask <- struct{}{}
		return <-answer
	}
}

// BenchmarkDurableAppend commits batches in a closed loop: by the log, by appending to a file, by writing into a zero-filled file, and by
// having another goroutine write into one, in turns, as the speed of a disk changes from one second to the next. It reports the log's rate, and
// its ratio to each. The last is the limit for one committer: what it misses of the zero-filled file is the way to a goroutine and back.
func BenchmarkDurableAppend(b *testing.B) {
	for _, batch := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			dir := b.TempDir()
			l := openLog(b, filepath.Join(dir, "log"), Options{SegmentBytes: 16 << 20})
			q := queueOf(b, l, "q", QueueOptions{})
			grown := newRawFile(b, dir, "grown", 0)
			zeroed := newRawFile(b, dir, "zeroed", 64<<20)
			handed := newRawFile(b, dir, "handed", 64<<20)
			recs := make([]Record, batch)
			for i := range recs {
				recs[i] = Record{Queue: q, Data: payload(i, benchRecord)}
			}
			raw := make([]byte, batch*benchRecord)
			put(b, l, recs...)
			time.Sleep(200 * time.Millisecond) // the filler makes the first full segment
			before := l.Stats()
			byOther := byAnother(b, func() error { return handed.commit(raw) })
			var took [4]time.Duration
			var last []Seq
			timed := func(i int, f func() error) {
				start := time.Now()
				if err := f(); err != nil {
					b.Fatal(err)
				}
				took[i] += time.Since(start)
			}
			for b.Loop() {
				timed(0, func() error {
					p, err := l.Append(recs...)
					if err != nil {
						return err
					}
					return l.Wait(b.Context(), p)
				})
				timed(1, func() error { return grown.commit(raw) })
				timed(2, func() error { return zeroed.commit(raw) })
				timed(3, byOther)
				// Acknowledged as it would be, so that segments are used again.
				last = last[:0]
				for i := range recs {
					last = append(last, recs[i].Seq)
				}
				q.Ack(last...)
			}
			b.ReportMetric(float64(b.N*batch)/took[0].Seconds(), "records/s")
			b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "of-append")
			b.ReportMetric(took[2].Seconds()/took[0].Seconds(), "of-zero-filled")
			b.ReportMetric(took[3].Seconds()/took[0].Seconds(), "of-handed-over")
			b.ReportMetric(took[1].Seconds()/took[2].Seconds(), "zero-filled-of-append")
			st := l.Stats()
			b.ReportMetric(float64(st.Syncs-before.Syncs)/float64(b.N), "syncs/commit")
			b.ReportMetric(float64(st.WrittenBytes-before.WrittenBytes)/float64(b.N*batch*benchRecord), "written/payload")
		})
	}
}

// BenchmarkPipelinedAppend is many appends on the way at once, one call each.
func BenchmarkPipelinedAppend(b *testing.B) {
	l := openLog(b, b.TempDir(), Options{SegmentBytes: 16 << 20})
	q := queueOf(b, l, "q", QueueOptions{})
	data := payload(1, benchRecord)
	window := make(chan struct{}, 4096)
	for b.Loop() {
		window <- struct{}{}
		recs := [1]Record{{Queue: q, Data: data}}
		p, err := l.Append(recs[:]...)
		if err != nil {
			b.Fatal(err)
		}
		l.Notify(p, func(error) {
			<-window
		})
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkDrain reads a backlog from the page cache; with several queues in the log, one of them.
func BenchmarkDrain(b *testing.B) {
	for _, lanes := range []int{1, 4} {
		b.Run(fmt.Sprintf("queues=%d", lanes), func(b *testing.B) {
			l := openLog(b, b.TempDir(), Options{SegmentBytes: 16 << 20, Sync: time.Minute, GatherBytes: 64 << 20})
			recs := make([]Record, 512)
			for i := range recs {
				recs[i] = Record{Queue: queueOf(b, l, fmt.Sprint("q", i%lanes), QueueOptions{}), Data: payload(i, benchRecord)}
			}
			const total = 512 << 10
			for range total / len(recs) {
				put(b, l, recs...)
			}
			q := recs[0].Queue
			stored := total / lanes
			var batch Batch
			read := 0
			for b.Loop() {
				after := Seq(0)
				for n := 0; n < stored; {
					if err := q.Next(context.Background(), after, &batch); err != nil {
						b.Fatal(err)
					}
					after = batch.Recs[len(batch.Recs)-1].Seq
					n += len(batch.Recs)
					read += len(batch.Recs)
				}
			}
			b.ReportMetric(float64(read)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkAck acknowledges in order and in random order, a batch of 512 at a time.
func BenchmarkAck(b *testing.B) {
	l := openLog(b, b.TempDir(), Options{SegmentBytes: 16 << 20, Sync: time.Minute, GatherBytes: 64 << 20})
	q := queueOf(b, l, "q", QueueOptions{})
	recs := make([]Record, 512)
	seqs := make([]Seq, 512)
	for i := range recs {
		recs[i] = Record{Queue: q, Data: payload(i, 16)}
	}
	var took time.Duration
	for b.Loop() {
		put(b, l, recs...)
		for i := range recs {
			seqs[i] = recs[(i*199)%512].Seq
		}
		start := time.Now()
		q.Ack(seqs...)
		took += time.Since(start)
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N*512), "ns/record")
}

// BenchmarkLogsTogether is the experiment behind the decision for one log: a window of messages on the way, each written to all logs,
// done when all have synced it. It reports the rate of n logs and its ratio to one, measured in turns.
func BenchmarkLogsTogether(b *testing.B) {
	for _, window := range []int{1, 64, 500, 4000} {
		for _, n := range []int{2, 4, 12} {
			b.Run(fmt.Sprintf("window=%d/logs=%d", window, n), func(b *testing.B) {
				one, many := newTogether(b, 1), newTogether(b, n)
				var took [2]time.Duration
				const slice = 300 * time.Millisecond
				var sent [2]int
				for b.Loop() {
					for i, t := range []*together{one, many} {
						start := time.Now()
						sent[i] += t.run(window, slice)
						took[i] += time.Since(start)
					}
				}
				rate := [2]float64{float64(sent[0]) / took[0].Seconds(), float64(sent[1]) / took[1].Seconds()}
				b.ReportMetric(rate[1], "messages/s")
				b.ReportMetric(rate[1]/rate[0], "of-one-log")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// together is a number of raw logs that commit the same messages, each with its own goroutine.
type together struct {
	work []chan int // how many messages to commit
	done chan int   // one answer per log and commit
}

func newTogether(b *testing.B, n int) *together {
	b.Helper()
	t := &together{done: make(chan int, n)}
	for i := range n {
		r := newRawFile(b, b.TempDir(), fmt.Sprint(i), 16<<20)
		work := make(chan int)
		t.work = append(t.work, work)
		buf := make([]byte, frameHeaderLen+1024*benchRecord)
		// It ends when work is closed.
		go func() {
			for n := range work {
				if err := r.commit(buf[:frameHeaderLen+n*benchRecord]); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
				t.done <- i
			}
		}()
		b.Cleanup(func() { close(work) })
	}
	return t
}

// run keeps window messages on the way for a while and tells how many were done. A log takes what waits for it, 1024 at most.
func (t *together) run(window int, d time.Duration) int {
	waiting, busy, finished := make([]int, len(t.work)), make([]int, len(t.work)), make([]int, len(t.work))
	sent, all := 0, 0
	start := time.Now()
	for {
		// Asked once a round: at the very end two answers could differ, and the loop would then wait for a log that has nothing to do.
		if time.Since(start) < d {
			for i := range waiting {
				waiting[i] += window - (sent - all)
			}
			sent = all + window
		} else if sent == all {
			return all
		}
		for i, w := range t.work {
			if busy[i] == 0 && waiting[i] > 0 {
				busy[i] = min(waiting[i], 1024)
				waiting[i] -= busy[i]
				w <- busy[i]
			}
		}
		i := <-t.done
		finished[i] += busy[i]
		busy[i] = 0
		all = finished[0]
		for _, f := range finished {
			all = min(all, f)
		}
	}
}

// BenchmarkCompress shrinks frames of sensor readings as the committer does: the time is for one record.
func BenchmarkCompress(b *testing.B) {
	for _, n := range []int{8, 64, 512, 4096} {
		b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
			c := compressor{on: true, records: 1}
			q := &Queue{id: 1}
			raw, stored := 0, 0
			for i := 0; b.Loop(); i += n {
				b.StopTimer()
				f := newFrame(frameCommit, nil, 1000)
				e := f.entry(q, 1, 1)
				for k := range n {
					f.add(e, Seq(k+1), 1000, never, reading(i+k))
				}
				raw += f.size
				b.StartTimer()
				c.shrink(f)
				b.StopTimer()
				f.closeRecords(1)
				stored += len(f.buf)
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
			b.ReportMetric(float64(stored)/float64(raw), "stored/raw")
		})
	}
}
