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
	commandRetryMost  = 5 * time.Second
)

// takeCommands hands the commands of a connection over, one after the other, until ctx ends, which is with the
// connection. What is not acknowledged then is sent again by the cloud over the next connection.
func (c *Client) takeCommands(ctx context.Context, cn conn, handle message.Handler) {
	if handle == nil {
		handle = func(context.Context, message.Message) error { return message.ErrNoMatch }
	}
	for {
		select {
		case cmd := <-cn.commands():
			cmd.m.Source = message.Source{Protocol: message.Uplink, Client: c.settings.name}
			code, ok := c.handOver(ctx, cmd.m, handle)
			if !ok {
				return
			}
			cn.acknowledge(cmd, code)
		case <-ctx.Done():
			return
		}
	}
}

// handOver offers one command until it is taken or refused for good; it returns the reason code of the acknowledgement.
// False means that ctx ended first.
func (c *Client) handOver(ctx context.Context, m message.Message, handle message.Handler) (code byte, ok bool) {
	for pause := commandRetryFirst; ; pause = min(2*pause, commandRetryMost) {
		err := handle(ctx, m)
		if err == nil {
			c.metrics.commands.WithLabelValues("accepted").Inc()
			return 0, true
		}
		if code, final := commandRefusal(err); final {
			c.metrics.commands.WithLabelValues("refused").Inc()
			c.log.Warn("command refused", "topic", m.Topic, "error", err)
			return code, true
		}
		c.metrics.commands.WithLabelValues("retried").Inc()
		if pause == commandRetryFirst {
			c.log.Warn("command waits", "topic", m.Topic, "error", err)
		}
		if !sleep(ctx, pause/2+rand.N(pause/2)) { //nolint:gosec // jitter is no secret
			return 0, false
		}
	}
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
