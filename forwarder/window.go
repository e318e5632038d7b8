package forwarder

import (
	"sync"
	"time"

	"tidegate/buffer"
	"tidegate/forwarder/pipeline"
)

// flight is one message on its way to the cloud: a record, or a report of a gap.
type flight struct {
	lane     pipeline.Lane
	track    int
	seq      buffer.Seq
	epoch    uint64
	cell     *cell
	received time.Time
	sent     time.Time // where its answer is timed, see livePace
	lease    *lease
	rec      *buffer.Rec
	data     []byte // the record, a part of the lease's memory

	// What follows is for a member of a batch.

	from, to int           // its line in the batch
	life     time.Duration // how long it was worth sending when it came in, as far as the cloud is to know; 0: without end
	expiry   uint32        // what is left of that, in seconds
	exactly  bool          // it wants QoS 2
	batched  int           // of the first of several: how much text the batch has that is in flight

	parcel   *parcel    // not nil: a batch, which stands in no window; its members do
	report   *gapReport // not nil: no record at all
	aboard   bool       // in the window
	burying  bool       // on its way to the dead letters
	answered bool
}

// window keeps what is in flight in the order in which it was sent. It belongs to one pass over one link, so an answer
// that arrives after the pass cannot find its way in.
type window struct {
	line  []*flight // answered ones are taken off the front only
	first int
	open  int // unanswered
}

func (w *window) add(f *flight) {
	if w.first > 0 && len(w.line) == cap(w.line) {
		n := copy(w.line, w.line[w.first:])
		clear(w.line[n:])
		w.line, w.first = w.line[:n], 0
	}
	w.line = append(w.line, f)
	w.open++
}

// answer notes that f needs no waiting any more.
func (w *window) answer(f *flight) {
	if f.answered {
		return
	}
	f.answered = true
	w.open--
	for w.first < len(w.line) && w.line[w.first].answered {
		w.line[w.first] = nil
		w.first++
	}
	if w.first == len(w.line) {
		w.line, w.first = w.line[:0], 0
	}
}

// oldest returns the flight sent first of those unanswered, or nil.
func (w *window) oldest() *flight {
	if w.open == 0 {
		return nil
	}
	return w.line[w.first]
}

// answers is where the link's goroutines leave what became of flights, for the drain to pick up. It is bounded by the
// window, because each flight is answered once.
type answers struct {
	wake chan struct{} // capacity 1

	mu   sync.Mutex
	list []answer
}

type answer struct {
	f   *flight
	err error
}

func newAnswers() *answers { return &answers{wake: make(chan struct{}, 1)} }

func (a *answers) put(f *flight, err error) {
	a.mu.Lock()
	a.list = append(a.list, answer{f, err})
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// take exchanges the list for an empty one, whose memory the caller gives. It returns nil when there is nothing.
func (a *answers) take(empty []answer) []answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.list) == 0 {
		return nil
	}
	list := a.list
	a.list = empty[:0]
	return list
}
