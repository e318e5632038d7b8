package uplink

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A connection that works is left only in order: nothing new is sent over it, what is in flight is waited for, and then comes
// DISCONNECT. So nothing is sent twice, and nothing is lost anyway, as what is not acknowledged stays in the log.

// leavePoll is how often it is looked whether the last message in flight was acknowledged.
const leavePoll = 10 * time.Millisecond

// move is the reason for leaving a connection that works.
type move struct {
	label string // endRenewed, endFailback
	to    int    // the server to go on with
	why   string
}

func (m *move) Error() string { return m.why }

// mover decides whether a connection should be left; it returns nil when ctx ends.
type mover func(ctx context.Context) *move

// movers are the reasons there may be to leave a connection to the i-th server.
func (c *Client) movers(i int, l login) []mover {
	var out []mover
	if !l.lapses.IsZero() {
		out = append(out, func(ctx context.Context) *move { return c.awaitRenewal(ctx, i, l) })
	}
	if i > 0 && c.quiet > 0 {
		out = append(out, func(ctx context.Context) *move { return c.awaitEarlier(ctx, i) })
	}
	return out
}

// awaitRenewal waits until the password of a connection is about to lapse: the broker ends the connection then.
func (c *Client) awaitRenewal(ctx context.Context, i int, l login) *move {
	tick := time.NewTicker(min(max(l.renew/50, 10*time.Millisecond), 30*time.Second))
	defer tick.Stop()
	for !l.renewal(time.Now()) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return &move{label: endRenewed, to: i, why: "the token is about to lapse, connecting with a new one"}
}

// leave ends a connection in order. It reports false when the connection or ctx ended first. The cloud is told that the gateway is
// offline also when only the token is renewed: the next connection may not come about, and nobody else could tell it then.
func (c *Client) leave(ctx context.Context, cn conn, l *link) bool {
	c.retire(l)
	l.seal()
	if !c.settled(ctx, cn, l) {
		return false
	}
	c.goodbye(cn)
	return true
}

// settled waits until nothing is in flight, however long that takes, as long as acknowledgements come: what is left when none
// has come for ack_timeout is sent again over the next connection.
func (c *Client) settled(ctx context.Context, cn conn, l *link) bool {
	tick := time.NewTicker(leavePoll)
	defer tick.Stop()
	answered, last := cn.info().answered, time.Now()
	for !l.drained() {
		select {
		case <-tick.C:
		case <-cn.lost():
			return false
		case <-ctx.Done():
			return false
		}
		switch n := cn.info().answered; {
		case n != answered:
			answered, last = n, time.Now()
		case time.Since(last) >= c.settings.ackTimeout:
			return true
		}
	}
	return true
}

// sealed marks a link that takes nothing more; below it stands the number of Sends under way.
const sealed = 1 << 32

// seal makes Send refuse what comes from now on.
func (l *link) seal() { l.users.Or(sealed) }

// enter begins a Send; false: the link is sealed.
func (l *link) enter() bool {
	if l.users.Add(1)&sealed != 0 {
		l.users.Add(-1)
		return false
	}
	return true
}

// drained reports whether a sealed link has nothing left to do.
func (l *link) drained() bool { return l.users.Load() == sealed && l.conn.inFlight() == 0 }

// retire takes l back from Connected while its connection still works.
func (c *Client) retire(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == l {
		c.link, c.leaving = nil, l
		c.note()
	}
}

// moved records that a connection was left in order.
func (c *Client) moved(sv server, m *move) {
	c.metrics.reconnects.WithLabelValues(m.label).Inc()
	c.log.Info("uplink moves", "from", sv.url, "to", c.settings.servers[m.to].url, "reason", m.label, "why", m.why)
}

// tried reckons with the end of a connection that was made to return to an earlier server. A return that did not last makes the
// next one wait twice as long, so that a server that comes and goes does not take the traffic with it. It lasts over the
// renewal of a token, and one that is left in order for a still earlier server was a good one.
func (c *Client) tried(err error) {
	m := (*move)(nil)
	moves := errors.As(err, &m)
	if c.returned.IsZero() || moves && m.label == endRenewed {
		return
	}
	lived := time.Since(c.returned)
	c.returned = time.Time{}
	if moves || lived >= c.quiet {
		c.quiet = c.settings.failback
		return
	}
	c.quiet = min(2*c.quiet, max(c.settings.failback, maxQuiet))
	c.log.Info("the earlier server did not last", "error", fmt.Sprint(err), "next_return_after", c.quiet)
}
