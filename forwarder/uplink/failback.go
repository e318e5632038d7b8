package uplink

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

const (
	// maxQuiet bounds how long an earlier server has to answer after several returns that did not last.
	maxQuiet = time.Hour
	// probesPerQuiet is how often an earlier server is asked in the time it has to answer.
	probesPerQuiet = 5
	// answersLeast is how often it has to have answered, however long the pauses were: this machine may have slept.
	answersLeast = 3
	// probeLeast and probeMost bound the pause between two questions.
	probeLeast = 20 * time.Millisecond
	probeMost  = time.Minute
	// probeIdle bounds the pause while no earlier server answers: each question costs a handshake, which somebody pays for.
	probeIdle = 5 * time.Minute
)

// earlier is what is known of the servers in front of the one in use. It outlives a connection that is only made anew with another
// token. One goroutine uses it at a time.
type earlier struct {
	since   []time.Time   // since when each of them has answered without a break; zero: it does not
	answers []int         // since then
	due     time.Time     // when they are asked next; zero: after a pause
	pause   time.Duration // the last one
}

// awaitEarlier asks the servers in front of the one in use, again and again, until one of them has answered for c.quiet
// without a break. Until then the connection that works is left alone.
func (c *Client) awaitEarlier(ctx context.Context, current int) *move {
	e := &c.earlier
	usual := min(max(c.quiet/probesPerQuiet, probeLeast), probeMost)
	if len(e.since) != current {
		*e = earlier{since: make([]time.Time, current), answers: make([]int, current), pause: usual}
	}
	defer c.remark("")
	for {
		if e.due.IsZero() {
			e.due = time.Now().Add(e.pause*9/10 + rand.N(e.pause/5)) //nolint:gosec // jitter is no secret
		}
		if !sleep(ctx, time.Until(e.due)) {
			return nil
		}
		m, answered := c.ask(ctx, e)
		if m != nil || ctx.Err() != nil {
			return m
		}
		if e.pause = min(2*e.pause, max(usual, min(c.quiet, probeIdle))); answered {
			e.pause = usual
		}
		e.due = time.Time{}
	}
}

// ask asks every earlier server once. It returns the move that is due, if one is, and whether one of them answered.
func (c *Client) ask(ctx context.Context, e *earlier) (due *move, answered bool) {
	remark := ""
	for i := range e.since {
		sv := c.settings.servers[i]
		err := c.probe(ctx, sv)
		if ctx.Err() != nil {
			return nil, false
		}
		if err != nil {
			if !e.since[i].IsZero() {
				c.log.Info("an earlier server went away again", "server", sv.url, "error", told{err})
			}
			e.since[i], e.answers[i] = time.Time{}, 0
			remark = note(remark, fmt.Sprintf("%s does not answer: %v", sv.url, told{err}))
			continue
		}
		now := time.Now()
		answered = true
		if e.since[i].IsZero() {
			e.since[i] = now
			c.log.Info("an earlier server answers again", "server", sv.url, "return_after", c.quiet)
		}
		e.answers[i]++
		held := now.Sub(e.since[i])
		if held >= c.quiet && e.answers[i] >= answersLeast {
			return &move{label: endFailback, to: i, why: fmt.Sprintf("%s has answered for %s", sv.url, held.Round(time.Second/10))}, true
		}
		remark = note(remark, fmt.Sprintf("%s answers again; the uplink returns to it when that has lasted for %s", sv.url, c.quiet))
	}
	c.remark(remark)
	return nil, answered
}

func note(text, more string) string {
	if text == "" {
		return more
	}
	return text + "; " + more
}

// remark sets what the status says of the servers in front of the one in use.
func (c *Client) remark(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Note = text
}

// look proves that a server is back without touching the session this client has there: it connects with a client identifier
// of its own, a clean session, no will and no subscription, and leaves. Where the service admits only the one identifier the
// proof ends before MQTT.
func (c *Client) look(ctx context.Context, sv server) error {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("no answer within %s", connectTimeout))
	defer cancel()
	if c.settings.limits.StrictIdentity {
		_, tcp, err := reach(ctx, &c.settings, sv)
		if err == nil {
			_ = tcp.Close()
		}
		return err
	}
	nc, tcp, err := dial(ctx, &c.settings, sv)
	if err != nil {
		return err
	}
	defer tcp.Close()
	who, err := c.settings.login(sv, time.Now())
	if err != nil {
		return err
	}
	_, err = connect(ctx, &c.settings, nc, bufio.NewReader(nc), hello{server: sv, login: who, probe: true})
	if err != nil {
		return c.proves(err)
	}
	_, _ = nc.Write([]byte{packets.Disconnect << 4, 0}) // it is closed anyway
	return nil
}

// proves forgives the refusal that is about the identifier of the question and not about the server: rules may admit no other
// than the configured one. A refused login is not forgiven, as the uplink has the same one.
func (c *Client) proves(err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	switch {
	case r.version == version311 && r.code == 2, r.version == version5 && r.code == 0x85:
		return nil
	case r.version == version311 && r.code == 5, r.version == version5 && r.code == codeNotAuthorized:
		return fmt.Errorf("%w; the question came from client identifier %q, which its rules have to let in too", err, probeID(c.settings.clientID))
	}
	return err
}

// probeID is the client identifier that asks whether a server is back. It is the same every time, so that rules can let it in,
// differs from what anybody would choose, so that no other client is thrown off, and is no longer than the configured one or
// than the 23 bytes that every server takes [MQTT-3.1.3-5].
func probeID(clientID string) string {
	sum := sha256.Sum256([]byte(clientID))
	tail := "-probe-" + hex.EncodeToString(sum[:3])
	keep := min(len(clientID), max(len(clientID), 23)-len(tail))
	for keep < len(clientID) && !utf8.RuneStart(clientID[keep]) {
		keep-- // not in the middle of a character
	}
	return clientID[:keep] + tail
}
