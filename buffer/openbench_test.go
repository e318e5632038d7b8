package buffer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// openDir makes the test binary a process that opens the log there and tells how long that took and how much memory it has.
const openDir = "TIDEGATE_BUFFER_OPEN_DIR"

// BenchmarkOpen opens a log with many records in it, each time in a process of its own: after an orderly stop, and after a kill, when the
// last segment has to be scanned. At 5 million records of 256 bytes at most 50 ms and 30 MB are wanted. TIDEGATE_BENCH_RECORDS says how many
// there are; the folder is made once.
func BenchmarkOpen(b *testing.B) {
	records := 500_000
	if text := os.Getenv("TIDEGATE_BENCH_RECORDS"); text != "" {
		var err error
		if records, err = strconv.Atoi(text); err != nil {
			b.Fatalf("TIDEGATE_BENCH_RECORDS=%q: want a number", text)
		}
	}
	dir := b.TempDir()
	l, err := Open(dir, Options{SegmentBytes: 16 << 20, Sync: time.Minute, GatherBytes: 64 << 20})
	if err != nil {
		b.Fatal(err)
	}
	q := queueOf(b, l, "q", QueueOptions{})
	recs := make([]Record, 512)
	for i := range recs {
		recs[i] = Record{Queue: q, Data: payload(i, benchRecord)}
	}
	for n := 0; n < records; n += len(recs) {
		put(b, l, recs...)
	}
	// What a kill leaves of the last segment, to be put back before each opening: Open seals it.
	killed := map[string][]byte{}
	l.mu.Lock()
	last := filepath.Join(dir, l.active.name)
	l.mu.Unlock()
	if killed[last], err = os.ReadFile(last); err != nil {
		b.Fatal(err)
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	measureOpen(b, "closed", dir, nil)
	measureOpen(b, "killed", dir, killed)
}

// measureOpen opens the log in dir in one process after the other, with these files put back before.
func measureOpen(b *testing.B, name, dir string, before map[string][]byte) {
	b.Run(name, func(b *testing.B) {
		var took, memory, anonymous []float64
		for range max(b.N, 1) {
			for path, data := range before {
				if err := os.WriteFile(path, data, 0o600); err != nil {
					b.Fatal(err)
				}
			}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), openDir+"="+dir)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				b.Fatalf("open in a process of its own: %v\n%s", err, out)
			}
			var t, rss, anon float64
			var n uint64
			if _, err := fmt.Sscan(string(out), &t, &rss, &anon, &n); err != nil || n == 0 {
				b.Fatalf("output %q: %v", out, err)
			}
			took, memory, anonymous = append(took, t), append(memory, rss), append(anonymous, anon)
		}
		for _, list := range [][]float64{took, memory, anonymous} {
			slices.Sort(list)
		}
		b.ReportMetric(took[len(took)/2], "ms")
		b.ReportMetric(memory[len(memory)/2], "resident-MB")
		b.ReportMetric(anonymous[len(anonymous)/2], "anonymous-MB")
		b.ReportMetric(0, "ns/op")
	})
}

// openChild prints milliseconds, resident megabytes, those of them that are of no file, and the records.
func openChild(dir string) {
	start := time.Now()
	l, err := Open(dir, Options{SegmentBytes: 16 << 20})
	took := time.Since(start)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var n uint64
	for _, q := range l.Queues() {
		n += q.Records
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(float64(took.Microseconds())/1000, kilobytes(string(status), "VmRSS:")/1000, kilobytes(string(status), "RssAnon:")/1000, n)
	os.Exit(0) // the log stays as it is
}

// kilobytes reads a line of /proc/PID/status.
func kilobytes(status, what string) float64 {
	_, rest, _ := strings.Cut(status, what)
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseFloat(fields[0], 64)
	return n * 1.024
}
