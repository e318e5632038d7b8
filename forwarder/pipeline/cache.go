package pipeline

import (
	"strings"
	"sync"
)

// Bounds of the remembered results: beyond cacheTopics all are forgotten and remembering starts again, and topics longer
// than cacheTopicBytes are worked out every time. Together they keep the memory to a few MiB in the worst case.
const (
	cacheTopics     = 4096
	cacheTopicBytes = 512
)

// cache remembers which routes match a topic and the topics that result, where those depend on the topic alone.
type cache struct {
	mu   sync.RWMutex
	hits map[string][]hit
}

func (c *cache) get(topic string) ([]hit, bool) {
	c.mu.RLock()
	hits, ok := c.hits[topic]
	c.mu.RUnlock()
	return hits, ok
}

// put remembers what find makes of topic. The topic is copied first: it may be a part of a whole received packet, which
// would stay in memory as long as the cache holds it.
func (c *cache) put(topic string, find func(string) []hit) []hit {
	if len(topic) > cacheTopicBytes {
		return find(topic)
	}
	topic = strings.Clone(topic)
	hits := find(topic)
	c.mu.Lock()
	if c.hits == nil || len(c.hits) >= cacheTopics {
		c.hits = make(map[string][]hit)
	}
	c.hits[topic] = hits
	c.mu.Unlock()
	return hits
}
