package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/gopcua/opcua/ua"
)

// Options say which server to talk to, and about what.
type Options struct {
	// Name tells links apart in logs, files and at the server.
	Name string
	// Endpoint is opc.tcp://HOST:PORT/PATH.
	Endpoint string
	// Security is the least that is accepted.
	Security Security
	// User and Password log in; no user: anonymous.
	User, Password string
	// PKI holds the certificates. nil: only without security and without a password.
	PKI *PKI
	// URI is the application URI of this client where there is no PKI to say it.
	URI string
	// Items are the nodes whose values are asked for.
	Items []Item
	// Publishing is how often the server shall send what has gathered, Sampling how often it shall look at a node (0: as
	// fast as it can), and Budget for how long it shall keep values while we are away.
	Publishing, Sampling, Budget time.Duration
	// TokenLifetime is how long the keys of a channel shall be used before they are renewed. 0: an hour.
	TokenLifetime time.Duration
	// State is a file in which the session outlives this process, so that the next one gets what the server keeps
	// meanwhile; it holds the session's token. Empty: a session ends with the link.
	State string
	Sink  Sink
	Log   *slog.Logger
	// dial connects; tests put their own servers behind it. nil: by TCP.
	dial dialer
	// OnChange is called when the server was reached or lost, with why; from one goroutine. nil: nobody cares.
	OnChange func(up bool, err error)
}

// Item is one node to watch.
type Item struct {
	Ref Ref
	// Describe: the sink needs the node's name and path before its first value.
	Describe bool
	// Deadband is how far a value has to move to be sent; Percent: in percent of the node's range.
	Deadband float64
	Percent  bool
}

// Value is a value of one item.
type Value struct {
	Item int // index into Options.Items
	DataValue
}

// Sink takes what comes in. Its methods are called from one goroutine each.
type Sink interface {
	// Resolve is told what the server calls an item, before its first value and whenever that may have changed. An error
	// keeps the item out and is tried again later, as any failed item is.
	Resolve(item int, d Description) error
	// Take takes values over, in order, and returns when it has them; it may wait. done is called once, from anywhere, when
	// all of them are on disk, or with an error when they never will be: then the server is asked for them again. When ctx
	// ends before all are taken over, Take returns and done is not called.
	Take(ctx context.Context, values []Value, done func(error))
}

// window is how many notifications may be asked for or underway to the disk. Beyond that the server is asked for nothing,
// and its queues hold what comes; so memory stays bounded while the gateway's buffer is full.
const window = 16

// Link keeps one session with one server.
type Link struct {
	o    Options
	log  *slog.Logger
	pace pace

	items []*item
	queue chan delivery // has room for a whole window: who asks for no more never waits to put it in
	stats counters

	// What follows belongs to the goroutine of Run.
	session  *credentials
	sub      *subscription
	limits   limits // found out the hard way on earlier connections; of items alone
	handles  uint32 // given to items so far
	byHandle map[uint32]*item
	orphans  []uint32 // monitored items that are to be deleted
	retryAt  time.Time
	pending  bool // an item is to be tried again at retryAt
	setbacks int
	stuck    time.Time // since the first of the setbacks
	outdated string    // why sub is to be made anew; empty: it is not
	saved    []byte

	ledger ledger

	// mu guards active, which is the session while it can be used.
	mu     sync.Mutex
	active *Session
}

// New checks o. It connects to nothing.
func New(o Options) (*Link, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.PKI == nil && (o.Security.Mode != ua.MessageSecurityModeNone || o.User != "") {
		return nil, fmt.Errorf("opcua: %s: security %s with user %q needs a folder of certificates", o.Name, o.Security, o.User)
	}
	if o.TokenLifetime <= 0 {
		o.TokenLifetime = tokenLifetime
	}
	if o.dial == nil {
		o.dial = dialTCP
	}
	l := &Link{o: o, log: o.Log, pace: defaultPace(), queue: make(chan delivery, window), byHandle: map[uint32]*item{}}
	for i := range o.Items {
		l.items = append(l.items, &item{Item: o.Items[i], index: i})
	}
	l.ledger.changed = make(chan struct{}, 1)
	return l, nil
}

// pace says how long to wait before the next attempt.
type pace struct {
	base, limit time.Duration // full jitter between 0 and base doubled with every failure, at most limit
	lasting     time.Duration // where the next attempt will fail for the same reason: between this and twice this; a quarter for trust
	stable      time.Duration // a connection that lived that long was a success
}

func defaultPace() pace {
	return pace{base: 200 * time.Millisecond, limit: 3 * time.Second, lasting: 5 * time.Second, stable: 10 * time.Second}
}

func (p pace) wait(failures int, err error) time.Duration {
	var untrusted *UntrustedError
	switch {
	case errors.As(err, &untrusted): // somebody may be about to accept it, and asking costs the server little
		return p.lasting/4 + rand.N(p.lasting/4) //nolint:gosec // jitter is no secret
	case lasting(err):
		return p.lasting + rand.N(p.lasting) //nolint:gosec // jitter is no secret
	}
	most := p.limit
	if failures < 20 {
		most = min(p.limit, p.base<<failures)
	}
	return rand.N(most) //nolint:gosec // jitter is no secret
}

// lasting reports whether only a person can mend what failed: then a quick next attempt is noise, or locks an account.
func lasting(err error) bool {
	var code StatusCode
	if !errors.As(err, &code) {
		return false
	}
	switch ua.StatusCode(code) {
	case ua.StatusBadUserAccessDenied, ua.StatusBadIdentityTokenRejected, ua.StatusBadIdentityTokenInvalid,
		ua.StatusBadSecurityChecksFailed, ua.StatusBadCertificateUntrusted, ua.StatusBadSecurityPolicyRejected,
		ua.StatusBadSecurityModeRejected:
		return true
	default:
		return false
	}
}

// mostSetbacks is how often the old session is tried, and sessionPatience for how long, before it is given up for a new
// one that takes the subscription over. The subscription is given up when twice that was in vain: a server may choke on it
// each time, but a line that breaks again and again looks the same, and behind it the server still has values.
const (
	mostSetbacks    = 5
	sessionPatience = time.Minute
)

// errUsed is wrapped by the error of a connection that had come to be of use.
var errUsed = errors.New("connection lost")

// Run keeps the session until ctx ends, and returns when every goroutine it started has ended. It is called once.
func (l *Link) Run(ctx context.Context) error {
	l.restore()
	delivering, stopDelivering := context.WithCancel(context.WithoutCancel(ctx))
	var parts sync.WaitGroup
	parts.Go(func() { l.deliver(delivering) }) // ends with delivering
	defer func() {
		stopDelivering()
		parts.Wait()
	}()
	failures, said := 0, map[string]bool{}
	for ctx.Err() == nil {
		started := time.Now()
		err := l.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errUsed) {
			clear(said)
			if time.Since(started) >= l.pace.stable {
				failures = 0
			}
			l.log.Warn("lost the OPC UA server", "endpoint", l.o.Endpoint, "error", err, "after", time.Since(started).Round(time.Millisecond))
		} else if text := err.Error(); !said[text] && len(said) < 8 { // the same again says nothing new
			said[text] = true
			l.log.Warn("cannot reach the OPC UA server", "endpoint", l.o.Endpoint, "error", err)
		}
		l.change(false, err)
		if !sleep(ctx, l.pace.wait(failures, err)) {
			return nil
		}
		failures++
	}
	return nil
}

func (l *Link) change(up bool, err error) {
	if l.o.OnChange != nil {
		l.o.OnChange(up, err)
	}
}

// once makes one connection and lives with it until it ends.
func (l *Link) once(ctx context.Context) error {
	attempt, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("%w within %s", errNoAnswer, connectTimeout))
	c, e, err := l.connect(attempt)
	cancel()
	if err != nil {
		return err
	}
	defer c.close()
	// From here on each request has a time of its own: a hundred thousand nodes take many of them.
	defer l.use(nil)
	s, rung, err := l.establish(ctx, c, e)
	if err != nil {
		l.setback()
		return fmt.Errorf("connect to %s: %w", l.o.Endpoint, c.reason(err))
	}
	l.setbacks = 0
	l.stats.connected(rung)
	l.log.Info("connected to the OPC UA server", "endpoint", l.o.Endpoint, "security", Security{c.policy, c.mode}, "session", rung)
	l.change(true, nil)
	return l.serve(ctx, s)
}

// setback counts attempts that failed on an open channel, at the old session or subscription. Something in them may be what
// fails, each time. Where no new session can be had they are not to blame.
func (l *Link) setback() {
	if l.session == nil {
		return
	}
	if l.setbacks == 0 {
		l.stuck = time.Now()
	}
	l.setbacks++
	switch stuck := time.Since(l.stuck); {
	case l.sub != nil && l.setbacks >= 2*mostSetbacks && stuck >= 2*sessionPatience:
		l.giveUp(fmt.Sprintf("it could not be taken back in %d attempts", l.setbacks))
		l.setbacks, l.session = 0, nil
	case l.setbacks >= mostSetbacks && stuck >= sessionPatience && (l.sub == nil || !l.sub.Astray):
		l.log.Warn("giving the old OPC UA session up: it cannot be taken back", "attempts", l.setbacks)
		if l.session = nil; l.sub == nil {
			l.setbacks = 0
		}
	}
}

func (l *Link) use(s *Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active = s
}

// ErrNotConnected: there is no session at the moment.
var ErrNotConnected = errors.New("not connected to the server")

// Session returns the session in use. It may end at any time.
func (l *Link) Session() (*Session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active == nil {
		return nil, ErrNotConnected
	}
	return l.active, nil
}

// Rungs of the ladder, by which a connection comes to its session and subscription.
const (
	rungReactivated = "reactivated" // the old session on a new channel; nothing was lost
	rungTransferred = "transferred" // a new session that took the old subscription over
	rungCreated     = "created"     // all anew
)

// establish climbs the ladder: the old session, else a new one with the old subscription, else all anew.
func (l *Link) establish(ctx context.Context, c *channel, e Endpoint) (*Session, string, error) {
	rung := ""
	if l.session != nil {
		err := l.activate(ctx, c, e, l.session)
		switch {
		case err == nil:
			rung = rungReactivated
		case c.refused(err):
			l.log.Info("the server does not take the old session back", "error", err)
			l.session = nil
		default:
			return nil, "", err // the connection failed, not the session
		}
	}
	if l.session == nil {
		var err error
		if l.session, err = l.newSession(ctx, c, e); err != nil {
			return nil, "", err
		}
		if l.sub != nil {
			l.sub.Astray = true
		}
		rung = rungCreated
		l.save() // a session that is not written down cannot be taken up, nor closed
	}
	s := &Session{c: c, endpoint: l.o.Endpoint, token: l.session.Token}
	if err := s.learn(ctx); err != nil {
		return nil, "", err
	}
	s.limits.tighten(&l.limits)
	l.use(s) // it can write and read, however long the subscription takes
	if l.sub != nil && l.sub.Astray {
		switch err := l.transfer(ctx, s); {
		case err == nil:
			rung = rungTransferred
		case c.refused(err):
			l.giveUp(err.Error())
			rung = rungCreated
		default:
			return nil, "", err // the server may still have it
		}
	}
	if err := l.subscribe(ctx, s); err != nil {
		l.limits.tighten(&s.limits)
		l.save()
		return nil, "", err
	}
	l.save()
	return s, rung, nil
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
