package wire

import "sync"

// answer is what a parked request is answered with.
type answer struct {
	x *Exchange
	r Response
}

// answers holds the answers that came from elsewhere until one goroutine has sent them: whoever commits to the disk gives them
// by the hundred and must not wait for the network. There are never more of them than parked requests.
type answers struct {
	wake chan struct{} // capacity 1: there is something to do

	mu     sync.Mutex
	list   []answer
	closed bool
}

func (a *answers) init() { a.wake = make(chan struct{}, 1) }

func (a *answers) signal() {
	select {
	case a.wake <- struct{}{}:
	default: // signalled already
	}
}

// add takes an answer; when Run has ended it is dropped.
func (a *answers) add(one answer) {
	a.mu.Lock()
	first := len(a.list) == 0
	if !a.closed {
		a.list = append(a.list, one)
	}
	a.mu.Unlock()
	if first {
		a.signal()
	}
}

// take returns all that is there; last says that there will be no more. into is used for what comes next.
func (a *answers) take(into []answer) (list []answer, last bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list, a.list = a.list, into[:0]
	return list, a.closed
}

func (a *answers) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.signal()
}

// keepAnswers is the longest list that is kept for reuse after a burst.
const keepAnswers = 4096

// runAnswers sends answers until answers.close.
func (s *Server) runAnswers() {
	var spare []answer
	var b []byte
	for {
		<-s.answers.wake
		list, last := s.answers.take(spare)
		for i := range list {
			x := list[i].x
			b = x.answer(x, list[i].r, b[:0])
			s.send(x.socket, b, x.path)
		}
		clear(list)
		if spare = list; cap(spare) > keepAnswers {
			spare = nil
		}
		if last {
			return
		}
	}
}
