package link

import (
	"context"
	"errors"
	"fmt"
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
	silenceLimit = 4 * time.Second
	// stopTimeout bounds the orderly end: what was taken over gets on disk and is acknowledged.
	stopTimeout = 3 * time.Second
	// refusalPause is how long a refused publish request is not repeated.
	refusalPause = 500 * time.Millisecond
	// longestHole is how many missing notifications are asked for one by one.
	longestHole = 10_000
)

// published is the answer to a publish request.
type published struct {
	acks []uint32 // that went with the request
	term uint64   // of acks
	body []byte
	err  error
}

// pump is what one connection is about: publish requests out, notifications in.
type pump struct {
	l       *Link
	s       *Session
	results chan published
	out     int       // requests in the server's hands
	want    int       // as many as it takes
	answers time.Time // when the last one came, or the first was asked for
	heard   bool      // one has come
	pause   time.Time // no further requests before: the server refused one
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
	if err = s.c.reason(err); sessionGone(err) {
		l.session = nil
	}
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
		retry, overdue, resume := p.timers()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.s.c.over:
			return p.s.c.reason(nil)
		case r := <-p.results:
			p.out--
			p.answers, p.heard = time.Now(), true
			if err := p.answered(ctx, r); err != nil {
				return err
			}
		case <-l.ledger.changed:
		case <-resume:
		case <-retry:
			if err := l.watch(ctx, p.s); err != nil {
				return err
			}
			l.save()
		case <-overdue:
			// A server that took the session back and never answers has forgotten its subscription, without saying so.
			if !p.heard {
				l.outdated = "the server never answers for it"
			}
			return fmt.Errorf("%w to a publish request: not even a keep-alive", errNoAnswer)
		}
	}
}

// timers returns when the next failed item is due, when a publish request should have been answered long since, and when
// further ones may be sent.
func (p *pump) timers() (retry, overdue, resume <-chan time.Time) {
	if p.l.sub == nil {
		return nil, nil, nil
	}
	if p.l.pending {
		retry = time.After(max(time.Until(p.l.retryAt), 10*time.Millisecond))
	}
	if p.out > 0 && len(p.results) == 0 { // an answer that waits is none that is missing
		overdue = time.After(time.Until(p.answers.Add(3*p.l.sub.KeepAlive + 5*time.Second)))
	}
	if d := time.Until(p.pause); d > 0 {
		resume = time.After(d)
	}
	return retry, overdue, resume
}

// fill sends publish requests as long as there is room for what they may bring.
func (p *pump) fill() error {
	l := p.l
	for l.sub != nil {
		underway, _ := l.ledger.state()
		if p.out >= p.want || p.out+underway >= window || time.Now().Before(p.pause) {
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
	acks, term := l.ledger.takeAcks()
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
			l.ledger.giveBack(term, acks)
		}
		results <- published{acks, term, body, err} // there is room for as many as are out
	})
	if err != nil {
		l.ledger.giveBack(term, acks)
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
		p.want, p.pause = max(1, p.out), time.Now().Add(refusalPause)
		l.ledger.giveBack(r.term, r.acks)
		return nil
	case code == ua.StatusBadTimeout: // the server tidied up
		p.pause = time.Now().Add(refusalPause)
		l.ledger.giveBack(r.term, r.acks)
		return nil
	case code == ua.StatusBadNoSubscription || code == ua.StatusBadSubscriptionIDInvalid:
		l.giveUp(err.Error())
		return errNoSubscription
	case code == 0 && l.unreadable(p.s, l.sub.next, err):
		p.pause = time.Now().Add(refusalPause)
		return nil // the gap that it leaves is asked for again
	default:
		l.ledger.giveBack(r.term, r.acks)
		return fmt.Errorf("publish: %w", err)
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
			if _, err := s.c.begin(state, s.token, requestTimeout, func(body []byte, err error) {
				if err == nil {
					s.check(decodeResponse(body, &valuesResponse{}))
				}
				answered <- struct{}{}
			}); err != nil {
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
			l.save()
		}
		return
	}
	p.lastAcks(ctx)
	l.save()
	p.s.c.close()
}

// lastAcks acknowledges what is on disk by a publish request whose answer nobody waits for, and then waits for the server
// to have read it.
func (p *pump) lastAcks(ctx context.Context) {
	acks, _ := p.l.ledger.takeAcks()
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
