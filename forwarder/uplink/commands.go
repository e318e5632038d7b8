package uplink

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"tidegate/message"
)

const (
	// commandRetryFirst and commandRetryMost bound the pauses before a command is offered again that could not be taken.
	commandRetryFirst = 100 * time.Millisecond
	commandRetryMost  = time.Second
	// maxOpenCommands bounds the commands of a connection that wait for their hand-over. An MQTT 5 broker keeps to
	// commandWindow; one of 3.1.1 knows no bound, and beyond this one nothing more is read of the connection.
	maxOpenCommands = 1024
)

// openCommand is a command that was not acknowledged yet.
type openCommand struct {
	command
	tried    bool
	pause    time.Duration // after the next failure
	due      time.Time     // not offered before
	answered bool
	code     byte // of the acknowledgement
}

// takeCommands hands the commands of a connection over until ctx ends, which is with the connection. One that cannot be
// taken now is offered again and holds up only those of its topic; acknowledgements leave in the order in which the commands
// came [MQTT-4.6.0-2]. What is not acknowledged at the end is sent again by the cloud over the next connection.
func (c *Client) takeCommands(ctx context.Context, cn conn, handle message.Handler) {
	if handle == nil {
		handle = func(context.Context, message.Message) error { return message.ErrNoMatch }
	}
	var open []*openCommand
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		next := c.offer(ctx, open, handle)
		for len(open) > 0 && open[0].answered && ctx.Err() == nil {
			cn.acknowledge(open[0].command, open[0].code)
			open[0], open = nil, open[1:]
		}
		var in <-chan command
		if len(open) < maxOpenCommands {
			in = cn.commands()
		}
		timer.Reset(next)
		select {
		case cmd := <-in:
			cmd.m.Source = message.Source{Protocol: message.Uplink, Client: c.settings.name}
			open = append(open, &openCommand{command: cmd, pause: commandRetryFirst})
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// offer hands over what is due, in order, but for commands of a topic of which an earlier one waits. It returns how long to
// wait until more is due.
func (c *Client) offer(ctx context.Context, open []*openCommand, handle message.Handler) (next time.Duration) {
	next = time.Hour
	var blocked map[string]bool
	for _, o := range open {
		if o.answered || blocked[o.m.Topic] {
			continue
		}
		if wait := time.Until(o.due); wait > 0 {
			next = min(next, wait)
		} else if c.handOver(ctx, o, handle); o.answered {
			continue
		} else {
			next = min(next, time.Until(o.due))
		}
		if blocked == nil {
			blocked = map[string]bool{}
		}
		blocked[o.m.Topic] = true
	}
	return max(next, 0)
}

// handOver offers one command. Either it is answered then, taken or refused for good, or it is due later.
func (c *Client) handOver(ctx context.Context, o *openCommand, handle message.Handler) {
	err := handle(ctx, o.m)
	if err == nil {
		c.metrics.commands.WithLabelValues("accepted").Inc()
		o.answered = true
		return
	}
	if o.code, o.answered = commandRefusal(err); o.answered {
		c.metrics.commands.WithLabelValues("refused").Inc()
		c.log.Warn("command refused", "topic", o.m.Topic, "error", err)
		return
	}
	if ctx.Err() != nil {
		return // the cloud sends it again over the next connection
	}
	c.metrics.commands.WithLabelValues("retried").Inc()
	if !o.tried {
		o.tried = true
		c.log.Warn("command waits", "topic", o.m.Topic, "error", err)
	}
	o.due = time.Now().Add(o.pause/2 + rand.N(o.pause/2)) //nolint:gosec // jitter is no secret
	o.pause = min(2*o.pause, commandRetryMost)
}

// commandRefusal translates an error of the handler that is final into the reason code of a PUBACK (MQTT 5.0, 3.4.2.1).
func commandRefusal(err error) (code byte, final bool) {
	switch {
	case errors.Is(err, message.ErrNoMatch):
		return 0, true // 0x10, no matching subscribers, is for servers only
	case errors.Is(err, message.ErrNotAllowed):
		return codeNotAuthorized, true
	case errors.Is(err, message.ErrInvalid):
		return codeTopicInvalid, true
	case errors.Is(err, message.ErrTooLarge):
		return codeSpecific, true
	}
	return 0, false
}
