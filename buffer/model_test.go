package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// fact is what the model knows of one record.
type fact struct {
	id      int
	queue   string
	seq     Seq
	epoch   uint64
	group   int
	durable bool // Notify said so
	gone    bool // acknowledged or dropped: may be there or not after a crash
	acked   bool // acknowledged: nobody is told
	failed  bool // Notify said so: may be there or not
	expires bool
}

// nameOf is what must never name two records.
type nameOf struct {
	queue string
	epoch uint64
	seq   Seq
}

// model drives a log with random operations and compares what it tells with a simple memory of them.
type model struct {
	// hurried says that the log overwrote or removed a segment before its cursor was synced, which it does only on a full disk.
	hurried atomic.Bool

	t  *testing.T
	r  *rand.Rand
	fs *memFS
	o  Options
	l  *Log

	mu      sync.Mutex // guards facts, which callbacks change
	facts   map[int]*fact
	names   map[nameOf]int
	qs      map[string]*Queue
	bounds  [2]*Bound
	small   int // how often the bounds are halved
	next    int
	last    Pos
	lost    uint64 // what was reported as lost
	expired int    // records
	told    uint64 // evicted records, since open
	dying   bool   // the power is off: what the old log still finds does not count
	// unsure queues were not read since a crash: what is gone may be back, what was not durable may be there or not.
	unsure map[string]bool

	// kept is what was noted of the losses; marks says how far, and blind which queues had more of them than the log keeps.
	kept  map[nameOf]bool
	marks map[string]uint64
	blind map[string]bool
	// accounted counts losses that were looked for after a crash and found.
	accounted int

	// idle lets what is under way go on for a moment.
	idle func()
	// wait waits until a position is on disk, or the power goes. skip says which queues an open leaves undeclared.
	wait func(p Pos)
	skip func(name string) bool
	// lifetimes says that records may expire.
	lifetimes bool

	// shape says how records are kept: 1 compresses them, 2 encrypts them, with another key after each start; both may be set.
	shape uint64
	keys  map[string][]Key

	traceMu sync.Mutex
	trace   []string
}

var modelQueues = []string{"uplink/a/normal", "uplink/a/urgent", "uplink/b/normal", "session/x"}

func newModel(t *testing.T, seed uint64, o Options) *model {
	m := &model{t: t, r: rand.New(rand.NewPCG(seed, 7)), fs: newMemFS(), facts: map[int]*fact{}, names: map[nameOf]int{}}
	m.o, m.shape, m.keys = o, seed%4, map[string][]Key{}
	m.unsure = map[string]bool{}
	m.kept, m.marks, m.blind = map[nameOf]bool{}, map[string]uint64{}, map[string]bool{}
	m.idle = func() { time.Sleep(time.Millisecond) }
	m.wait = func(p Pos) { _ = m.l.Wait(t.Context(), p) }
	m.skip = func(string) bool { return false }
	m.open()
	return m
}

// rotate gives the queues of an uplink another key for what comes now, and keeps a few old ones.
func (m *model) rotate() {
	for _, uplink := range []string{"uplink/a/", "uplink/b/"} {
		k := testKey(m.t, byte(m.r.IntN(256)))
		m.keys[uplink] = append([]Key{k}, m.keys[uplink]...)
	}
}

func (m *model) keysOf(queue string) ([]Key, bool) {
	for uplink, keys := range m.keys {
		if strings.HasPrefix(queue, uplink) {
			return keys, true
		}
	}
	return nil, true
}

// shaped sets how records are kept from the next open on.
func (m *model) shaped(o Options) Options {
	if m.shape&1 != 0 {
		o.Compress, o.eager = true, true
	}
	if m.shape&2 != 0 {
		m.rotate()
		o.Keys = m.keysOf
	}
	return o
}

func (m *model) log(format string, args ...any) {
	m.traceMu.Lock()
	defer m.traceMu.Unlock()
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}

func (m *model) lastTrace() string {
	m.traceMu.Lock()
	defer m.traceMu.Unlock()
	return "last operations:\n" + strings.Join(m.trace[max(0, len(m.trace)-300):], "\n")
}

// traceWriter puts what the log logs between the operations.
type traceWriter struct{ m *model }

func (w traceWriter) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("segment used again at once")) || bytes.Contains(b, []byte("segment removed at once")) {
		w.m.hurried.Store(true)
	}
	w.m.log("    %s", strings.TrimSpace(string(b)))
	return len(b), nil
}

func (m *model) fail(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), m.lastTrace())
}

func (m *model) open() {
	m.t.Helper()
	o := m.shaped(m.o)
	o.FS = m.fs
	o.Logger = slog.New(slog.NewTextHandler(traceWriter{m}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.OnDamage = func(d Damage) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.lost += d.Records
	}
	l, err := Open("/log", o)
	if err != nil {
		m.fail("open: %v", err)
	}
	m.opened(l)
}

// opened declares the queues of a log that was just opened.
func (m *model) opened(l *Log) {
	m.t.Helper()
	m.l, m.last = l, 0
	m.mu.Lock()
	m.told = 0
	m.mu.Unlock()
	m.qs = map[string]*Queue{}
	m.bounds = [2]*Bound{l.NewBound(40<<10>>m.small, DropOldest), l.NewBound(30<<10>>m.small, Refuse)}
	m.log("open epoch %d", l.Epoch())
	for _, name := range modelQueues {
		if !m.skip(name) {
			m.declare(name)
		}
	}
}

func (m *model) declare(name string) {
	m.t.Helper()
	qo := QueueOptions{OnDrop: m.dropped, KeepLosses: true}
	switch {
	case strings.Contains(name, "/a/"):
		qo.Bound = m.bounds[0]
	case strings.Contains(name, "/b/"):
		qo.Bound = m.bounds[1]
	}
	q, err := m.l.Queue(name, qo)
	if err != nil {
		m.fail("queue: %v", err)
	}
	m.qs[name] = q
}

// declared lists the queues that are declared, in a fixed order.
func (m *model) declared() []string {
	return slices.DeleteFunc(slices.Clone(modelQueues), func(name string) bool { return m.qs[name] == nil })
}

// anyQueue gives one of them.
func (m *model) anyQueue() string {
	names := m.declared()
	return names[m.r.IntN(len(names))]
}

func (m *model) dropped(q *Queue, why Reason, recs []Rec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dying || m.fs.isDead() {
		return
	}
	if why == Evicted {
		m.told += uint64(len(recs))
	}
	for _, r := range recs {
		if why == Expired {
			m.expired++
		}
		f := m.factOf(q.Name(), r)
		if f == nil {
			if why == Evicted || why == Purged {
				m.t.Errorf("%s: %v record %d that was never appended", q.Name(), why, r.Seq)
			}
			continue
		}
		if f.gone && why == Damaged && m.hurried.Load() {
			// Not lost: on a full disk a segment that nobody needs was overwritten or removed before the disk had the cursor that says so,
			// and the process ended in between.
			continue
		}
		if why == Expired && !f.expires {
			m.t.Errorf("%s: record %d expired, but was to stay\n%s", q.Name(), r.Seq, m.lastTrace())
		}
		if f.durable && (why == Damaged || why == Failed) {
			m.t.Errorf("%s: record %d (id %d, epoch %d) is %v, but was durable\n%s", q.Name(), r.Seq, f.id, f.epoch, why, m.lastTrace())
		}
		if f.gone && why != Failed && !m.unsure[f.queue] {
			m.t.Errorf("%s: record %d is %v, but was gone already", q.Name(), r.Seq, why)
		}
		f.gone = true
	}
}

// note checks that what left a queue and was not acknowledged is among the losses, and keeps those at times. m.mu is held.
func (m *model) note(found map[int]bool) {
	now := map[nameOf]bool{}
	for name, q := range m.qs {
		losses, mark := q.Losses()
		keep := m.marks[name] > mark || m.r.IntN(2) == 0 // else the next one has to find them again
		m.l.mu.Lock()
		m.blind[name] = m.blind[name] || q.losses.noted > m.marks[name]
		m.l.mu.Unlock()
		for _, x := range losses {
			if x.Why == Damaged {
				x.Epoch = 0 // it may be another one
			}
			for seq := x.First; seq <= x.Last; seq++ {
				n := nameOf{name, x.Epoch, seq}
				if now[n] = true; keep {
					m.kept[n] = true
				}
			}
		}
		if keep {
			q.Noted(mark)
			m.marks[name] = max(m.marks[name], mark)
		}
	}
	for id, f := range m.facts {
		if m.qs[f.queue] == nil || !f.durable || f.acked || found[id] || m.blind[f.queue] {
			continue
		}
		named, unnamed := nameOf{f.queue, f.epoch, f.seq}, nameOf{f.queue, 0, f.seq}
		if !m.kept[named] && !m.kept[unnamed] && !now[named] && !now[unnamed] {
			m.fail("record %d of %s (sequence %d) left, and is not among the losses", id, f.queue, f.seq)
		}
		m.accounted++
	}
}

// factOf finds the record by its content, or by its sequence where that is not known. A record whose commit failed leaves its
// sequence to a later one, so of several the one that is on disk and not gone is meant, then one that is not gone.
func (m *model) factOf(queue string, r Rec) *fact {
	if r.Data != nil {
		return m.facts[idOf(r.Data)]
	}
	var best *fact
	rank := func(f *fact) int {
		switch {
		case f == nil:
			return 0
		case f.gone:
			return 1
		case !f.durable:
			return 2
		}
		return 3
	}
	for _, f := range m.facts {
		if f.queue == queue && f.seq == r.Seq && !f.failed && rank(f) > rank(best) {
			best = f
		}
	}
	return best
}

// payload makes content that tells its number and cannot be mistaken.
func payload(id, size int) []byte {
	b := fmt.Appendf(nil, "<%d>", id)
	for len(b) < size {
		b = append(b, byte(id+len(b)))
	}
	return b
}

func idOf(b []byte) int {
	var id int
	if _, err := fmt.Sscanf(string(b[:min(len(b), 12)]), "<%d>", &id); err != nil {
		return -1
	}
	return id
}

func (m *model) append() {
	n := 1 + m.r.IntN(4)
	var recs []Record
	var facts []*fact
	m.mu.Lock()
	group := m.next
	for range n {
		name := m.anyQueue()
		m.next++
		size := m.r.IntN(60)
		if m.r.IntN(12) == 0 {
			size = m.r.IntN(5000)
		}
		var life time.Duration
		if m.lifetimes && m.r.IntN(8) == 0 {
			life = time.Duration(1+m.r.IntN(3000)) * time.Millisecond
		}
		recs = append(recs, m.alike(recs, Record{Queue: m.qs[name], Data: payload(m.next, size), Lifetime: life}))
		facts = append(facts, &fact{id: m.next, queue: name, group: group, expires: life > 0})
	}
	epoch := m.l.Epoch()
	// The facts must be known before the callbacks can come.
	for _, f := range facts {
		m.facts[f.id] = f
	}
	m.mu.Unlock()
	p, err := m.l.Append(recs...)
	m.mu.Lock()
	if err != nil {
		for _, f := range facts {
			delete(m.facts, f.id)
		}
		m.mu.Unlock()
		m.log("append: %v", err)
		return
	}
	for i, f := range facts {
		f.seq, f.epoch = recs[i].Seq, epoch
	}
	m.mu.Unlock()
	m.last = p
	m.log("append %d records from id %d: position %d", n, facts[0].id, p)
	m.l.Notify(p, func(err error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, f := range facts {
			f.durable = f.durable || err == nil
			f.failed = f.failed || err != nil
			if err == nil {
				m.name(nameOf{f.queue, f.epoch, f.seq}, f.id)
			}
		}
	})
	if m.r.IntN(3) > 0 {
		m.wait(p)
	}
}

// alike makes r at times one that ends like the last of recs.
func (m *model) alike(recs []Record, r Record) Record {
	if len(recs) == 0 || recs[len(recs)-1].SameEnd > 0 || m.r.IntN(2) == 0 {
		return r
	}
	before := recs[len(recs)-1].Data
	r.Data = payload(m.next, len(before)-1) // bytes hang on the sum of the number and the place, see payload
	for r.SameEnd < len(r.Data)-12 && r.Data[len(r.Data)-1-r.SameEnd] == before[len(before)-1-r.SameEnd] {
		r.SameEnd++
	}
	r.Data = r.Data[:len(r.Data)-r.SameEnd]
	return r
}

// read checks a part of a queue and acknowledges some of it.
func (m *model) read() {
	name := m.anyQueue()
	q := m.qs[name]
	after := q.Floor()
	var got []Seq
	ids := map[Seq]int{}
	want := m.r.IntN(50)
	err := q.Scan(after, func(r Rec) bool {
		m.seen(name, r)
		got, ids[r.Seq] = append(got, r.Seq), idOf(r.Data)
		return len(got) < want
	})
	if err != nil {
		m.log("read %s: %v", name, err)
		return
	}
	m.r.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
	if m.r.IntN(2) == 0 {
		slices.Sort(got)
	}
	got = got[:m.r.IntN(len(got)+1)]
	acked := q.Ack(got...)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, seq := range acked {
		if f := m.facts[ids[seq]]; f != nil {
			f.gone, f.acked = true, true
		}
	}
	m.log("read %s: %d acknowledged, floor %d", name, len(acked), q.Floor())
}

// seen checks one record that was read.
func (m *model) seen(queue string, r Rec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := idOf(r.Data)
	f := m.facts[id]
	if f == nil || f.queue != queue || !bytes.Equal(r.Data, payload(id, len(r.Data))) {
		m.fail("%s: record %d was never appended: %.20q", queue, r.Seq, r.Data)
	}
	if f.seq != r.Seq || f.epoch != r.Epoch {
		m.fail("%s: record %d of epoch %d is read as %d of epoch %d", queue, f.seq, f.epoch, r.Seq, r.Epoch)
	}
	m.name(nameOf{queue, r.Epoch, r.Seq}, id)
}

// name notes what a name stands for, which must be one record for ever. m.mu is held.
func (m *model) name(n nameOf, id int) {
	if other, ok := m.names[n]; ok && other != id {
		m.t.Errorf("%v names records %d and %d\n%s", n, other, id, m.lastTrace())
	}
	m.names[n] = id
}

// awaitEvictions waits until the bounds hold and everything that was evicted was told.
func (m *model) awaitEvictions() {
	m.t.Helper()
	for deadline := time.Now().Add(time.Minute); !m.fs.isDead(); m.idle() {
		over := false
		m.l.mu.Lock()
		for _, b := range m.l.bounds {
			over = over || b.policy == DropOldest && b.used+b.pending > b.max-b.reserve()
		}
		evicted, failed := m.l.counts.evicted, m.l.failed != nil
		m.l.mu.Unlock()
		m.mu.Lock()
		told := m.told
		m.mu.Unlock()
		if failed || !over && told >= evicted {
			return
		}
		if time.Now().After(deadline) {
			m.fail("%d records were evicted, %d were told", evicted, told)
		}
	}
}

// readAll reads every queue and tells which records are there, and whether none was evicted meanwhile: what the log moves in the background
// may fill a bound.
func (m *model) readAll() (found map[int]bool, quiet bool) {
	m.t.Helper()
	m.awaitEvictions()
	m.mu.Lock()
	told := m.told
	m.mu.Unlock()
	found = map[int]bool{}
	counts := map[string]uint64{}
	for _, name := range m.declared() {
		last, lastID := Seq(0), 0
		var n uint64
		err := m.qs[name].Scan(0, func(r Rec) bool {
			m.seen(name, r)
			if r.Seq <= last {
				m.fail("%s: record %d behind %d", name, r.Seq, last)
			}
			if id := idOf(r.Data); id <= lastID {
				m.fail("%s: record %d holds what was appended before that of record %d", name, r.Seq, last)
			}
			last, lastID = r.Seq, idOf(r.Data)
			found[lastID] = true
			n++
			return true
		})
		if err != nil && (!errors.Is(err, errDead) || !m.fs.isDead()) {
			m.fail("%s: %v", name, err)
		}
		counts[name] = n
	}
	stats := map[string]uint64{}
	for name := range counts {
		stats[name] = m.qs[name].Stats().Records
	}
	m.awaitEvictions()
	m.mu.Lock()
	quiet = m.told == told || m.fs.isDead()
	m.mu.Unlock()
	for name, n := range counts {
		if quiet && !m.fs.isDead() && stats[name] < n {
			m.fail("%s: stats count %d records, %d were read", name, stats[name], n)
		}
	}
	return found, quiet
}

// check reads everything and compares. After a crash, gone records may be back; otherwise not.
func (m *model) check(crashed bool) {
	m.t.Helper()
	// What is on the way, to the disk or out of the log, would be half seen.
	m.wait(m.last)
	if m.fs.isDead() {
		return
	}
	found, quiet := m.readAll()
	for !quiet {
		found, quiet = m.readAll()
	}
	if m.fs.isDead() {
		return
	}
	if err := sums(m.l); err != nil {
		m.fail("%v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(found)
	groups := map[int][2]int{} // present, absent
	unread := map[int]bool{}   // groups of which a part is in a queue that is not declared
	for id, f := range m.facts {
		if m.qs[f.queue] == nil {
			unread[f.group] = true
			continue
		}
		switch {
		case f.gone && found[id] && !crashed && !m.unsure[f.queue]:
			m.fail("record %d of %s (sequence %d) is there although it is gone", id, f.queue, f.seq)
		case !f.gone && f.durable && !found[id]:
			m.fail("record %d of %s (sequence %d) is lost", id, f.queue, f.seq)
		}
		if !f.gone {
			g := groups[f.group]
			if found[id] {
				g[0]++
			} else {
				g[1]++
			}
			groups[f.group] = g
		}
	}
	for group, g := range groups {
		if crashed && g[0] > 0 && g[1] > 0 && !unread[group] {
			m.fail("append %d is half there: %d and %d", group, g[0], g[1])
		}
	}
	for id, f := range m.facts {
		if m.qs[f.queue] == nil || !crashed && !m.unsure[f.queue] {
			continue
		}
		f.failed = false
		if !found[id] {
			if !f.gone { // on a full disk what is gone may come back with a later cut
				delete(m.facts, id)
			}
			continue
		}
		f.durable, f.gone = true, false
	}
	for name := range m.qs {
		delete(m.unsure, name)
	}
}

// sums compares the counters of a log with what they count.
func sums(l *Log) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	live, bytes := map[*segment]uint64{}, map[*segment]int64{}
	used := map[*Bound]int64{}
	for _, q := range l.order {
		var records uint64
		var size int64
		at := Seq(0)
		for _, e := range q.extents {
			if e.first <= at || e.last < e.first || e.live == 0 || e.seg.gone || !slices.Contains(e.seg.extents, e) {
				return fmt.Errorf("%s: extent %d..%d behind %d, live %d, gone %v", q.name, e.first, e.last, at, e.live, e.seg.gone)
			}
			at = e.last
			if want := uint64(e.last-e.first) + 1 - q.done.count(e.first, e.last); e.live != want {
				return fmt.Errorf("%s: extent %d..%d has %d live records, want %d", q.name, e.first, e.last, e.live, want)
			}
			records += e.live
			size += e.liveBytes()
			live[e.seg] += e.live
			bytes[e.seg] += e.liveBytes()
		}
		if want := uint64(q.stored) - q.done.count(1, q.stored); records != want || q.records != want || q.bytes != size {
			return fmt.Errorf("%s: %d records in extents, %d counted, want %d; %d bytes, want %d", q.name, records, q.records, want, q.bytes, size)
		}
		used[q.bound] += q.bytes
	}
	for _, s := range l.segments {
		if s.live != live[s] || s.bytes != bytes[s] {
			return fmt.Errorf("%s: %d live records with %d bytes, want %d with %d", s.name, s.live, s.bytes, live[s], bytes[s])
		}
		if s.live == 0 && s != l.active && !s.dying && l.active != nil {
			return fmt.Errorf("%s is empty and not about to be freed", s.name)
		}
	}
	for _, b := range l.bounds {
		if b.used != used[b] {
			return fmt.Errorf("a bound counts %d bytes, want %d", b.used, used[b])
		}
	}
	if l.unbound != used[nil] {
		return fmt.Errorf("%d bytes without bound, want %d", l.unbound, used[nil])
	}
	return nil
}

func (m *model) crash(cut func() bool) {
	m.log("crash")
	old := m.l
	m.mu.Lock()
	m.dying = true
	m.mu.Unlock()
	m.fs = m.fs.powerCut(cut)
	_ = old.Close() // only ends the goroutines; the file system is dead
	m.mu.Lock()
	m.afterCrash()
	m.mu.Unlock()
	m.open()
	m.check(true)
}

// afterCrash notes that the old log and all its callbacks are gone. m.mu is held.
func (m *model) afterCrash() {
	m.dying = false
	for _, f := range m.facts {
		f.failed = false
	}
	for _, name := range modelQueues {
		m.unsure[name] = true
	}
}

func (m *model) reopen() {
	m.log("reopen")
	if err := m.l.Close(); err != nil {
		m.fail("close: %v", err)
	}
	m.open()
	m.check(false)
}

// purge empties a queue.
func (m *model) purge() {
	name := m.anyQueue()
	m.log("purge %s: %d", name, m.qs[name].Purge())
}

func (m *model) run(steps int, crash bool) {
	for range steps {
		switch n := m.r.IntN(200); {
		case n < 130:
			m.append()
		case n < 180:
			m.read()
		case n < 183:
			m.purge()
		case n < 190:
			m.check(false)
		case n < 193:
			m.reopen()
		case n < 196 && crash:
			m.crash(cutRandom(m.r))
		case n < 198 && crash:
			m.crash(func() bool { return true })
		}
	}
	m.reopen()
	if err := m.l.Close(); err != nil {
		m.fail("close: %v", err)
	}
	if m.lost > 0 {
		m.fail("%d records were reported as damaged", m.lost)
	}
}

func TestModel(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newModel(t, seed, Options{SegmentBytes: 16 << 10}).run(600, false)
		})
	}
}

// TestModelWithPowerCuts loses the power in between: unsynced sectors are dropped or kept at random.
func TestModelWithPowerCuts(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newModel(t, 1000+seed, Options{SegmentBytes: 16 << 10}).run(400, true)
		})
	}
}

// TestModelWithKills ends the process in between, with commits that are reported before their fsync: the system still has what was written.
func TestModelWithKills(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			m := newModel(t, 3000+seed, Options{SegmentBytes: 16 << 10, Sync: 20 * time.Millisecond})
			for range 10 {
				for range 30 {
					if m.r.IntN(4) == 0 {
						m.read()
					} else {
						m.append()
					}
				}
				m.crash(func() bool { return true })
			}
			if err := m.l.Close(); err != nil {
				m.fail("close: %v", err)
			}
		})
	}
}

// TestModelWithFaults also lets writes, syncs and the rest fail now and then.
func TestModelWithFaults(t *testing.T) {
	faults := map[string][]error{
		"write": {syscall.EIO, errShort, syscall.ENOSPC}, "sync": {syscall.EIO}, "create": {syscall.ENOSPC, syscall.EMFILE},
		"rename": {syscall.EIO}, "remove": {syscall.EIO}, "syncdir": {syscall.EIO}, "truncate": {syscall.EIO},
	}
	ops := slices.Sorted(maps.Keys(faults))
	for seed := range uint64(24) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			m := newModel(t, 2000+seed, Options{SegmentBytes: 16 << 10})
			for range 40 {
				op := ops[m.r.IntN(len(ops))]
				err := faults[op][m.r.IntN(len(faults[op]))]
				left := m.r.IntN(3) + 1
				skip := m.r.IntN(20)
				m.log("fault %s: %v, %d times after %d", op, err, left, skip)
				m.fs.setFault(func(o, _ string) error {
					if o != op || left == 0 {
						return nil
					}
					if skip > 0 {
						skip--
						return nil
					}
					left--
					return err
				})
				for range 10 {
					if m.r.IntN(4) == 0 {
						m.read()
					} else {
						m.append()
					}
				}
				m.fs.setFault(nil)
				switch m.r.IntN(3) {
				case 0:
					m.crash(cutRandom(m.r))
				case 1:
					if err := m.l.Close(); err != nil && !errors.Is(err, errDead) {
						m.log("close: %v", err)
					}
					m.open()
					m.check(true)
				}
			}
			if err := m.l.Close(); err != nil {
				m.log("close: %v", err)
			}
		})
	}
}
