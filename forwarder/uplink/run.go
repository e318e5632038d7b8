package uplink

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"tidegate/message"
)

const (
	// connectTimeout bounds one attempt: name look-up, TCP, TLS and CONNACK.
	connectTimeout = 10 * time.Second
	// goodbyeTimeout bounds the orderly end: the retained status "offline", its acknowledgement, DISCONNECT.
	goodbyeTimeout = 2 * time.Second
)

// pace says how long to wait before the next attempt.
type pace struct {
	base, limit time.Duration // full jitter between 0 and base doubled with every failure, at most limit
	slow        time.Duration // where the same attempt will fail again: between slow and twice slow
	stable      time.Duration // a connection that lived that long was a success, as is one that took a record
}

func defaultPace() pace {
	return pace{base: 500 * time.Millisecond, limit: 30 * time.Second, slow: 30 * time.Second, stable: 30 * time.Second}
}

// wait is how long to wait after that many failures in a row, the last of them err.
func (p pace) wait(failures int, err error) time.Duration {
	var r interface{ lasting() bool } // a refusal, by MQTT or by HTTP
	if errors.As(err, &r) && r.lasting() || endLabel(err) == endTakenOver {
		return p.slow + rand.N(p.slow) //nolint:gosec // jitter is no secret
	}
	most := p.limit
	if failures < 30 {
		most = min(p.limit, p.base<<failures)
	}
	return rand.N(most) //nolint:gosec // jitter is no secret
}

// after is what is left of that many failures after a connection that lived so long.
func (p pace) after(failures int, lived time.Duration, useful bool) int {
	if useful || lived >= p.stable {
		return 0
	}
	return failures
}

// Run keeps the uplink connected until ctx ends and hands what the cloud sends to commands. It returns nil, after the
// retained status "offline" was acknowledged or goodbyeTimeout has passed, when every goroutine it started has ended. A Client runs once.
//
// A command is acknowledged to the cloud once commands returned nil, in order; commands is called for one at a time. A
// command that commands refuses for good (message.ErrNotAllowed, ErrInvalid, ErrTooLarge, ErrNoMatch) is acknowledged too, on
// MQTT 5 with a reason code, because the cloud would send it again for ever. After any other error it is tried again, with
// growing pauses; those of other topics are handed over meanwhile, and the cloud keeps all of them until then.
func (c *Client) Run(ctx context.Context, commands message.Handler) error {
	defer c.over()
	c.metrics.connected() // shown from now on
	failures := 0
	for next := 0; ctx.Err() == nil; {
		started := time.Now()
		err := c.once(ctx, next, commands)
		if ctx.Err() != nil {
			return nil
		}
		c.tried(err)
		if m := (*move)(nil); errors.As(err, &m) {
			if next = m.to; m.label == endFailback {
				c.earlier, c.returned = earlier{}, time.Now()
			}
			continue
		}
		c.earlier = earlier{} // the next connection is not to the same server, or the earlier ones were tried before it
		if errors.Is(err, errConnected) {
			lived := time.Since(started)
			failures = c.pace.after(failures, lived, c.useful)
			if c.worked(err, lived) {
				next = 0 // the servers are tried in order again
			} else if next = (next + 1) % len(c.settings.servers); next != 0 {
				continue // one that lets us in and takes nothing keeps nobody from the others
			}
		} else {
			next = (next + 1) % len(c.settings.servers)
			if next != 0 {
				continue // the next server is tried at once
			}
		}
		if !sleep(ctx, c.pace.wait(failures, err)) {
			return nil
		}
		failures++
	}
	return nil
}

// worked reports whether a connection that lived so long and ended with err was worth having: it took more than the status, or held for long
// with nothing to take.
func (c *Client) worked(err error, lived time.Duration) bool {
	label := endLabel(err)
	return c.useful || lived >= c.pace.stable && label != endAckTimeout && label != endClosed
}

// errConnected is wrapped by the error of a connection that had been made.
var errConnected = errors.New("connection ended")

// once makes one connection to the i-th server and lives with it until it ends.
func (c *Client) once(ctx context.Context, i int, commands message.Handler) error {
	sv := c.settings.servers[i]
	who, err := c.settings.login(sv, time.Now())
	if err != nil {
		c.failed("connect to", sv, err)
		return err
	}
	dialing, cancel := context.WithTimeoutCause(ctx, connectTimeout,
		fmt.Errorf("no answer within %s", connectTimeout))
	cn, err := c.driver.connect(dialing, &c.settings, hello{server: sv, will: c.will(i), login: who, release: c.release})
	cancel()
	if err != nil {
		err = hintToken(err, who)
		if ctx.Err() == nil {
			c.failed("connect to", sv, err)
		}
		var r *refusal
		c.noRetain[i] = c.noRetain[i] || errors.As(err, &r) && r.version == version5 && r.code == codeRetainUnsupported
		return err
	}
	err = c.serve(ctx, sv, cn, commands, c.movers(i, who))
	c.remember(cn.info())
	if m := (*move)(nil); errors.As(err, &m) {
		c.moved(sv, m)
	} else if ctx.Err() == nil {
		c.failed("connection to", sv, err)
	}
	return fmt.Errorf("%w: %w", errConnected, err)
}

// remember decides how the next connection begins, and whether the last one was worth something. After QoS 2 messages the
// broker may hold identifiers. A resumed session that ended before anything was taken may have ended over identifiers of an
// earlier process, or over the attempt to release them: the other way is tried then.
func (c *Client) remember(last connInfo) {
	c.useful = last.taken > 1
	switch {
	case last.exactly:
		c.release = true
	case last.present && last.taken == 0:
		c.release = !c.release
	}
}

// will is what the i-th server publishes when this client vanishes.
func (c *Client) will(i int) message.Message {
	m := statusMessage(c.settings.gateway, c.version, "offline", time.Now())
	m.Retain = !c.noRetain[i] && !c.settings.limits.NoRetain
	m.Topic = c.settings.limits.OwnTopic(m.Topic)
	return m
}

// serve uses a connection until it ends, and ends it in order when ctx does or one of movers says so. It returns why the
// connection ended, a *move in the last case.
func (c *Client) serve(ctx context.Context, sv server, cn conn, commands message.Handler, movers []mover) error {
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts sync.WaitGroup
	parts.Go(func() { c.watch(cn) })                         // ends with the connection
	parts.Go(func() { c.takeCommands(alive, cn, commands) }) // ends with the connection, or ctx
	l := &link{conn: cn}
	c.announce(ctx, cn, "online")
	parts.Go(func() { c.tell(alive, cn) }) // ends with the connection, or ctx
	c.up(sv, l)
	due := make(chan *move, len(movers))
	for _, wait := range movers {
		parts.Go(func() { // ends with the connection, or ctx
			if m := wait(alive); m != nil {
				due <- m
			}
		})
	}
	left := c.stay(ctx, cn, l, due)
	<-cn.lost()
	cancel()
	parts.Wait()
	c.down()
	if left != nil {
		return left
	}
	return cn.cause()
}

// stay waits for the end of a connection. It returns the reason when the connection was left in favour of another one, which is
// ended in order then, as it is when ctx ends.
func (c *Client) stay(ctx context.Context, cn conn, l *link, due <-chan *move) *move {
	select {
	case <-ctx.Done():
	case <-cn.lost():
	case m := <-due:
		if c.leave(ctx, cn, l) {
			return m
		}
	}
	if ctx.Err() != nil {
		c.goodbye(cn)
	}
	return nil
}

// announce sends the retained status, as the first message of a connection and as the last one. It returns a channel
// that gets one value: nil when the broker has taken the status, else why it has not.
func (c *Client) announce(ctx context.Context, cn conn, is string) <-chan error {
	answered := make(chan error, 1)
	m := statusMessage(c.settings.gateway, c.version, is, time.Now())
	err := cn.send(ctx, m, Identity{}, func(err error) {
		if err != nil && !errors.Is(err, ErrDisconnected) {
			c.log.Warn("status message refused", "topic", m.Topic, "error", err)
		}
		answered <- err
	})
	if err != nil {
		answered <- err
	}
	return answered
}

// goodbye says offline, waits until that and with it all before it is acknowledged, and sends DISCONNECT, after which the
// broker drops the will. Where the broker does not take it in time there is no DISCONNECT, and the will says it.
func (c *Client) goodbye(cn conn) {
	ctx, cancel := context.WithTimeout(context.Background(), goodbyeTimeout)
	defer cancel()
	said := false
	select {
	case err := <-c.announce(ctx, cn, "offline"):
		said = err == nil
	case <-ctx.Done():
	}
	if !said {
		cn.drop(ended(endStopped, "left without an answer"))
		return
	}
	cn.stop()
	select {
	case <-cn.lost():
	case <-ctx.Done():
		cn.drop(ended(endStopped, "stopped without an answer"))
	}
}

// watch drops the connection when the oldest message in flight gets no acknowledgement for ack_timeout, or the subscription
// of commands no answer: a connection is worth what moves over it, not what its socket says.
func (c *Client) watch(cn conn) {
	tick := time.NewTicker(max(c.settings.ackTimeout/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-cn.lost():
			return
		case <-tick.C:
		}
		if since, ok := cn.oldest(); ok && time.Since(since) >= c.settings.ackTimeout {
			cn.drop(ended(endAckTimeout, "no acknowledgement for the oldest message for %s", c.settings.ackTimeout))
			<-cn.lost()
			return
		}
		if since, ok := cn.subscribes(); ok && time.Since(since) >= c.settings.ackTimeout {
			cn.drop(ended(endAckTimeout, "no answer to the subscription of commands for %s", c.settings.ackTimeout))
			<-cn.lost()
			return
		}
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
