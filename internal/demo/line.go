package demo

import (
	"io"
	"net"
	"sync"
)

// line is the line between the gateway and the cloud: a relay of TCP connections that can be cut.
type line struct {
	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu    sync.Mutex
	isCut bool
	conns map[net.Conn]struct{}
}

func newLine(target string) (*line, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ln := &line{target: target, listener: l, conns: map[net.Conn]struct{}{}}
	ln.running.Go(ln.accept) // ends with the listener
	return ln, nil
}

func (l *line) addr() string { return l.listener.Addr().String() }

func (l *line) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.running.Go(func() { l.relay(near) }) // ends with either side, or cut
	}
}

func (l *line) relay(near net.Conn) {
	defer func() { _ = near.Close() }()
	far, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer func() { _ = far.Close() }()
	defer l.remove(near, far)
	if !l.add(near, far) {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { // ends when the far side does
		_, _ = io.Copy(near, far)
		_ = near.Close()
	})
	_, _ = io.Copy(far, near)
	_ = far.Close()
	back.Wait()
}

// add notes an open connection; false while the line is cut.
func (l *line) add(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		l.conns[c] = struct{}{}
	}
	return !l.isCut
}

func (l *line) remove(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		delete(l.conns, c)
	}
}

// cut ends every connection and lets no new one through.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = true
	for c := range l.conns {
		_ = c.Close()
	}
}

// mend lets connections through again.
func (l *line) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = false
}

// close ends the line and waits for everything it started.
func (l *line) close() {
	_ = l.listener.Close()
	l.cut()
	l.running.Wait()
}
