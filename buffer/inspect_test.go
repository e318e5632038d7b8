package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLock(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, Options{})
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second open: %v", err)
	}
	if _, err := OpenReadOnly(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Fatalf("inspecting beside the owner: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	openLog(t, dir, Options{})
}

// folder reads all files of a folder.
func folder(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

// TestReadOnly looks at a log with a damaged and a torn frame, without changing a byte.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	m, want := sample(t, 8, false)
	for path, f := range m.names {
		b := f.data
		if strings.HasSuffix(path, segmentSuffix) {
			b[bytes.Index(b, payload(1003, 20))] ^= 1                                // in the fourth frame
			copy(b[bytes.Index(b, payload(2007, 5)):], bytes.Repeat([]byte{7}, 300)) // the last one
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := folder(t, dir)
	l, err := OpenReadOnly(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, st := range l.Queues() {
		if err := l.Lookup(st.Name).Scan(0, func(r Rec) bool {
			if want[st.Name][r.Seq] != string(r.Data) {
				t.Fatalf("%s: record %d", st.Name, r.Seq)
			}
			n++
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	if n != 6*3 {
		t.Fatalf("%d records, want those of 6 frames", n)
	}
	report, err := l.Verify()
	if err != nil || len(report.Damage) == 0 {
		t.Fatalf("verify: %v, %+v", err, report)
	}
	if _, err := l.Append(Record{}); !errors.Is(err, ErrReadOnly) {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if after := folder(t, dir); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Fatal("looking changed the folder")
	}
}

// TestVerify says nothing of a sound log, beside its use, and finds what is bad in a sealed one.
func TestVerify(t *testing.T) {
	m, _ := sample(t, 8, true)
	for _, broken := range []bool{false, true} {
		c := m.copyFS()
		if broken {
			for path, f := range c.names {
				if strings.HasSuffix(path, segmentSuffix) {
					f.data[bytes.Index(f.data, payload(1003, 20))] ^= 1
				}
			}
		}
		l := openLog(t, "/log", Options{FS: c})
		q := queueOf(t, l, "a", QueueOptions{})
		put(t, l, Record{Queue: q, Data: []byte("beside")})
		r, err := l.Verify()
		if err != nil || (len(r.Damage) > 0) != broken || r.Records < 22 {
			t.Fatalf("broken %v: %v, %+v", broken, err, r)
		}
	}
}

// TestDropQueue removes a queue; its name begins anew.
func TestDropQueue(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m})
	c := newCollector()
	q := queueOf(t, l, "session/x", QueueOptions{OnDrop: c.onDrop})
	keep := queueOf(t, l, "keep", QueueOptions{})
	for range 5 {
		put(t, l, Record{Queue: q, Data: []byte("old")}, Record{Queue: keep, Data: []byte("kept")})
	}
	if err := l.Drop("session/x"); err != nil {
		t.Fatal(err)
	}
	if len(c.got[Purged]["session/x"]) != 5 {
		t.Fatalf("told of %v", c.got)
	}
	if _, err := l.Append(Record{Queue: q}); !errors.Is(err, ErrDropped) {
		t.Fatal(err)
	}
	if err := q.Next(t.Context(), 0, &Batch{}); !errors.Is(err, ErrDropped) {
		t.Fatal(err)
	}
	q = queueOf(t, l, "session/x", QueueOptions{})
	put(t, l, Record{Queue: q, Data: []byte("new")})
	for range 2 {
		if got := drain(t, q, 0); len(got) != 1 || got[1] != "new" {
			t.Fatalf("read %v", got)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = openLog(t, "/log", Options{FS: m})
		q = queueOf(t, l, "session/x", QueueOptions{})
		keep = queueOf(t, l, "keep", QueueOptions{})
	}
	if len(drain(t, keep, 0)) != 5 || len(l.Queues()) != 2 {
		t.Fatalf("queues %+v", l.Queues())
	}
}

// TestOrphan: a queue nobody declares any more is listed, can be read and purged.
func TestOrphan(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m})
	put(t, l, Record{Queue: queueOf(t, l, "uplink/old/normal", QueueOptions{}), Data: []byte("x")})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, "/log", Options{FS: m})
	qs := l.Queues()
	if len(qs) != 1 || qs[0].Declared || qs[0].Records != 1 || qs[0].First != 1 || qs[0].Last != 1 || qs[0].Oldest.IsZero() {
		t.Fatalf("%+v", qs)
	}
	if n := l.Lookup("uplink/old/normal").Purge(); n != 1 {
		t.Fatalf("%d purged", n)
	}
}
