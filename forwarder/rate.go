package forwarder

import (
	"time"

	"tidegate/config"
	"tidegate/forwarder/pipeline"
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

// delay is how long to wait before a packet that costs so much; 0: it may leave.
func (p *pacer) delay(now time.Time, c cost) time.Duration {
	return max(p.messages.delay(now, float64(c.messages)), p.bytes.delay(now, float64(c.bytes)), p.publishes.delay(now, float64(min(c.messages, 1))))
}

// sent takes a packet that was sent off what may be sent.
func (p *pacer) sent(c cost) {
	p.publishes.take(1)
	p.messages.take(float64(c.messages))
	p.bytes.take(float64(c.bytes))
}

// idle forgets what was saved up for something that was not sent.
func (p *pacer) idle() { p.messages.saving, p.bytes.saving, p.publishes.saving = 0, 0, 0 }

// cost is what a record or a batch takes of the bounds. The zero value is that of urgent ones before they leave: they take what is
// there, and what they cost more is a debt.
type cost struct{ messages, bytes int }

// bucket is a token bucket. What costs more than it holds leaves when as much as it costs has come in, so that nothing leaves in advance:
// an urgent record finds the bucket filling and not in debt, except for that of urgent ones.
type bucket struct {
	rate   float64 // per second; 0: no bound
	level  float64
	saving float64 // for what waits to leave: more than it holds otherwise
	at     time.Time
}

// fill adds what has come since the last time.
func (b *bucket) fill(now time.Time) {
	most := max(b.rate*burstSpan.Seconds(), 1, b.saving)
	if b.at.IsZero() {
		b.level = max(b.rate*burstSpan.Seconds(), 1)
	} else {
		b.level = min(b.level+b.rate*now.Sub(b.at).Seconds(), most)
	}
	b.at = now
}

func (b *bucket) delay(now time.Time, n float64) time.Duration {
	if b.rate == 0 {
		return 0
	}
	b.saving = max(b.saving, n)
	b.fill(now)
	if b.level > 0 && b.level >= n {
		return 0
	}
	// A little more than nothing, so that one wait is enough.
	return time.Duration((n-b.level+0.001)/b.rate*float64(time.Second)) + 1
}

func (b *bucket) take(n float64) {
	if b.rate > 0 {
		b.level -= n
	}
}

// price is what the next record of a track is to pay before it leaves.
func (s *stream) price(track int) cost {
	if laneOf(track) == pipeline.Urgent {
		return cost{}
	}
	return cost{1, len(s.current[track].peek().Data)}
}

// paid takes what left off what max_rate allows.
func (s *stream) paid(lane pipeline.Lane, c cost) {
	s.d.pacer.sent(c)
	if lane != pipeline.Urgent {
		s.d.pacer.idle()
	}
}
