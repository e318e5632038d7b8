// Package forwarder is everything between "a message came in" and "the cloud has it", and the way back.
//
// The first half is Ingest (ingest.go): routes make copies of a message (package pipeline), and the copies are appended to
// the buffer. The second half is one drain per uplink (drain.go, one pass over a connection in stream.go): it reads what
// is on disk, sends it in order, and lets go of a record when the cloud acknowledged that very record. The halves meet only
// at the disk. Where an uplink has batches, many records leave together (batch.go). What the cloud refuses goes to the dead
// letters (deadletter.go, suspect.go; resend.go sends them again), what will never come is announced (gaps.go), and every copy
// is accounted for (ledger.go). Commands of the cloud take the way back (commands.go).
//
// The package knows no MQTT client: uplink.go declares what it needs of one. Start reading at Forwarder.
package forwarder

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/forwarder/pipeline"
)

// Forwarder takes messages in and sends their copies to the cloud brokers.
type Forwarder struct {
	gateway  string
	log      *buffer.Log
	logger   *slog.Logger
	plan     atomic.Pointer[plan]
	ledger   *ledger
	metrics  *metrics
	receipts *receipts
	scratch  sync.Pool
	damage   chan struct{} // capacity 1: some lane lost records
	lastPos  atomic.Uint64 // of the last append

	// changing is held while routes and uplinks change, and guards parked and work. It is taken before mu.
	changing sync.Mutex
	parked   map[string]*output // of uplinks that were removed, by name
	work     *work              // nil: Run does not work
	mu       sync.Mutex         // guards outs and lanes
	outs     []*output          // as in plan
	lanes    []*lane            // of all outputs, and of uplinks that are configured no more
}

// output is one uplink with its queues.
type output struct {
	name   string
	index  int
	uplink Uplink
	log    *buffer.Log
	bound  *buffer.Bound
	maxAge atomic.Int64 // of a record, a time.Duration; 0: without end
	queues [pipeline.Lanes]*buffer.Queue
	lanes  [pipeline.Lanes]*lane
	dead   *deadLetters
	gaps   *gaps
	rules  []commandRule
	guard  *guard // of the rules; nil: none remembers identities
	drain  *drain
	ledger *ledger
}

// New declares the queues of every uplink in the log and compiles the routes. links holds the connection of each
// configured uplink by its name. It starts nothing; Run does. The log stays the caller's, who closes it after Run returned.
func New(c *config.Config, log *buffer.Log, links map[string]Uplink, logger *slog.Logger, reg prometheus.Registerer) (*Forwarder, error) {
	names := make([]string, 0, len(c.Uplinks))
	for name := range c.Uplinks {
		names = append(names, name)
	}
	slices.Sort(names)
	chain, err := pipeline.Compile(c.Gateway.ID, c.Routes, names)
	if err != nil {
		return nil, fmt.Errorf("forwarder: %w", err)
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	f := &Forwarder{
		gateway: c.Gateway.ID, log: log, logger: logger.With("part", "forwarder"), ledger: newLedger(names),
		damage: make(chan struct{}, 1), parked: map[string]*output{},
	}
	f.scratch.New = func() any { return new(scratch) }
	if f.metrics, err = newMetrics(reg, f.ledger); err != nil {
		return nil, err
	}
	f.receipts = &receipts{log: log, observe: f.metrics.ingest.Observe}
	for _, name := range names {
		link := links[name]
		if link == nil {
			return nil, fmt.Errorf("forwarder: uplink %s has no connection", name)
		}
		o, err := f.newOutput(name, c.Uplinks[name], link, nil)
		if err != nil {
			return nil, fmt.Errorf("forwarder: uplink %s: %w", name, err)
		}
		f.outs = append(f.outs, o)
	}
	f.plan.Store(newPlan(chain, f.outs, f.ledger))
	if err := f.adoptOrphans(); err != nil {
		return nil, err
	}
	return f, nil
}

// adoptOrphans puts records that no configured uplink will send into the ledger, under the uplink they were for.
func (f *Forwarder) adoptOrphans() error {
	for _, q := range f.log.Queues() {
		name, kind, ok := splitLaneName(q.Name)
		if !ok || q.Declared || q.Records == 0 {
			continue
		}
		f.logger.Warn("the buffer holds records of an uplink that is not configured; they stay until they are purged",
			"queue", q.Name, "records", q.Records)
		l := newLane(kind, f.ledger.index(name), f.ledger, nil, f.damage)
		if err := l.open(f.log, q.Name, nil, 0); err != nil {
			return fmt.Errorf("forwarder: records of uplink %s: %w", name, err)
		}
		f.lanes = append(f.lanes, l)
	}
	return nil
}

// laneName is the name of a lane's queue in the log.
func laneName(uplink string, kind pipeline.Lane) string {
	return "uplink/" + uplink + "/" + kind.String()
}

// splitLaneName reads what laneName wrote.
func splitLaneName(queue string) (uplink string, kind pipeline.Lane, ok bool) {
	for kind := range pipeline.Lanes {
		rest, inLane := strings.CutSuffix(queue, "/"+kind.String())
		if name, ok := strings.CutPrefix(rest, "uplink/"); ok && inLane && name != "" {
			return name, kind, true
		}
	}
	return "", 0, false
}

// newOutput makes the output of an uplink. before is an earlier one of the same uplink, whose queues go on; nil: its queues are
// declared.
func (f *Forwarder) newOutput(name string, c config.Uplink, link Uplink, before *output) (*output, error) {
	o := &output{name: name, index: f.ledger.index(name), uplink: link, log: f.log, ledger: f.ledger}
	logger := f.logger.With("uplink", name)
	var err error
	if o.rules, err = compileCommands(f.gateway, name, c.Protocol, c.Commands); err != nil {
		return nil, err
	}
	o.drain = &drain{
		out: o, gateway: f.gateway, address: f.gateway + "/" + name, log: logger, metrics: f.metrics, times: defaultTimes(),
		pacer: newPacer(c), liveFirst: c.LiveFirst, blame: blame{several: len(c.Servers) > 1},
	}
	if o.drain.batching, err = newBatching(f.gateway, name, c.Batch, f.metrics); err != nil {
		return nil, err
	}
	if before == nil {
		if err := f.openQueues(o, c.Buffer, logger); err != nil {
			return o, err
		}
		return o, o.openGuard(f.metrics)
	}
	o.bound, o.queues, o.lanes, o.dead, o.gaps, o.guard = before.bound, before.queues, before.lanes, before.dead, before.gaps, before.guard
	o.maxAge.Store(before.maxAge.Load())
	if err := o.openGuard(f.metrics); err != nil {
		return o, err
	}
	return o, o.setBounds(c.Buffer)
}

// openQueues declares the queues of an uplink. Those that adoptOrphans found become its own.
func (f *Forwarder) openQueues(o *output, c config.Buffer, logger *slog.Logger) error {
	o.bound = f.log.NewBound(boundOf(c))
	o.maxAge.Store(int64(c.MaxAge))
	o.gaps = newGaps(f.metrics.gapsLost.WithLabelValues(o.name))
	if err := o.gaps.open(f.log, gapsName(o.name), logger); err != nil {
		return err
	}
	// The normal lane joins the bound first, so it is evicted first.
	for kind := range pipeline.Lanes {
		l := f.orphan(o.index, kind)
		if l == nil {
			l = newLane(kind, o.index, f.ledger, o.gaps, f.damage)
			if err := l.open(f.log, laneName(o.name, kind), o.bound, c.MaxAge.D()); err != nil {
				return err
			}
			f.mu.Lock()
			f.lanes = append(f.lanes, l)
			f.mu.Unlock()
			if f.work != nil { // count has begun without it
				_ = l.countRecovered(f.work.sending)
			}
		} else if err := l.adopt(f.log, o.gaps, o.bound, c.MaxAge.D()); err != nil {
			return err
		}
		o.queues[kind], o.lanes[kind] = l.queue, l
		o.gaps.take(l)
	}
	o.gaps.settle(o.lanes[:])
	o.dead = &deadLetters{log: f.log, logger: logger, evicted: f.metrics.deadLost.WithLabelValues(o.name)}
	return o.dead.open(deadName(o.name))
}

// orphan returns the lane of an uplink that was not configured so far; nil when there is none.
func (f *Forwarder) orphan(uplink int, kind pipeline.Lane) *lane {
	for _, l := range f.everyLane() {
		if l.uplink == uplink && l.kind == kind {
			return l
		}
	}
	return nil
}

// everyLane returns the lanes there are.
func (f *Forwarder) everyLane() []*lane {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.lanes)
}

// outputs returns the outputs there are.
func (f *Forwarder) outputs() []*output {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.outs)
}

// output returns the output of an uplink; nil when there is none.
func (f *Forwarder) output(name string) *output {
	for _, o := range f.outputs() {
		if o.name == name {
			return o
		}
	}
	return nil
}

// boundOf returns what a buffer may keep.
func boundOf(c config.Buffer) (maxBytes int64, p buffer.Policy) {
	if c.WhenFull == "refuse" {
		p = buffer.Refuse
	}
	if maxBytes = int64(c.MaxBytes); maxBytes <= 0 {
		maxBytes = defaultMaxBytes
	}
	return maxBytes, p
}

// maxBytesOf is the bound of an uplink's buffer.
func maxBytesOf(c config.Uplink) int64 {
	most, _ := boundOf(c.Buffer)
	return most
}

// Bounds is what the bounds of all uplinks of c allow together, for buffer.Options.
func Bounds(c *config.Config) (total int64) {
	for _, u := range c.Uplinks {
		total += maxBytesOf(u) + deadBytes + gapBytes + identityBytes
	}
	return total
}

// setBounds changes what the buffer of an uplink keeps.
func (o *output) setBounds(c config.Buffer) error {
	o.bound.Set(boundOf(c))
	return o.setMaxAge(c.MaxAge.D())
}

// setMaxAge changes how long records are kept; 0: without end.
func (o *output) setMaxAge(d time.Duration) error {
	if o.maxAge.Swap(int64(d)) == int64(d) {
		return nil
	}
	for _, l := range o.lanes {
		if err := l.declare(o.log, l.queue.Name(), o.bound, d); err != nil {
			return err
		}
	}
	return nil
}

// age tells how old a record is that can expire, and whether it did.
func (o *output) age(rec *buffer.Rec) (age time.Duration, expired bool) {
	life, most := rec.Lifetime(), time.Duration(o.maxAge.Load())
	if life == 0 && most == 0 {
		return 0, false
	}
	age = o.log.Age(rec)
	return age, life > 0 && age >= life || most > 0 && age >= most
}

// defaultMaxBytes stands in for a bound that the configuration left open.
const defaultMaxBytes = 512 << 20

// count puts what was found on disk into the ledger, one lane after the other, and then what the disk loses.
func (f *Forwarder) count(ctx context.Context) {
	for _, l := range f.everyLane() {
		if err := l.countRecovered(ctx); err != nil {
			f.logger.Warn("the ledger does not show all recovered records", "uplink", f.ledger.names()[l.uplink], "err", err)
		}
	}
	for {
		open := false
		for _, l := range f.everyLane() {
			open = !l.attribute(ctx) || open
		}
		if open {
			if !pause(ctx, attributeEvery) {
				return
			}
			continue
		}
		select {
		case <-f.damage:
		case <-ctx.Done():
			return
		}
	}
}

// Ledger shows where every copy is.
func (f *Forwarder) Ledger() Ledger { return f.ledger.snapshot() }
