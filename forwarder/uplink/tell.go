package uplink

import (
	"context"
	"errors"
	"maps"
	"slices"

	"tidegate/message"
)

// Tell keeps what the gateway says about one of its parts current at the cloud: m is sent now if there is a connection, and
// again at the beginning of each one. A later message on the same topic takes its place. Nothing of it is kept on disk: it is
// about this moment. m is retained and not changed afterwards.
func (c *Client) Tell(m message.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told == nil {
		c.told = map[string]message.Message{}
	}
	c.told[m.Topic] = m
	close(c.toldChanged)
	c.toldChanged = make(chan struct{})
}

// tell sends what Tell keeps over one connection, until that or ctx ends.
func (c *Client) tell(ctx context.Context, cn conn) {
	sent := map[string]message.ID{}
	for {
		c.mu.Lock()
		changed, told := c.toldChanged, maps.Clone(c.told)
		c.mu.Unlock()
		for _, topic := range slices.Sorted(maps.Keys(told)) {
			m := told[topic]
			if sent[topic] == m.ID {
				continue
			}
			sent[topic] = m.ID
			err := cn.send(ctx, m, Identity{}, func(err error) {
				if err != nil && !errors.Is(err, ErrDisconnected) {
					c.log.Warn("status message refused", "topic", topic, "error", err)
				}
			})
			if err != nil {
				return
			}
		}
		select {
		case <-changed:
		case <-cn.lost():
			return
		case <-ctx.Done():
			return
		}
	}
}
