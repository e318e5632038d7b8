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
	deliver         Deliver
	results         *prometheus.CounterVec
	log             *slog.Logger
	guard           *guard    // nil: no rule remembers identities
	quiet           time.Time // until then nothing is logged of commands that are dropped
	// settled is when the devices have had time to connect again after the start. Until then a command that nobody
	// subscribes to waits at the cloud.
	settled time.Time
}

// Deliver hands a command to the local side. Without an error the command is that side's once the ticket is durable: it did not wait for
// the disk, so that the identity of the command can be appended behind what it keeps and reach the disk with it.
type Deliver func(ctx context.Context, m message.Message) (message.Ticket, error)

// Kept is a Deliver for a side that has taken what it is handed when h returns.
func Kept(h message.Handler) Deliver {
	return func(ctx context.Context, m message.Message) (message.Ticket, error) {
		return message.Ticket{}, h(ctx, m)
	}
}

// commandGrace is how long after the start commands that nobody subscribes to are not given up: the cloud kept them while
// the gateway was away, and hands them over before the devices are back.
const commandGrace = 10 * time.Second

// refusalPause is the least time between two lines of the log about commands that are dropped: who repeats them may do so often.
const refusalPause = time.Minute

type commandRule struct {
	from string
	to   pipeline.Template
	stamp
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

	commandReplayed     = "replayed"     // its identity is one that was delivered
	commandRedelivered  = "redelivered"  // likewise, and the cloud broker says that it is a repetition of its own (DUP)
	commandStale        = "stale"        // made too long ago
	commandUnidentified = "unidentified" // it lacks the identity, or the time, that its rule demands
)

func compileCommands(gateway, uplink, protocol string, rules []config.Command) ([]commandRule, error) {
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
		s := newStamp(r)
		if protocol == "3.1.1" {
			s.id, s.time = "", "" // it has no properties
		}
		out = append(out, commandRule{from, to, s})
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
	rule := c.rule(m.Topic)
	if rule == nil {
		return commandUnmapped, nil
	}
	if m.Received.IsZero() {
		m.Received = time.Now()
	}
	if m.Expires.IsZero() && rule.expire > 0 {
		m.Expires = m.Received.Add(rule.expire)
	}
	id := rule.identity(&m)
	if id == "" || rule.window == 0 || c.guard == nil {
		if result := c.unfit(rule, &m, id); result != "" {
			return result, nil
		}
		t, result, err := c.handOver(ctx, rule, m)
		if err == nil {
			err = t.Wait(ctx)
		}
		if err != nil && result == commandDelivered {
			return commandFailed, fmt.Errorf("deliver command: %w", err)
		}
		return result, err
	}
	key := keyOf(m.Topic, id)
	switch c.guard.look(key) {
	case seen:
		return c.repeated(&m), nil
	case unseen:
		if result := c.unfit(rule, &m, id); result != "" {
			return result, nil
		}
		t, result, err := c.handOver(ctx, rule, m)
		if result != commandDelivered {
			return result, err
		}
		c.guard.delivered(key, t, rule.life(&m, time.Now()))
	}
	if err := c.guard.remember(ctx, key); err != nil {
		return commandFailed, err
	}
	return commandDelivered, nil
}

// unfit returns what becomes of a command that is not to be delivered for its age or for want of an identity; empty: it is.
func (c *commands) unfit(rule *commandRule, m *message.Message, id string) string {
	now := time.Now()
	if !m.Expires.IsZero() && now.After(m.Expires) {
		return commandExpired
	}
	result := rule.refuses(m, id, now)
	if result != "" {
		c.dropped(result, m.Topic)
	}
	return result
}

// repeated says what a command is whose identity is known. It is not delivered, and acknowledged, so that the cloud keeps it no longer.
func (c *commands) repeated(m *message.Message) string {
	if m.Dup {
		return commandRedelivered
	}
	c.dropped(commandReplayed, m.Topic)
	return commandReplayed
}

// dropped logs that a command is not delivered, at most once in refusalPause; all of them are counted.
func (c *commands) dropped(result, topic string) {
	if now := time.Now(); now.After(c.quiet) {
		c.quiet = now.Add(refusalPause)
		c.log.Warn("a command is not delivered; others within a minute are only counted", "topic", topic, "result", result)
	}
}

// handOver maps a command and gives it to the local side.
func (c *commands) handOver(ctx context.Context, rule *commandRule, m message.Message) (message.Ticket, string, error) {
	var none message.Ticket
	local, err := c.localTopic(rule, m.Topic)
	if err == nil && message.Reserved(local) {
		err = fmt.Errorf("%w: topic %q belongs to the gateway", message.ErrInvalid, local)
	}
	if err != nil {
		c.log.Warn("a command has no usable local topic", "topic", m.Topic, "err", err)
		return none, commandInvalid, nil
	}
	m.Topic, m.Dup = local, false
	m.Properties = rule.clean(m.Properties)
	if strings.ContainsAny(m.ResponseTopic, "+#") {
		m.ResponseTopic = "" // nobody may be sent one [MQTT-3.3.2-14]
	}
	m.Source = message.Source{Protocol: message.Uplink, Client: c.uplink}
	if m.ID.IsZero() {
		m.ID = message.NewID()
	}
	switch t, err := c.deliver(ctx, m); {
	case err == nil:
		return t, commandDelivered, nil
	case errors.Is(err, message.ErrNoMatch) && time.Now().Before(c.settled):
		return none, commandBusy, fmt.Errorf("deliver command: %w: nobody has subscribed to %q since the start", message.ErrBusy, local)
	case errors.Is(err, message.ErrNoMatch):
		return none, commandNobody, nil
	case errors.Is(err, message.ErrInvalid), errors.Is(err, message.ErrTooLarge), errors.Is(err, message.ErrNotAllowed):
		// It will never be taken; leaving it unacknowledged would only make the cloud send it for ever.
		c.log.Warn("a command was refused by the local side", "topic", local, "err", err)
		return none, commandInvalid, nil
	case errors.Is(err, message.ErrBusy):
		return none, commandBusy, fmt.Errorf("deliver command: %w", err)
	default:
		return none, commandFailed, fmt.Errorf("deliver command: %w", err)
	}
}

// rule returns the first rule that is about a topic of the cloud; nil: none is.
func (c *commands) rule(topic string) *commandRule {
	for i := range c.rules {
		if message.Match(c.rules[i].from, topic) {
			return &c.rules[i]
		}
	}
	return nil
}

// localTopic maps a topic of the cloud.
func (c *commands) localTopic(r *commandRule, topic string) (string, error) {
	return r.to.Expand(pipeline.Values{
		Gateway: c.gateway, Uplink: c.uplink, Topic: topic, Rest: pipeline.Rest(r.from, topic),
		Source: message.Source{Protocol: message.Uplink, Client: c.uplink},
	})
}
