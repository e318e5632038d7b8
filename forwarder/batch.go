package forwarder

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/config"
	"tidegate/forwarder/pipeline"
	"tidegate/message"
	"tidegate/message/envelope"
)

// This file stands between dispatch and the link where an uplink has batches: records are gathered, one batch for each lane,
// and many of them leave in one PUBLISH. Each stays a record of its own: it has its own flight, its own place in the
// ledger, and is acknowledged in its own queue. What is gathered and not sent is nowhere but in the buffer; a pass that ends
// forgets it, and the next one may cut the batches differently.
//
// A batch leaves when it is full, or when the lane has nothing more at hand and its oldest member has waited for max_delay.
// The urgent lane does not wait: its batch leaves as soon as nothing more of it is at hand. So a backlog fills batches
// without delay. Neither what the normal lane has in flight holds an urgent record back, as it has room of its own, nor max_rate as far
// as the normal lane has used it up: its batch waits until all that it costs has been allowed (rate.go).

// maxFlying bounds the text and the packed bytes of all batches in flight of one uplink, which stay in memory until they are
// answered: one of them may be larger. urgentFlying is the room of the urgent lane, beside that of the others.
const (
	maxFlying    = 1 << 20
	urgentFlying = 256 << 10
)

// Room that a batch keeps for its header, and for the end of each line.
const (
	headerRoom = 256
	lineRoom   = 24
)

// batching is how an uplink makes batches; nil: it makes none. It belongs to the drain's goroutine.
type batching struct {
	gateway, uplink, topic string
	maxMessages, maxText   int
	maxDelay               time.Duration
	encoder                *envelope.Encoder

	batches, bytes prometheus.Counter // sent

	ratio float64   // of the bytes of the last batches as sent to those of their text, about
	text  []byte    // of the batch that is being sent
	spare []*parcel // to be used again

	size sizing
}

func newBatching(gateway, uplink string, c *config.Batch, m *metrics) (*batching, error) {
	if c == nil {
		return nil, nil
	}
	how, err := envelope.ParseCompression(c.Compress)
	if err != nil {
		return nil, err
	}
	e, err := envelope.NewEncoder(how)
	if err != nil {
		return nil, err
	}
	return &batching{
		gateway: gateway, uplink: uplink, topic: c.Topic, encoder: e,
		batches: m.batches.WithLabelValues(uplink), bytes: m.batchBytes.WithLabelValues(uplink),
		ratio: map[bool]float64{true: 1, false: 0.25}[how == envelope.None], maxMessages: max(c.MaxMessages, 1), maxText: int(c.MaxBytes), size: newSizing(int(c.MaxBytes)), maxDelay: c.MaxDelay.D(),
	}, nil
}

// pass begins a pass over a link.
func (b *batching) pass() *gathering {
	if b == nil {
		return nil
	}
	return &gathering{batching: b}
}

// parcel is one batch.
type parcel struct {
	lane    pipeline.Lane
	members []*flight
	lines   []byte    // of the members, each without its end
	begun   time.Time // when the first member came
	qos     message.QoS
	payload []byte // as it was sent
	size    int    // what it counts in flight
	piece   bool   // a part of one that was refused, with which it shares lines
}

// text is how long the text of the batch gets at most, with n members more and their lines.
func (p *parcel) text(n, lines int) int {
	return headerRoom + len(p.lines) + lines + (len(p.members)+n)*lineRoom
}

// own is how long the text of the batch is.
func (p *parcel) own() int {
	n := headerRoom + len(p.members)*lineRoom
	for _, f := range p.members {
		n += f.to - f.from
	}
	return n
}

// gathering is the state of the batches during one pass.
type gathering struct {
	*batching
	open [pipeline.Lanes]*parcel // nil: nothing is gathered
	full [pipeline.Lanes]*parcel // no more fits: it is the next to leave
	// pieces are parts of a batch that was refused. They are sent one at a time and before anything else, so that among
	// themselves they keep their order. trying: one is in flight.
	pieces []*parcel
	trying *parcel
	flying [pipeline.Lanes]int // bytes of batches in flight
	// wary: so many more batches of the lane are sent one at a time after a refused one, because the good records of the next that is
	// refused would arrive behind what is in flight with it.
	wary [pipeline.Lanes]int
	over bool // the pass ends: nothing more is sent
}

// collect puts a record into the batch of its lane.
func (s *stream) collect(f *flight, m *message.Message) {
	g := s.gather
	if !m.Expires.IsZero() {
		f.life = m.Expires.Sub(m.Received)
	}
	r := envelope.Of(m, SequenceText(f.epoch, f.lane.String(), f.seq))
	p := g.open[f.lane]
	if p == nil {
		p = g.begin(f.lane)
	}
	from := len(p.lines)
	p.lines = r.AppendOpen(p.lines)
	if n := headerRoom + len(p.lines) - from + lineRoom; n > envelope.DefaultMaxBytes {
		if p.lines = p.lines[:from]; from == 0 {
			g.open[f.lane] = nil
		}
		s.bury(f, fmt.Sprintf("its line in a batch would have %d bytes, and decoders take %d", n, envelope.DefaultMaxBytes))
		return
	}
	if len(p.members) > 0 && p.text(1, 0) > g.size.limit {
		next := g.begin(f.lane)
		next.lines = append(next.lines, p.lines[from:]...)
		p.lines = p.lines[:from]
		g.full[f.lane], p, from = p, next, 0
	}
	f.from, f.to, f.exactly = from, len(p.lines), m.QoS == 2
	f.lease.refs++
	p.members = append(p.members, f)
	p.qos = max(p.qos, m.QoS, 1)
}

// begin starts a batch.
func (g *gathering) begin(lane pipeline.Lane) *parcel {
	p := &parcel{}
	if n := len(g.spare); n > 0 {
		p, g.spare = g.spare[n-1], g.spare[:n-1]
	}
	now := time.Now()
	g.size.grow(now)
	*p = parcel{lane: lane, begun: now, lines: p.lines[:0], payload: p.payload[:0], members: p.members[:0]}
	g.open[lane] = p
	return p
}

// recycle keeps the memory of a batch that was answered.
func (g *gathering) recycle(p *parcel) {
	clear(p.members)
	if !p.piece && len(g.spare) < 8 && cap(p.lines)+cap(p.payload) <= 2*g.maxText+64<<10 {
		g.spare = append(g.spare, p)
	}
}

// due returns the batch that is to leave now. next is the lane whose record is at hand, if there is one.
func (s *stream) due(next pipeline.Lane, more bool) *parcel {
	g, room := s.gather, s.gather.maxMessages
	if s.limit > 0 {
		room = min(room, s.limit-s.window.open)
	}
	if s.careful {
		room = 1 // what follows must be about one record
	}
	for lane := pipeline.Lanes; lane > 0; {
		lane--
		p := g.open[lane]
		switch {
		case g.full[lane] != nil:
			return g.full[lane]
		case p != nil && (len(p.members) >= room || p.text(1, 0) >= g.size.limit):
			return p
		case more && next == lane:
			return nil // it fills, and goes before a lower lane
		case p == nil:
		case lane == pipeline.Urgent || time.Since(p.begun) >= g.maxDelay:
			return p
		}
	}
	return nil
}

// delay is how long until a batch is due for its age, if one is being gathered.
func (g *gathering) delay() (time.Duration, bool) {
	if g == nil || g.open[pipeline.Normal] == nil {
		return 0, false
	}
	return max(g.maxDelay-time.Since(g.open[pipeline.Normal].begun), 0), true
}

// stepBatch is step where records are gathered.
func (s *stream) stepBatch(ctx context.Context) bool {
	track, more := s.pick()
	p := s.due(laneOf(track), more)
	switch {
	case p == nil && !more:
		s.flushAcks()
		return s.wait(ctx)
	case p == nil:
		return s.sendNext(ctx, track)
	}
	if d := s.holdBack(p); d > 0 {
		return s.idle(ctx, d)
	}
	return s.send(ctx, p)
}

// holdBack is how long a batch has to wait before it may leave, unless an answer comes first.
func (s *stream) holdBack(p *parcel) time.Duration {
	g, room := s.gather, maxFlying
	if p.lane == pipeline.Urgent {
		room = urgentFlying
	}
	// A piece is the only one in flight of a refused batch, see stepPiece.
	if flying := g.flying[p.lane]; !p.piece && flying > 0 && (g.wary[p.lane] > 0 || flying+len(p.lines) > room) {
		return time.Hour
	}
	if !s.d.pacer.bounds() {
		return 0
	}
	var price cost
	if p.lane != pipeline.Urgent {
		price = cost{len(p.members), len(g.topic) + int(float64(p.own())*g.ratio)}
	}
	return s.d.pacer.delay(time.Now(), price)
}

// send takes a batch off those that are gathered and sends it.
func (s *stream) send(ctx context.Context, p *parcel) bool {
	if s.gather.full[p.lane] == p {
		s.gather.full[p.lane] = nil
	} else {
		s.gather.open[p.lane] = nil
	}
	return s.ship(ctx, p)
}

// ship sends a batch.
func (s *stream) ship(ctx context.Context, p *parcel) bool {
	g := s.gather
	if err := s.pack(p); err != nil {
		for _, f := range p.members {
			s.letGo(f)
		}
		s.end(later, err)
		return true
	}
	if len(p.members) == 0 { // all of them expired
		g.answered(p)
		g.recycle(p)
		return true
	}
	for _, f := range p.members {
		if !f.aboard {
			s.launch(f)
		}
	}
	if s.careful {
		s.sent = time.Now()
	}
	p.members[0].batched = 0
	if len(p.members) > 1 {
		p.members[0].batched = p.own()
	}
	p.size = len(p.lines) + len(p.payload)
	g.flying[p.lane] += p.size
	m := message.Message{
		Topic: g.topic, Payload: p.payload, QoS: p.qos, ContentType: g.encoder.Compression().ContentType(),
		Received: p.begun, Source: message.Source{Protocol: message.Self, Client: g.gateway},
	}
	n, exactly := len(p.members), 0 // the answer may come before Send returns
	for _, f := range p.members {
		if f.exactly {
			exactly++
		}
	}
	answer := &flight{parcel: p}
	err := s.link.Send(ctx, m, Identity{Exactly: exactly}, func(err error) { s.answers.put(answer, err) })
	switch {
	case err == nil:
		s.paid(p.lane, cost{n, len(g.topic) + len(m.Payload)})
		g.batches.Inc()
		g.bytes.Add(float64(len(m.Payload)))
		s.d.inFlight.Store(int64(s.window.open))
	case judge(err) != gone:
		s.answers.put(answer, err)
	default:
		g.answered(p)
		s.landAll(p)
		return s.unusable(ctx, err)
	}
	return true
}

// pack writes the payload of a batch, without the members that have expired since they were gathered.
func (s *stream) pack(p *parcel) error {
	g := s.gather
	alive := p.members[:0]
	for _, f := range p.members {
		age, expired := s.d.out.age(f.rec)
		if expired {
			s.leave(f, placeExpired)
			s.letGo(f)
			continue
		}
		if f.life > 0 {
			// What is left of its expiry is counted when it leaves (MQTT 5.0, 3.3.2.3.3), and never nothing.
			f.expiry = uint32(min(max((f.life-age+time.Second-1)/time.Second, 1), 1<<32-1))
		}
		alive = append(alive, f)
	}
	p.members = alive
	g.text = envelope.AppendHeader(slices.Grow(g.text[:0], p.own()), g.gateway, g.uplink, len(alive))
	for _, f := range alive {
		g.text = envelope.Finish(append(g.text, p.lines[f.from:f.to]...), f.expiry)
	}
	var err error
	p.payload, err = g.encoder.Append(p.payload[:0], g.text)
	g.ratio += (float64(len(p.payload))/float64(len(g.text)) - g.ratio) / 4
	if cap(g.text) > g.maxText+64<<10 {
		g.text = nil
	}
	if err != nil {
		return fmt.Errorf("make a batch: %w", err)
	}
	return nil
}

// letGo drops a member that is not sent.
func (s *stream) letGo(f *flight) {
	if f.aboard {
		s.land(f)
		return
	}
	f.lease.feed.release(f.lease)
}

func (s *stream) landAll(p *parcel) {
	for _, f := range p.members {
		s.land(f)
	}
	s.gather.recycle(p)
}

// answered notes that a batch is in flight no more.
func (g *gathering) answered(p *parcel) {
	g.flying[p.lane] -= p.size
	p.size = 0
	if p.piece {
		g.trying = nil
	}
}

// forget gives up what was gathered and is not in flight, at the end of a pass.
func (s *stream) forget() {
	g := s.gather
	if g == nil {
		return
	}
	g.over = true
	for _, p := range g.pieces {
		for _, f := range p.members {
			s.land(f)
		}
	}
	g.pieces = nil
	g.open, g.full = [pipeline.Lanes]*parcel{}, [pipeline.Lanes]*parcel{}
}
