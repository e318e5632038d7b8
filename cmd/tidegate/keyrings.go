package main

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"tidegate/admin/metrics"
	"tidegate/buffer"
	"tidegate/config"
)

// keyrings are the keys with which the open log reads and writes the queues of each uplink, and what else of the uplinks the log was
// opened with. The log asks for the keys of a queue once, so those of one that it knows cannot be changed.
type keyrings struct {
	mu      sync.Mutex
	uplinks map[string]config.Secret
	broker  config.Secret // of the sessions
	sync    time.Duration
}

// open notes the configuration with which the log is opened.
func (k *keyrings) open(c *config.Config) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.uplinks = map[string]config.Secret{}
	for name, u := range c.Uplinks {
		k.uplinks[name] = u.Buffer.EncryptionKey
	}
	k.broker, k.sync = c.Broker.EncryptionKey, strictestSync(c.Uplinks)
}

// add notes an uplink that is added. It stays when the uplink is removed: its queues do.
func (k *keyrings) add(name string, u config.Uplink) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.uplinks[name] = u.Buffer.EncryptionKey
}

// of gives the keys of a queue to the log.
func (k *keyrings) of(queue string) ([]buffer.Key, bool) {
	name, _, _ := metrics.SplitQueue(queue)
	k.mu.Lock()
	defer k.mu.Unlock()
	c := &config.Config{Broker: config.Broker{EncryptionKey: k.broker}}
	if secret, ok := k.uplinks[name]; ok {
		c.Uplinks = map[string]config.Uplink{name: {Buffer: config.Buffer{EncryptionKey: secret}}}
	}
	return keysOf(c)(queue)
}

// mayAdd returns why an uplink cannot be added to the log while that is open.
func (k *keyrings) mayAdd(log *buffer.Log, name string, u config.Uplink) error {
	k.mu.Lock()
	known, ok := k.uplinks[name]
	k.mu.Unlock()
	left := !ok && slices.ContainsFunc(log.Queues(), func(q buffer.QueueStats) bool {
		uplink, _, _ := metrics.SplitQueue(q.Name)
		return uplink == name && (u.Buffer.EncryptionKey.IsSet() || len(q.Keys) > 0)
	})
	switch {
	case left, ok && !config.Same(known, u.Buffer.EncryptionKey):
		return fmt.Errorf("uplink.%s.buffer.encryption_key: the buffer holds a queue of this uplink from before, and its key can only be changed at the start", name)
	case time.Duration(u.Buffer.Sync) < k.sync:
		return fmt.Errorf("uplink.%s.buffer.sync: the buffer was opened with %v at risk, which can only be made less at the start", name, k.sync)
	}
	return nil
}
