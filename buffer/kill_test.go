package buffer

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

const childDir = "TIDEGATE_BUFFER_TEST_DIR"

// TestMain lets the test binary be the process that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	if dir := os.Getenv(openDir); dir != "" {
		openChild(dir)
		return
	}
	os.Exit(m.Run())
}

// child appends for ever and prints what is durable, and the floor after each acknowledgement.
func child(dir string) {
	l, err := Open(dir, Options{SegmentBytes: 64 << 10})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	a, err := l.Queue("a", QueueOptions{Bound: l.NewBound(8<<20, Refuse)})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	b, err := l.Queue("b", QueueOptions{})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	var mu sync.Mutex
	out := bufio.NewWriter(os.Stdout)
	go drainChild(b)
	for {
		for range 20 {
			n := int(a.Stats().Next)
			recs := []Record{{Queue: a, Data: payload(n, 100+n%400)}, {Queue: b, Data: payload(n, 50)}}
			p, err := l.Append(recs...)
			if err != nil {
				fmt.Println("error", err)
				return
			}
			l.Notify(p, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					fmt.Fprintln(out, "durable", recs[0].Seq, recs[1].Seq)
				}
			})
		}
		mu.Lock()
		_ = out.Flush()
		mu.Unlock()
	}
}

// drainChild reads and acknowledges one queue beside the appending.
func drainChild(q *Queue) {
	var b Batch
	for after := q.Floor(); ; {
		if q.Next(context.Background(), after, &b) != nil {
			return
		}
		for _, r := range b.Recs {
			q.Ack(r.Seq)
			after = r.Seq
		}
	}
}

// TestKill kills a writing process again and again: whatever it said is durable is there.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	var durable Seq
	for round := range 20 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var timer *time.Timer
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var a, b Seq
			if _, err := fmt.Sscanf(lines.Text(), "durable %d %d", &a, &b); err != nil {
				break // the last line may be cut
			}
			durable = max(durable, a)
			if timer == nil {
				timer = time.AfterFunc(time.Duration(2+7*round)*time.Millisecond, func() { _ = cmd.Process.Kill() })
			}
		}
		if timer != nil {
			timer.Stop()
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		checkKilled(t, dir, durable)
	}
	if durable < 100 {
		t.Fatalf("only %d records became durable: the test tests nothing", durable)
	}
}

func checkKilled(t *testing.T, dir string, durable Seq) {
	t.Helper()
	l, err := Open(dir, Options{SegmentBytes: 64 << 10, OnDamage: func(d Damage) {
		if !d.Torn {
			t.Errorf("damage: %+v", d)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}()
	q := queueOf(t, l, "a", QueueOptions{})
	next := q.Floor() + 1
	if err := q.Scan(0, func(r Rec) bool {
		if r.Seq != next || string(r.Data) != string(payload(int(r.Seq), 100+int(r.Seq)%400)) {
			t.Fatalf("record %d, want %d: %.20q", r.Seq, next, r.Data)
		}
		next++
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if next <= durable {
		t.Fatalf("%d records are there, %d were durable", next-1, durable)
	}
	// Half of them is acknowledged, so that the queue never gets full.
	for seq := q.Floor() + 1; seq < next-(next-q.Floor())/2; seq++ {
		q.Ack(seq)
	}
}
