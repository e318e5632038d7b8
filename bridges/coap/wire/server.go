package wire

import (
	"context"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	coap "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// Path is the way between a peer and us.
type Path struct {
	Remote netip.AddrPort
	// Local is the address that a datagram was sent to, and that the answer has to come from; invalid: the socket has only
	// one, or the system may choose.
	Local netip.Addr
	// Interface is the index of the interface that Local belongs to, where Local alone does not say so; else 0.
	Interface int32
}

// Conn is a UDP socket, or what stands for one in a test. Listen makes sockets.
type Conn interface {
	// Read waits for a datagram. It fails with os.ErrDeadlineExceeded once StopReading was called, and with net.ErrClosed once
	// Close was.
	Read(b []byte) (n int, from Path, err error)
	// Write sends a datagram, or fails if that cannot be done at once. It may be called from several goroutines.
	Write(b []byte, to Path) error
	// Addr is where the socket is bound.
	Addr() net.Addr
	StopReading() error
	Close() error
}

// Response is what a request is answered with. Options are in the order of their numbers.
type Response struct {
	Code    codes.Code
	Options coap.Options
	Payload []byte
}

// Handler answers a request, by exactly one of its methods Reply, Reject and Park. It runs on the goroutine that reads the
// socket and must not block. The request and everything in it may only be used until it returns.
type Handler func(*Request)

// Options are what a Server is made of.
type Options struct {
	Handler Handler
	// MaxPeers bounds the peers that are remembered; the one that was heard longest ago makes room. 0 means 20,000.
	MaxPeers int
	// MaxParked bounds the requests that wait for their answers, or for the peer to acknowledge them, all together. One peer
	// may have a quarter of them. Beyond it Request.Busy reports true. 0 means 16,384.
	MaxParked int
	// Grace is how long parked requests may still be answered when Run is to end. 0 means 2 s.
	Grace time.Duration
	// OnTrouble is told when a socket cannot be read, and with nil when it can again. It must not block. nil: nobody is told.
	OnTrouble func(conn Conn, err error)
}

const (
	defaultMaxPeers  = 20_000
	defaultMaxParked = 16_384
	defaultGrace     = 2 * time.Second
	// stashBytes bounds the answers with a payload that are remembered for duplicates.
	stashBytes = 4 << 20
)

// Stats are counters since the start, and sizes.
type Stats struct {
	Duplicates      uint64 // requests that came again
	Retransmissions uint64 // separate responses that were sent again
	GivenUp         uint64 // separate responses that no peer acknowledged
	Malformed       uint64 // datagrams that are no messages
	Unexpected      uint64 // messages that are no requests and answer nothing of ours, pings among them
	SendFailed      uint64 // datagrams that could not be sent
	Forgotten       uint64 // peers that made room or were not heard for long
	Parked          int    // requests that wait
	Peers           int    // peers that are remembered
}

// counters are Stats in the making.
type counters struct {
	duplicates, retransmissions, givenUp, malformed, unexpected, sendFailed atomic.Uint64
}

// Server answers requests on any number of sockets. New makes it, Run runs it once.
type Server struct {
	o       Options
	sockets []*socket
	start   time.Time
	seed    maphash.Seed
	table   table
	stash   *stash
	wheel   wheel
	answers answers
	parked  atomic.Int64
	// stopping says that Run is about to end: separate responses do not wait for their turn any more.
	stopping atomic.Bool
	// settled (capacity 1) is signalled when stopping and the last parked request is done with.
	settled chan struct{}
	counters
}

// socket is a Conn with the number by which endpoints name it.
type socket struct {
	Conn
	number int32
}

// New makes a server on sockets, which it owns from then on. It starts nothing.
func New(o Options, conns ...Conn) *Server {
	if o.MaxPeers == 0 {
		o.MaxPeers = defaultMaxPeers
	}
	if o.MaxParked == 0 {
		o.MaxParked = defaultMaxParked
	}
	if o.Grace == 0 {
		o.Grace = defaultGrace
	}
	s := &Server{
		o: o, start: time.Now(), seed: maphash.MakeSeed(), stash: newStash(stashBytes), settled: make(chan struct{}, 1),
	}
	s.table.init(o.MaxPeers)
	s.wheel.init(s.start)
	s.answers.init()
	for i, c := range conns {
		s.sockets = append(s.sockets, &socket{c, int32(i)})
	}
	return s
}

// Stats returns what was counted.
func (s *Server) Stats() Stats {
	return Stats{
		Duplicates: s.duplicates.Load(), Retransmissions: s.retransmissions.Load(), GivenUp: s.givenUp.Load(),
		Malformed: s.malformed.Load(), Unexpected: s.unexpected.Load(), SendFailed: s.sendFailed.Load(),
		Forgotten: s.table.forgot.Load(), Parked: int(s.parked.Load()), Peers: int(s.table.count.Load()),
	}
}

// Close closes the sockets of a server that is not run. Closing them again is no error.
func (s *Server) Close() error {
	var errs []error
	for _, c := range s.sockets {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends. Then it reads no more, gives parked requests until the end of the grace to be answered, closes
// the sockets and returns when all its goroutines have ended. What is answered later is dropped.
func (s *Server) Run(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var readers, helpers sync.WaitGroup
	helpers.Go(func() { s.wheel.run(life, s.due, func() { s.table.sweep(s.millis(time.Now())) }) }) // ends with life
	helpers.Go(s.runAnswers)                                                                        // ends when the answers are closed
	for _, c := range s.sockets {
		readers.Go(func() { s.read(ctx, c) }) // ends when the socket is not to be read any more
	}
	<-ctx.Done()
	for _, c := range s.sockets {
		_ = c.StopReading()
	}
	readers.Wait()
	s.drain()
	s.answers.close()
	end()
	helpers.Wait()
	return s.Close()
}

// drain waits until no request is parked, at most for the grace.
func (s *Server) drain() {
	s.stopping.Store(true)
	s.flush()
	grace := time.NewTimer(s.o.Grace)
	defer grace.Stop()
	for s.parked.Load() > 0 {
		select {
		case <-s.settled:
		case <-grace.C:
			return
		}
	}
}

// Pauses after a socket could not be read.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
)

// read takes in what comes from one socket.
func (s *Server) read(ctx context.Context, c *socket) {
	r := &Request{Options: make(coap.Options, 0, 16)}
	b := make([]byte, maxDatagram)
	pause := time.Duration(0)
	for {
		n, path, err := c.Read(b)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			if pause == 0 && s.o.OnTrouble != nil {
				s.o.OnTrouble(c.Conn, err)
			}
			pause = min(max(2*pause, firstPause), lastPause)
			if !sleep(ctx, pause) {
				return
			}
			continue
		}
		if pause > 0 {
			pause = 0
			if s.o.OnTrouble != nil {
				s.o.OnTrouble(c.Conn, nil)
			}
		}
		s.take(r, b[:n], c, path, time.Now())
	}
}

// sleep waits; false means that ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// send sends a datagram, unless it is empty. What the system does not take is lost like any datagram.
func (s *Server) send(c *socket, b []byte, to Path) {
	if len(b) == 0 {
		return
	}
	if err := c.Write(b, to); err != nil {
		s.sendFailed.Add(1)
	}
}

// millis is the time by which slots and peers are aged. It begins again after 49 days, which nothing here lives for.
func (s *Server) millis(t time.Time) uint32 { return uint32(t.Sub(s.start).Milliseconds()) }

// randomID is where the message IDs for a peer begin, so that they are not those of the time before it was forgotten.
func randomID() uint16 { return uint16(rand.Uint32()) } //nolint:gosec // a message ID is no secret
