package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

const (
	// outstanding is how many publish requests the server has in hand: one to answer, and others for what comes next.
	outstanding = 3
	// pulseEvery is how long the server may be silent before it is asked whether it lives, and silenceLimit how long before
	// the connection is taken for dead.
	pulseEvery   = 1500 * time.Millisecond
	silenceLimit = 4500 * time.Millisecond
	// stopTimeout bounds the orderly end: what was taken over gets on disk and is acknowledged.
	stopTimeout = 3 * time.Second
	// longestHole is how many missing notifications are asked for one by one.
	longestHole = 10_000
)

// delivery is a notification on its way to the disk.
type delivery struct {
	sub, sequence uint32
	values        []Value
}

// ledger is what the server is to be told: which notifications are on disk. Callbacks of the disk write to it.
type ledger struct {
	mu       sync.Mutex
	sub      uint32
	underway int      // handed over and not on disk yet
	acks     []uint32 // on disk, and the server does not know
	failed   []uint32 // never will be on disk
	changed  chan struct{}
}

// begin counts a delivery in.
func (g *ledger) begin(sub uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sub = sub
	g.underway++
}

// cancel takes back what begin counted.
func (g *ledger) cancel() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.underway--
}

// end is told what became of a delivery. It never blocks.
func (g *ledger) end(d delivery, err error) {
	g.mu.Lock()
	g.underway--
	switch {
	case d.sub != g.sub: // of a subscription that is no more: nobody to tell
	case err != nil:
		g.failed = append(g.failed, d.sequence)
	default:
		g.acks = append(g.acks, d.sequence)
	}
	g.mu.Unlock()
	select {
	case g.changed <- struct{}{}:
	default: // somebody looks already
	}
}

// forget drops what belongs to a subscription that is no more.
func (g *ledger) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sub, g.acks, g.failed = 0, nil, nil
}

// takeAcks hands out what can be acknowledged; giveBack returns what did not reach the server.
func (g *ledger) takeAcks() []uint32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	acks := g.acks
	g.acks = nil
	return acks
}

func (g *ledger) giveBack(sub uint32, acks []uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if sub == g.sub {
		g.acks = append(g.acks, acks...)
	}
}

func (g *ledger) state() (underway int, failed []uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.underway, g.failed
}

// takeFailed hands out the notifications that have to be asked for again.
func (g *ledger) takeFailed() []uint32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	failed := g.failed
	g.failed = nil
	return failed
}

// published is the answer to a publish request.
type published struct {
	acks []uint32 // that went with the request
	body []byte
	err  error
}

// pump is what one connection is about: publish requests out, notifications in.
type pump struct {
	l       *Link
	s       *Session
	results chan published
	out     int // requests in the server's hands
	want    int // as many as it takes
	answers time.Time
}

// serve lives with a session until its connection ends, the server drops the subscription, or ctx ends.
func (l *Link) serve(ctx context.Context, s *Session) error {
	alive, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { s.pulse(alive) }) // ends with alive or the channel
	defer parts.Wait()
	defer cancel()
	p := &pump{l: l, s: s, results: make(chan published, outstanding), want: outstanding, answers: time.Now()}
	defer p.abandon()
	started := time.Now()
	err := p.run(ctx)
	if ctx.Err() != nil {
		p.stop()
		return nil
	}
	err = s.c.reason(err)
	if time.Since(started) < l.pace.stable && errors.Is(err, errRedo) {
		return err // the disk fails: no quick attempts
	}
	return fmt.Errorf("%w: %w", errUsed, err)
}

// errRedo: what was handed over will never be on disk; it has to be asked for again.
var errRedo = errors.New("values could not be stored")

func (p *pump) run(ctx context.Context) error {
	l := p.l
	for {
		if failed := l.ledger.takeFailed(); len(failed) > 0 && l.sub != nil {
			l.rewind(failed)
			return errRedo
		}
		if err := p.fill(); err != nil {
			return err
		}
		retry, overdue := p.timers()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.s.c.over:
			return p.s.c.reason(nil)
		case r := <-p.results:
			p.out--
			p.answers = time.Now()
			if err := p.answered(ctx, r); err != nil {
				return err
			}
		case <-l.ledger.changed:
		case <-retry:
			if err := l.watch(ctx, p.s); err != nil {
				return err
			}
			l.save(p.s)
		case <-overdue:
			return fmt.Errorf("%w to a publish request: not even a keep-alive", errNoAnswer)
		}
	}
}

// timers returns when the next failed item is due, and when a publish request should have been answered long since.
func (p *pump) timers() (retry, overdue <-chan time.Time) {
	if p.l.sub == nil {
		return nil, nil
	}
	if p.l.pending {
		retry = time.After(max(time.Until(p.l.retryAt), 10*time.Millisecond))
	}
	if p.out > 0 {
		overdue = time.After(time.Until(p.answers.Add(3*p.l.sub.KeepAlive + 5*time.Second)))
	}
	return retry, overdue
}

// fill sends publish requests as long as there is room for what they may bring.
func (p *pump) fill() error {
	l := p.l
	for l.sub != nil {
		underway, _ := l.ledger.state()
		if p.out >= p.want || p.out+underway >= window {
			return nil
		}
		if err := p.send(); err != nil {
			return err
		}
	}
	return nil
}

func (p *pump) send() error {
	l := p.l
	sub := l.sub.ID
	acks := l.ledger.takeAcks()
	req := &ua.PublishRequest{}
	for _, n := range acks {
		req.SubscriptionAcknowledgements = append(req.SubscriptionAcknowledgements,
			&ua.SubscriptionAcknowledgement{SubscriptionID: sub, SequenceNumber: n})
	}
	results := p.results
	// The server may hold the request until its subscription's next keep-alive, several of them if it has many.
	hint := (outstanding + 1) * (l.sub.KeepAlive + 5*time.Second)
	if p.out == 0 {
		p.answers = time.Now()
	}
	_, err := p.s.c.begin(req, p.s.token, hint, func(body []byte, err error) {
		if err != nil {
			l.ledger.giveBack(sub, acks)
		}
		results <- published{acks, body, err} // there is room for as many as are out
	})
	if err != nil {
		l.ledger.giveBack(sub, acks)
		return fmt.Errorf("send a publish request: %w", err)
	}
	p.out++
	return nil
}

// abandon takes the acknowledgements back of requests that were not answered; the channel is closed by then, or soon.
func (p *pump) abandon() {
	p.s.c.fail(errClosed)
	for ; p.out > 0; p.out-- {
		<-p.results // each is told of the end
	}
}

// answered takes the answer to one publish request. An error ends the connection.
func (p *pump) answered(ctx context.Context, r published) error {
	l := p.l
	if r.err != nil {
		return r.err
	}
	var a publishResponse
	err := decodeResponse(r.body, &a)
	switch code := statusOf(err); {
	case err == nil:
		return p.notified(ctx, &a)
	case code == ua.StatusBadTooManyPublishRequests:
		p.want = max(1, p.out)
		l.ledger.giveBack(l.sub.ID, r.acks)
		return nil
	case code == ua.StatusBadTimeout:
		l.ledger.giveBack(l.sub.ID, r.acks)
		return nil // the server tidied up; ask again
	case code == ua.StatusBadNoSubscription || code == ua.StatusBadSubscriptionIDInvalid:
		l.forgetSubscription()
		return errNoSubscription
	case code == ua.StatusBadSessionIDInvalid || code == ua.StatusBadSessionClosed || code == ua.StatusBadSessionNotActivated:
		l.session = nil
		return fmt.Errorf("publish: %w", err)
	default:
		l.ledger.giveBack(l.sub.ID, r.acks)
		return fmt.Errorf("publish: %w", err)
	}
}

// notified puts a notification message where it belongs: delivers it when its turn has come, and asks again for those
// that should have come before.
func (p *pump) notified(ctx context.Context, a *publishResponse) error {
	l := p.l
	if a.subscription != l.sub.ID {
		return nil // of a subscription that is not ours any more
	}
	m := a.message
	if l.sub.next == 0 {
		if err := p.begin(ctx, a); err != nil {
			return err
		}
	}
	if err := p.order(ctx, m); err != nil {
		return err
	}
	if m.ended != 0 {
		l.log.Warn("the server ends the subscription", "status", m.ended)
		l.forgetSubscription()
		return errNoSubscription
	}
	return nil
}

// begin finds the sequence number to go on from, in a process that took over a subscription: that of the oldest
// notification that was never acknowledged.
func (p *pump) begin(ctx context.Context, a *publishResponse) error {
	l := p.l
	old := slices.DeleteFunc(slices.Clone(a.available), func(n uint32) bool { return !before(n, a.message.sequence) })
	slices.SortFunc(old, func(x, y uint32) int { return int(int32(x - y)) })
	l.sub.next = a.message.sequence
	for _, n := range old {
		m, err := p.s.republish(ctx, l.sub.ID, n)
		switch {
		case err == nil:
			l.stats.republished.Add(1)
			if err := l.hand(ctx, p.s, m); err != nil {
				return err
			}
		case statusOf(err) != ua.StatusBadMessageNotAvailable:
			return fmt.Errorf("republish: %w", err)
		}
	}
	return nil
}

// before reports whether sequence number a comes before b, over the wrap.
func before(a, b uint32) bool { return int32(a-b) < 0 }

// order delivers m and what waits for it, in the order of the sequence numbers.
func (p *pump) order(ctx context.Context, m notification) error {
	l, sub := p.l, p.l.sub
	switch {
	case before(m.sequence, sub.next):
		if i := slices.Index(sub.skipped, m.sequence); i >= 0 && !m.keepalive {
			sub.skipped = slices.Delete(sub.skipped, i, i+1)
			return l.hand(ctx, p.s, m) // late, but it was given up, not delivered
		}
		return nil // delivered before
	case m.sequence != sub.next:
		if err := p.mend(ctx, m.sequence); err != nil {
			return err
		}
	}
	if m.keepalive {
		return nil // it has the number of what comes next
	}
	if err := l.hand(ctx, p.s, m); err != nil {
		return err
	}
	sub.next = following(m.sequence)
	return nil
}

// mend asks again for the notifications from the one that is due up to until. What the server does not have any more is
// counted as lost.
func (p *pump) mend(ctx context.Context, until uint32) error {
	l, sub := p.l, p.l.sub
	if until-sub.next > longestHole {
		l.log.Warn("notifications are missing", "from", sub.next, "to", until)
		l.stats.holes.Add(uint64(until - sub.next))
		sub.next = until
		return nil
	}
	for ; sub.next != until; sub.next = following(sub.next) {
		m, err := p.s.republish(ctx, sub.ID, sub.next)
		switch {
		case err == nil:
			l.stats.republished.Add(1)
			if err := l.hand(ctx, p.s, m); err != nil {
				return err
			}
		case statusOf(err) == ua.StatusBadMessageNotAvailable && before(sub.next, sub.high):
			// It was handed over before, and acknowledged since: only one near it has to be asked for again.
		case statusOf(err) == ua.StatusBadMessageNotAvailable:
			l.stats.holes.Add(1)
			l.log.Warn("a notification is missing and the server does not have it any more", "sequence", sub.next)
			if sub.skipped = append(sub.skipped, sub.next); len(sub.skipped) > 64 {
				sub.skipped = sub.skipped[1:]
			}
		default:
			return fmt.Errorf("republish: %w", err)
		}
	}
	return nil
}

// hand gives a notification to the goroutine that delivers. It waits for room, which it does only while notifications are
// republished; else room was there before they were asked for.
func (l *Link) hand(ctx context.Context, s *Session, m notification) error {
	if m.broken != nil {
		l.stats.broken.Add(1)
		l.log.Error("a notification cannot be read; its values are lost", "sequence", m.sequence, "error", m.broken)
	}
	d := delivery{sub: l.sub.ID, sequence: m.sequence, values: make([]Value, 0, len(m.changes))}
	for i := range m.changes {
		it := l.byHandle[m.changes[i].handle]
		if it == nil || !it.ready {
			continue // an item that was just removed
		}
		v := m.changes[i].value
		l.stats.values.Add(1)
		if v.Status.Overflow() {
			l.stats.overflows.Add(1)
		}
		switch ua.StatusCode(v.Status &^ 0xFFFF) {
		case ua.StatusBadNodeIDUnknown, ua.StatusBadNodeIDInvalid:
			if it.id != 0 { // the node is gone; when it comes back, some servers want to be asked anew
				l.orphans = append(l.orphans, it.id)
				it.id = 0
				it.fail(v.Status)
				it.ready = true // its topic stays known for this very value
				l.countItems()
			}
		}
		d.values = append(d.values, Value{it.index, v})
	}
	l.stats.heard.Store(time.Now().UnixNano())
	if l.sub.high == 0 || before(l.sub.high, following(m.sequence)) {
		l.sub.high = following(m.sequence)
	}
	l.ledger.begin(d.sub)
	select {
	case l.queue <- d:
		return nil
	default:
	}
	select {
	case l.queue <- d:
		return nil
	case <-s.c.over:
	case <-ctx.Done():
	}
	l.ledger.cancel() // next still is its number
	return s.c.reason(context.Cause(ctx))
}

// deliver hands notifications to the sink, one after the other, whatever becomes of the connection that brought them.
func (l *Link) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-l.queue:
			l.o.Sink.Take(ctx, d.values, func(err error) { l.ledger.end(d, err) })
		}
	}
}

// rewind makes the oldest of the failed notifications the next one that is due.
func (l *Link) rewind(failed []uint32) {
	for _, n := range failed {
		if before(n, l.sub.next) {
			l.sub.next = n
		}
	}
}

// pulse notices a peer that is gone without a word: when nothing came for a while it asks for the server's state, and
// when that brings nothing either it drops the connection.
func (s *Session) pulse(ctx context.Context) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	asked := false
	answered := make(chan struct{}, 1)
	state := &ua.ReadRequest{TimestampsToReturn: ua.TimestampsToReturnNeither, NodesToRead: []*ua.ReadValueID{{
		NodeID: ua.NewNumericNodeID(0, id.Server_ServerStatus_State), AttributeID: ua.AttributeIDValue, DataEncoding: &ua.QualifiedName{},
	}}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.c.over:
			return
		case <-answered:
			asked = false
		case <-tick.C:
		}
		switch silent := s.c.silence(); {
		case silent >= silenceLimit:
			s.c.fail(fmt.Errorf("%w for %s: the connection is dead", errNoAnswer, silent.Round(100*time.Millisecond)))
			return
		case silent >= pulseEvery && !asked:
			asked = true
			if _, err := s.c.begin(state, s.token, requestTimeout, func([]byte, error) { answered <- struct{}{} }); err != nil {
				return // the channel has ended
			}
		}
	}
}

// stop is the orderly end: nothing more is asked for, what was taken over gets on disk and is acknowledged. The session
// and its subscription stay with the server, which keeps values for the next process, unless nobody could find them again.
func (p *pump) stop() {
	l := p.l
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for {
		underway, _ := l.ledger.state()
		if underway == 0 {
			break
		}
		select {
		case <-ctx.Done():
		case <-p.s.c.over:
		case <-l.ledger.changed:
			continue
		case <-p.results: // what it brings stays with the server, unacknowledged
			p.out--
			continue
		}
		break
	}
	if p.s.c.reason(nil) != nil {
		return
	}
	if l.o.State == "" || l.sub == nil || l.o.Budget <= 0 {
		if err := p.s.c.closeSession(ctx, p.s.token); err == nil {
			l.session, l.sub = nil, nil
			l.save(p.s)
		}
		return
	}
	p.lastAcks(ctx)
	l.save(p.s)
	p.s.c.close()
}

// lastAcks acknowledges what is on disk by a publish request whose answer nobody waits for, and then waits for the server
// to have read it.
func (p *pump) lastAcks(ctx context.Context) {
	acks := p.l.ledger.takeAcks()
	if len(acks) == 0 {
		return
	}
	req := &ua.PublishRequest{}
	for _, n := range acks {
		req.SubscriptionAcknowledgements = append(req.SubscriptionAcknowledgements,
			&ua.SubscriptionAcknowledgement{SubscriptionID: p.l.sub.ID, SequenceNumber: n})
	}
	if _, err := p.s.c.begin(req, p.s.token, time.Minute, func([]byte, error) {}); err != nil {
		return
	}
	_, _ = p.s.readBatch(ctx, []Attribute{{NodeID{Kind: Numeric, Num: id.Server_ServerStatus_State}, ua.AttributeIDValue}})
}
