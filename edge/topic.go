package edge

import (
	"fmt"
	"strings"

	"tidegate/access"
	"tidegate/message"
)

// maxLevels bounds the levels of a topic name or filter. Each is a node of the trees of subscriptions and retained messages, and
// 65,535 bytes would hold as many of them.
const maxLevels = 200

// validName is message.ValidName with a bound on the levels.
func validName(topic string) error {
	if err := message.ValidName(topic); err != nil {
		return err
	}
	return fewLevels(topic)
}

// validFilter is message.ValidFilter with a bound on the levels.
func validFilter(filter string) error {
	if err := message.ValidFilter(filter); err != nil {
		return err
	}
	return fewLevels(filter)
}

// Bounded reports why the broker takes a topic name, or for access.Subscribe a filter, from nobody, although it is valid and rules may
// allow it.
func Bounded(action access.Action, topic string) error {
	if action == access.Subscribe && len(topic) > maxFilterBytes {
		return fmt.Errorf("%w: a filter of %d bytes, at most %d", message.ErrInvalid, len(topic), maxFilterBytes)
	}
	return fewLevels(topic)
}

func fewLevels(topic string) error {
	if n := strings.Count(topic, "/") + 1; n > maxLevels {
		return fmt.Errorf("%w: a topic of %d levels, at most %d", message.ErrInvalid, n, maxLevels)
	}
	return nil
}
