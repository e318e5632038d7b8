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
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/forwarder/pipeline"
)

// Forwarder takes messages in and sends their copies to the cloud brokers.
type Forwarder struct {
	gateway  string
	log      *buffer.Log
	logger   *slog.Logger
	chain    *pipeline.Chain
	outs     []*output
	ledger   *ledger
	lanes    []*lane   // of all outputs, and of uplinks that are configured no more
	cells    [][]*cell // by route and uplink, for what is configured
	metrics  *metrics
	receipts *receipts
	scratch  sync.Pool
	damage   chan struct{} // capacity 1: some lane lost records
	lastPos  atomic.Uint64 // of the last append
}

// output is one uplink with its queues.
type output struct {
	name   string
	index  int
	uplink Uplink
	log    *buffer.Log
	bound  *buffer.Bound
	maxAge time.Duration // of a record; 0: without end
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
		gateway: c.Gateway.ID, log: log, logger: logger.With("part", "forwarder"), chain: chain, ledger: newLedger(names),
		damage: make(chan struct{}, 1),
	}
	f.scratch.New = func() any { return new(scratch) }
	if f.metrics, err = newMetrics(reg, f.ledger); err != nil {
		return nil, err
	}
	f.receipts = &receipts{log: log, observe: f.metrics.ingest.Observe}
	for _, r := range chain.Routes() {
		row := make([]*cell, len(names))
		for _, up := range r.Targets() {
			row[up] = f.ledger.cell([]byte(r.Name), up, r.Lane)
		}
		f.cells = append(f.cells, row)
	}
	for i, name := range names {
		link := links[name]
		if link == nil {
			return nil, fmt.Errorf("forwarder: uplink %s has no connection", name)
		}
		o, err := f.newOutput(i, name, c.Uplinks[name], link)
		if err != nil {
			return nil, fmt.Errorf("forwarder: uplink %s: %w", name, err)
		}
		f.outs = append(f.outs, o)
	}
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
		index := slices.Index(f.ledger.uplinks, name)
		if index < 0 {
			index = len(f.ledger.uplinks)
			f.ledger.uplinks = append(f.ledger.uplinks, name)
		}
		l := newLane(kind, index, f.ledger, nil, f.damage)
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

// maxBytes is the bound of an uplink's buffer.
func maxBytes(c config.Uplink) int64 {
	if c.Buffer.MaxBytes > 0 {
		return int64(c.Buffer.MaxBytes)
	}
	return defaultMaxBytes
}

// newOutput declares the queues of an uplink.
func (f *Forwarder) newOutput(index int, name string, c config.Uplink, link Uplink) (*output, error) {
	o := &output{
		name: name, index: index, uplink: link, log: f.log, maxAge: c.Buffer.MaxAge.D(), ledger: f.ledger,
		gaps: newGaps(f.metrics.gapsLost.WithLabelValues(name)),
	}
	logger := f.logger.With("uplink", name)
	var err error
	if o.rules, err = compileCommands(f.gateway, name, c.Protocol, c.Commands); err != nil {
		return nil, err
	}
	policy := buffer.DropOldest
	if c.Buffer.WhenFull == "refuse" {
		policy = buffer.Refuse
	}
	o.bound = f.log.NewBound(maxBytes(c), policy)
	if err := o.gaps.open(f.log, gapsName(name), logger); err != nil {
		return nil, err
	}
	// The normal lane joins the bound first, so it is evicted first.
	for kind := range pipeline.Lanes {
		l := newLane(kind, index, f.ledger, o.gaps, f.damage)
		if err := l.open(f.log, laneName(name, kind), o.bound, o.maxAge); err != nil {
			return nil, err
		}
		o.queues[kind], o.lanes[kind] = l.queue, l
		f.lanes = append(f.lanes, l)
	}
	o.gaps.settle(o.lanes[:])
	o.dead = &deadLetters{log: f.log, logger: logger, evicted: f.metrics.deadLost.WithLabelValues(name)}
	if err := o.dead.open(deadName(name)); err != nil {
		return nil, err
	}
	if err := o.openGuard(f.metrics); err != nil {
		return nil, err
	}
	o.drain = &drain{
		out: o, gateway: f.gateway, address: f.gateway + "/" + name, log: logger, metrics: f.metrics, times: defaultTimes(),
		pacer: newPacer(c), liveFirst: c.LiveFirst, blame: blame{several: len(c.Servers) > 1},
	}
	if o.drain.batching, err = newBatching(f.gateway, name, c.Batch, f.metrics); err != nil {
		return nil, err
	}
	return o, nil
}

// age tells how old a record is that can expire, and whether it did.
func (o *output) age(rec *buffer.Rec) (age time.Duration, expired bool) {
	life := rec.Lifetime()
	if life == 0 && o.maxAge == 0 {
		return 0, false
	}
	age = o.log.Age(rec)
	return age, life > 0 && age >= life || o.maxAge > 0 && age >= o.maxAge
}

// defaultMaxBytes stands in for a bound that the configuration left open.
const defaultMaxBytes = 512 << 20

// Run keeps the uplinks connected and sends until ctx ends. Then it stops sending, gives acknowledgements on the way a short
// time to arrive, lets the uplinks say goodbye, and returns when every goroutine it started has ended. Commands of the
// cloud are handed to deliver; one that nobody subscribes to is offered again in the first 10 s, in which devices connect
// again, and given up after that. An error means that an uplink ended although it should not have.
func (f *Forwarder) Run(ctx context.Context, deliver Deliver) error {
	sending, stopSending := context.WithCancel(ctx)
	defer stopSending()
	// The connections outlive the drains, which still wait for acknowledgements when ctx ends.
	connected, disconnect := context.WithCancel(context.WithoutCancel(ctx))
	defer disconnect()

	settled := time.Now().Add(commandGrace)
	var links errgroup.Group
	var drains sync.WaitGroup
	for _, o := range f.outs {
		c := &commands{
			gateway: f.gateway, uplink: o.name, rules: o.rules, deliver: deliver, results: f.metrics.commands,
			log: f.logger.With("uplink", o.name), settled: settled, guard: o.guard,
		}
		links.Go(func() error { // ends with connected
			err := o.uplink.Run(connected, c.accept)
			if connected.Err() != nil {
				return nil
			}
			stopSending()
			return errors.Join(fmt.Errorf("forwarder: uplink %s ended", o.name), err)
		})
		drains.Go(func() { o.drain.run(sending) }) // ends with sending
	}
	drains.Go(func() { f.count(sending) }) // ends with sending
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopKeeping()
	var keepers sync.WaitGroup
	for _, o := range f.outs {
		keepers.Go(func() { o.gaps.keep(keeping) }) // ends with keeping, after the drains
	}
	<-sending.Done()
	drains.Wait()
	f.log.StopExpiring() // what expired from here on would be announced to nobody
	stopKeeping()
	keepers.Wait()
	disconnect()
	return links.Wait()
}

// count puts what was found on disk into the ledger, one lane after the other, and then what the disk loses.
func (f *Forwarder) count(ctx context.Context) {
	for _, l := range f.lanes {
		if err := l.countRecovered(ctx); err != nil {
			f.logger.Warn("the ledger does not show all recovered records", "uplink", f.ledger.uplinks[l.uplink], "err", err)
		}
	}
	for {
		open := false
		for _, l := range f.lanes {
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
