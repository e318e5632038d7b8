package forwarder

import (
	"time"

	"tidegate/config"
)

// burstSpan is how long a bound may be saved up: what it allows in that time leaves at once after a pause.
const burstSpan = 100 * time.Millisecond

// pacer bounds what a drain sends, in messages, bytes and PUBLISH packets. The zero value bounds nothing.
type pacer struct{ messages, bytes, publishes bucket }

func newPacer(c config.Uplink) pacer {
	return pacer{
		messages: bucket{rate: c.MaxRate.Messages.PerSecond()}, bytes: bucket{rate: c.MaxRate.Bytes.PerSecond()},
		publishes: bucket{rate: c.Limits.MaxPublishes.PerSecond()},
	}
}

// bounds reports whether there is a bound at all.
func (p *pacer) bounds() bool { return p.messages.rate > 0 || p.bytes.rate > 0 || p.publishes.rate > 0 }

// delay is how long to wait before the next record; 0: it may leave.
func (p *pacer) delay(now time.Time) time.Duration {
	return max(p.messages.delay(now), p.bytes.delay(now), p.publishes.delay(now))
}

// sent takes one packet with that many messages, of so many bytes in all, off what may be sent.
func (p *pacer) sent(messages, bytes int) {
	p.publishes.take(1)
	p.messages.take(float64(messages))
	p.bytes.take(float64(bytes))
}

// bucket is a token bucket that may go into debt: a record larger than all it holds leaves, and what follows waits for it.
type bucket struct {
	rate  float64 // per second; 0: no bound
	level float64
	at    time.Time
}

// fill adds what has come since the last time.
func (b *bucket) fill(now time.Time) {
	most := max(b.rate*burstSpan.Seconds(), 1)
	if b.at.IsZero() {
		b.level = most
	} else {
		b.level = min(b.level+b.rate*now.Sub(b.at).Seconds(), most)
	}
	b.at = now
}

func (b *bucket) delay(now time.Time) time.Duration {
	if b.rate == 0 {
		return 0
	}
	b.fill(now)
	if b.level > 0 {
		return 0
	}
	// A little more than nothing, so that one wait is enough.
	return time.Duration((-b.level+0.001)/b.rate*float64(time.Second)) + 1
}

func (b *bucket) take(n float64) {
	if b.rate > 0 {
		b.level -= n
	}
}
