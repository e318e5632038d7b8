package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/config"
	"tidegate/forwarder/pipeline"
	"tidegate/message"
)

// commands maps messages of one cloud broker to local topics and hands them to the local side. They are delivered and
// never ingested, so a command cannot go up again, whatever the routes say.
type commands struct {
	gateway, uplink string
	rules           []commandRule
	deliver         message.Handler
	results         *prometheus.CounterVec
	log             *slog.Logger
	// settled is when the devices have had time to connect again after the start. Until then a command that nobody
	// subscribes to waits at the cloud.
	settled time.Time
}

// commandGrace is how long after the start commands that nobody subscribes to are not given up: the cloud kept them while
// the gateway was away, and hands them over before the devices are back.
const commandGrace = 10 * time.Second

type commandRule struct {
	from string
	to   pipeline.Template
}

// What became of a command; the values of the metric label "result".
const (
	commandDelivered = "delivered"
	commandNobody    = "nobody"   // nobody subscribes to the local topic
	commandUnmapped  = "unmapped" // no rule is about its topic
	commandInvalid   = "invalid"  // the local topic is not one a command may have
	commandExpired   = "expired"
	commandBusy      = "busy" // not taken now; it will be offered again
	commandFailed    = "failed"
)

func compileCommands(gateway, uplink string, rules []config.Command) ([]commandRule, error) {
	var out []commandRule
	for i, r := range rules {
		from := strings.NewReplacer("{gateway}", gateway, "{uplink}", uplink).Replace(r.From)
		if err := message.ValidFilter(from); err != nil {
			return nil, fmt.Errorf("compile command %d of uplink %s: %w", i+1, uplink, err)
		}
		text := r.To
		if text == "" {
			text = "{topic}"
		}
		to, err := pipeline.ParseTemplate(text)
		if err != nil {
			return nil, fmt.Errorf("compile command %d of uplink %s: %w", i+1, uplink, err)
		}
		out = append(out, commandRule{from, to})
	}
	return out, nil
}

// accept is the message.Handler of an uplink: nil means that the command is this side's and may be acknowledged.
func (c *commands) accept(ctx context.Context, m message.Message) error {
	result, err := c.handle(ctx, m)
	c.results.WithLabelValues(c.uplink, result).Inc()
	return err
}

func (c *commands) handle(ctx context.Context, m message.Message) (string, error) {
	if !m.Expires.IsZero() && time.Now().After(m.Expires) {
		return commandExpired, nil
	}
	local, ok, err := c.localTopic(m.Topic)
	if !ok {
		return commandUnmapped, nil
	}
	if err == nil && message.Reserved(local) {
		err = fmt.Errorf("%w: topic %q belongs to the gateway", message.ErrInvalid, local)
	}
	if err != nil {
		c.log.Warn("a command has no usable local topic", "topic", m.Topic, "err", err)
		return commandInvalid, nil
	}
	m.Topic = local
	m.Source = message.Source{Protocol: message.Uplink, Client: c.uplink}
	if m.ID.IsZero() {
		m.ID = message.NewID()
	}
	if m.Received.IsZero() {
		m.Received = time.Now()
	}
	switch err := c.deliver(ctx, m); {
	case err == nil:
		return commandDelivered, nil
	case errors.Is(err, message.ErrNoMatch) && time.Now().Before(c.settled):
		return commandBusy, fmt.Errorf("deliver command: %w: nobody has subscribed to %q since the start", message.ErrBusy, local)
	case errors.Is(err, message.ErrNoMatch):
		return commandNobody, nil
	case errors.Is(err, message.ErrInvalid), errors.Is(err, message.ErrTooLarge), errors.Is(err, message.ErrNotAllowed):
		// It will never be taken; leaving it unacknowledged would only make the cloud send it for ever.
		c.log.Warn("a command was refused by the local side", "topic", local, "err", err)
		return commandInvalid, nil
	case errors.Is(err, message.ErrBusy):
		return commandBusy, fmt.Errorf("deliver command: %w", err)
	default:
		return commandFailed, fmt.Errorf("deliver command: %w", err)
	}
}

// localTopic maps a topic of the cloud by the first rule that is about it.
func (c *commands) localTopic(topic string) (local string, ok bool, err error) {
	for _, r := range c.rules {
		if message.Match(r.from, topic) {
			local, err = r.to.Expand(pipeline.Values{
				Gateway: c.gateway, Uplink: c.uplink, Topic: topic, Rest: pipeline.Rest(r.from, topic),
				Source: message.Source{Protocol: message.Uplink, Client: c.uplink},
			})
			return local, true, err
		}
	}
	return "", false, nil
}
