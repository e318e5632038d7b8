package forwarder

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/message"
)

// TestLiveFirstAfterSuspicion: the peer closed the connection three times over one record (a broker that restarted), then takes everything. What
// comes in after that must be sent on that connection.
func TestLiveFirstAfterSuspicion(t *testing.T) {
	for _, fresh := range []int{5, 100} {
		for _, live := range []bool{false, true} {
			t.Run(fmt.Sprint(fresh, " live ", live), func(t *testing.T) {
				cfg := liveConfig()
				if !live {
					cfg = testConfig(nil, "cloud")
				}
				decide := func(_ *fakeCloud, link int, _ message.Message, _ Identity) act {
					if link <= 3 {
						return act{cut: true, byPeer: true}
					}
					return act{take: true, delay: time.Millisecond}
				}
				inBubble(t, cfg, decide, func(r *rig, c *fakeCloud) {
					r.send("a", "1")
					time.Sleep(time.Minute)
					if got := len(c.records()); got != 1 {
						t.Fatalf("%d arrivals", got)
					}
					for i := range fresh {
						r.send("a", strconv.Itoa(i+2))
						time.Sleep(20 * time.Millisecond)
					}
					time.Sleep(24 * time.Hour)
					if got := len(c.records()); got != fresh+1 {
						t.Errorf("a day later %d of %d records have arrived, over %d connections", got, fresh+1, c.links)
						c.setOffline(true)
						c.setOffline(false)
						waitEmpty(r, time.Hour)
					}
				})
			})
		}
	}
}

// holeDisk cannot read one place.
type holeDisk struct {
	*badDisk
	mu   sync.Mutex
	mark bool
	off  int64
}

type holeFile struct {
	buffer.File
	d    *holeDisk
	path string
}

func (d *holeDisk) Create(path string) (buffer.File, error) {
	f, err := d.badDisk.Create(path)
	if err != nil {
		return nil, err
	}
	return &holeFile{f, d, path}, nil
}

func (d *holeDisk) Open(path string, ro bool) (buffer.File, error) {
	f, err := d.badDisk.Open(path, ro)
	if err != nil {
		return nil, err
	}
	return &holeFile{f, d, path}, nil
}

func (f *holeFile) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	if f.d.mark && off > 4096 {
		f.d.mark, f.d.off = false, off+60
	}
	f.d.mu.Unlock()
	return f.File.WriteAt(b, off)
}

func (f *holeFile) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	hole := f.d.off
	f.d.mu.Unlock()
	if hole > 0 && off <= hole && off+int64(len(b)) > hole {
		return 0, errDisk
	}
	return f.File.ReadAt(b, off)
}

// TestLiveFirstPastUnreadable: one unreadable place where the fresh records are. Without live_first it is given up after ten minutes and the
// rest arrives; with it the rest must arrive, too.
func TestLiveFirstPastUnreadable(t *testing.T) {
	for _, live := range []bool{false, true} {
		t.Run(fmt.Sprint("live ", live), func(t *testing.T) {
			cfg := liveConfig()
			if !live {
				cfg = testConfig(nil, "cloud")
			}
			dir := t.TempDir()
			inBubbleFS(t, dir, cfg, takeAll, &holeDisk{badDisk: &badDisk{}}, func(r *rig, c *fakeCloud, d *holeDisk) {
				pad := strings.Repeat("x", 200)
				n := 0
				send := func() { n++; r.send("a", fmt.Sprintf("%d %s", n, pad)) }
				for range 30 {
					send()
				}
				time.Sleep(10 * time.Second)
				if len(c.records()) != 30 {
					t.Fatal(len(c.records()))
				}
				d.mu.Lock()
				d.mark = true
				d.mu.Unlock()
				send() // this one cannot be read
				time.Sleep(5 * time.Second)
				for range 40 {
					send()
					time.Sleep(30 * time.Second)
				}
				time.Sleep(time.Hour)
				if got := len(c.records()); got < 55 {
					t.Errorf("%d of %d records have arrived an hour later; one cannot be read", got, n)
				}
				d.mu.Lock()
				d.off = 0
				d.mu.Unlock()
				c.setOffline(true)
				c.setOffline(false)
				waitEmpty(r, time.Hour)
			})
		})
	}
}

// TestLiveFirstOnSlowLine: a line that takes one message a second, of two that come in: what leaves first is still about a second old, as
// docs/configuration.md says.
func TestLiveFirstOnSlowLine(t *testing.T) {
	cloud := newServer(time.Second, time.Millisecond)
	inBubble(t, liveConfig(), cloud.decide, func(r *rig, c *fakeCloud) {
		c.mu.Lock()
		c.window = 2
		c.mu.Unlock()
		const n = 1600
		sent := make([]time.Time, n+1)
		for i := 1; i <= n; i++ {
			sent[i] = time.Now()
			r.send("a", strconv.Itoa(i))
			time.Sleep(500 * time.Millisecond)
		}
		quick, within, all := 0, 0, 0
		cloud.mu.Lock()
		for p, at := range cloud.first {
			k, _ := strconv.Atoi(p)
			if k < 400 || at.After(time.Now()) {
				continue
			}
			all++
			switch age := at.Sub(sent[k]); {
			case age < 4*time.Second: // two of them are on the line
				quick++
			case age < time.Minute:
				within++
			}
		}
		cloud.mu.Unlock()
		t.Logf("%d arrivals: %d fresh, %d more within a minute", all, quick, within)
		if quick < all/2 {
			t.Errorf("of %d arrivals only %d were younger than 4 s", all, quick)
		}
	})
}

// TestLiveFirstOnUnsteadyLine: a line whose round trip varies, or a broker that acknowledges in bunches: the backlog keeps the line busy all the same,
// within a factor of four of what it does without live_first.
func TestLiveFirstOnUnsteadyLine(t *testing.T) {
	for _, kind := range []string{"jitter 30 to 100 ms", "acknowledged every 100 ms"} {
		took := map[bool]time.Duration{}
		for _, live := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, " live ", live), func(t *testing.T) {
				cfg := liveConfig()
				if !live {
					cfg = testConfig(nil, "cloud")
				}
				v := newServer(50*time.Microsecond, 0)
				r0 := rand.New(rand.NewPCG(1, 2))
				decide := func(c *fakeCloud, l int, m message.Message, id Identity) act {
					a := v.decide(c, l, m, id)
					if kind[0] == 'j' {
						a.delay += 30*time.Millisecond + time.Duration(r0.Int64N(int64(70*time.Millisecond)))
						return a
					}
					const every = 100 * time.Millisecond
					at := time.Now().Add(a.delay)
					a.delay += at.Truncate(every).Add(every).Sub(at)
					return a
				}
				inBubble(t, cfg, decide, func(r *rig, c *fakeCloud) {
					c.setOffline(true)
					c.mu.Lock()
					c.window = 8192
					c.mu.Unlock()
					const n = 4000
					for i := range n {
						r.send("a", strconv.Itoa(i+1))
					}
					begin := time.Now()
					c.setOffline(false)
					waitEmpty(r, time.Hour)
					took[live] = time.Since(begin)
				})
			})
		}
		t.Logf("%s: %v, with live_first %v", kind, took[false], took[true])
		if took[true] > 4*took[false] {
			t.Errorf("%s: the backlog takes %v, with live_first %v", kind, took[false], took[true])
		}
	}
}

// TestJumpWhileReading: what the reader in front has read when a jump is made, beyond where that leads, is read again.
func TestJumpWhileReading(t *testing.T) {
	log, err := buffer.Open(t.TempDir(), buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	q, err := log.Queue("q", buffer.QueueOptions{})
	if err != nil {
		t.Fatal(err)
	}
	v := newLive(q, 0)
	defer v.front.tail.Close()
	for range 10 {
		p, err := log.Append(buffer.Record{Queue: q, Data: []byte("x")})
		if err == nil {
			err = message.NewTicket(log, p).Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l := &lease{}
	after, err := v.front.read(t.Context(), 0, l)
	if err != nil || after != 10 {
		t.Fatalf("read up to %d: %v", after, err)
	}
	v.front.jump(8)
	if after, err = v.front.read(t.Context(), after, l); err != nil || after != 10 || len(l.batch.Recs) != 2 || l.batch.Recs[0].Seq != 9 {
		t.Errorf("after a jump to 8 it read %d records up to %d: %v", len(l.batch.Recs), after, err)
	}
}

// inBubbleFS is inBubble on a disk of the test's own.
func inBubbleFS[D buffer.FS](t *testing.T, dir string, cfg *config.Config, decide func(*fakeCloud, int, message.Message, Identity) act, fs D, body func(r *rig, c *fakeCloud, fs D)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cloud := newFakeCloud(decide)
		start := time.Now()
		clock := func() (uint64, time.Duration) { return 1, time.Since(start) }
		r := openWith(t, dir, cfg, map[string]*fakeCloud{"cloud": cloud}, buffer.Options{Clock: clock, FS: fs}).start()
		defer r.close()
		body(r, cloud, fs)
		synctest.Wait()
	})
}
