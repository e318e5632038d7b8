package link

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

// item is an Item and how it stands at the server.
type item struct {
	Item
	index    int
	handle   uint32 // by which notifications name it; 0: none yet
	node     NodeID
	id       uint32        // of the monitored item; 0: the server does not watch it
	sampling time.Duration // as the server revised it; 0: at every change
	budget   time.Duration // for how long the server keeps its values
	ready    bool          // the sink knows what it is called now
	named    bool          // the sink was told so once: it can take values, also those from before a failure
	last     *Value        // that came when the sink could not take it; it follows when it can
	err      error         // why it is not watched
	failures int
	due      time.Time // of the next attempt
}

// watched reports whether its values come and find their way.
func (it *item) watched() bool { return it.id != 0 && it.ready }

// fail puts the next attempt off, a little longer each time.
func (it *item) fail(err error) {
	it.err, it.ready = err, false
	wait := retryLimit
	if it.failures < 5 {
		wait = min(retryLimit, retryFirst<<it.failures)
	}
	it.failures++
	it.due = time.Now().Add(wait/2 + rand.N(wait/2)) //nolint:gosec // jitter is no secret
}

// queueSize is how many values the server shall keep of an item that it looks at that often: as many as come while we
// are away.
func (l *Link) queueSize(sampling time.Duration) uint32 {
	if sampling <= 0 {
		sampling = fastestSampling
	}
	return uint32(max(1, min(math.MaxInt32, (l.o.Budget+sampling-1)/sampling)))
}

// watch asks the server to watch every item that is due. One that it refuses is kept and tried again; the others flow.
// The error is that of the connection.
func (l *Link) watch(ctx context.Context, s *Session) error {
	now := time.Now()
	var tried []*item
	for _, it := range l.items {
		if !it.watched() && !it.due.After(now) {
			tried = append(tried, it)
		}
	}
	todo, err := l.resolve(ctx, s, tried)
	if err != nil {
		return err
	}
	if err := l.unwatch(ctx, s, l.orphans); err != nil {
		return err
	}
	l.orphans = nil
	if err := l.handLast(ctx, s, tried); err != nil {
		return err
	}
	err = s.inBatches(len(todo), &s.limits.items, func(from, to int) error {
		return l.watchBatch(ctx, s, todo[from:to])
	})
	l.limits.tighten(&s.limits)
	l.report(tried, todo)
	l.countItems()
	return err
}

// unwatch tells the server to forget monitored items.
func (l *Link) unwatch(ctx context.Context, s *Session, ids []uint32) error {
	return s.inBatches(len(ids), &s.limits.items, func(from, to int) error {
		p := statusResponse{encoding: id.DeleteMonitoredItemsResponse_Encoding_DefaultBinary}
		err := s.call(ctx, &ua.DeleteMonitoredItemsRequest{SubscriptionID: l.sub.ID, MonitoredItemIDs: ids[from:to]}, &p)
		if err != nil {
			return fmt.Errorf("stop watching %d nodes: %w", to-from, err)
		}
		return nil // one that the server does not know is gone as well
	})
}

// resolve finds the node of each item, and its name where that is needed, and tells the sink. It returns those that the
// server is to be asked to watch.
func (l *Link) resolve(ctx context.Context, s *Session, tried []*item) ([]*item, error) {
	var nodes []NodeID
	var describe []*item
	descriptions := map[*item]Description{}
	for _, it := range tried {
		node, err := it.Ref.Resolve(s.namespaces)
		switch {
		case err != nil:
			it.fail(err)
			continue
		case it.node != node:
			it.node, it.ready = node, false
		}
		if it.Describe && !it.ready {
			describe = append(describe, it)
			nodes = append(nodes, node)
			continue
		}
		descriptions[it] = Description{Node: node}
	}
	list, errs, err := s.describe(ctx, nodes)
	if err != nil {
		return nil, err
	}
	for i, it := range describe {
		if errs[i] != nil {
			if noNode(errs[i]) {
				l.orphan(it)
			}
			it.fail(errs[i])
			continue
		}
		descriptions[it] = list[i]
	}
	var todo []*item
	for _, it := range tried { // in their own order: the first one has the right to a topic
		d, found := descriptions[it]
		if !found {
			continue
		}
		if !it.ready {
			if err := l.o.Sink.Resolve(it.index, d); err != nil {
				it.fail(err)
				continue
			}
			it.ready, it.named = true, true
		}
		if it.id == 0 {
			todo = append(todo, it)
		} else {
			it.err, it.failures = nil, 0
		}
	}
	return todo, nil
}

// noNode reports whether the server does not have the node. When the node comes back, some servers want to be asked anew.
func noNode(err error) bool {
	switch statusOf(err) &^ 0xFFFF {
	case ua.StatusBadNodeIDUnknown, ua.StatusBadNodeIDInvalid:
		return true
	default:
		return false
	}
}

// orphan gives the monitored item of it up.
func (l *Link) orphan(it *item) {
	if it.id != 0 {
		l.orphans = append(l.orphans, it.id)
		it.id = 0
	}
}

// handLast hands over the value that an item had when the sink could not take it: the server sends no other before the next
// change. It was counted as lost, and is acknowledged, so nobody waits for the disk here.
func (l *Link) handLast(ctx context.Context, s *Session, items []*item) error {
	var values []Value
	for _, it := range items {
		if it.named && it.last != nil {
			values = append(values, *it.last)
		}
	}
	if len(values) == 0 {
		return nil
	}
	if err := l.enqueue(ctx, s, delivery{values: values}); err != nil {
		return err
	}
	for _, it := range items {
		if it.named {
			it.last = nil
		}
	}
	return nil
}

// parameters are what the server is asked to do for an item that it looks at so often.
func (l *Link) parameters(it *item, sampling time.Duration) *ua.MonitoringParameters {
	return &ua.MonitoringParameters{
		ClientHandle: it.handle, SamplingInterval: milliseconds(l.o.Sampling), Filter: it.filter(),
		QueueSize: l.queueSize(sampling), DiscardOldest: true,
	}
}

func (l *Link) watchBatch(ctx context.Context, s *Session, batch []*item) error {
	req := &ua.CreateMonitoredItemsRequest{SubscriptionID: l.sub.ID, TimestampsToReturn: ua.TimestampsToReturnBoth}
	for _, it := range batch {
		if it.handle == 0 {
			l.handles++
			it.handle = l.handles
			l.byHandle[it.handle] = it
		}
		req.ItemsToCreate = append(req.ItemsToCreate, &ua.MonitoredItemCreateRequest{
			ItemToMonitor: &ua.ReadValueID{
				NodeID: it.node.ua(), AttributeID: ua.AttributeIDValue, DataEncoding: &ua.QualifiedName{},
			},
			MonitoringMode: ua.MonitoringModeReporting, RequestedParameters: l.parameters(it, l.o.Sampling),
		})
	}
	var p createItemsResponse
	if err := s.call(ctx, req, &p); err != nil {
		return fmt.Errorf("watch %d nodes: %w", len(batch), err)
	}
	if err := answered(len(p.results), len(batch), "watch nodes"); err != nil {
		return err
	}
	var short []*item
	for i, r := range p.results {
		it := batch[i]
		if r.status.IsBad() {
			it.fail(explain(r.status))
			continue
		}
		it.id, it.err, it.failures = r.id, nil, 0
		it.granted(r)
		// A server that looks more often than asked fills the queue sooner.
		if it.sampling > 0 && it.budget < l.o.Budget && l.queueSize(it.sampling) > r.queue {
			short = append(short, it)
		}
	}
	return l.lengthen(ctx, s, short)
}

// granted notes what the server makes of an item.
func (it *item) granted(r createdItem) {
	it.sampling = fromMilliseconds(r.sampling)
	each := it.sampling
	if each == 0 {
		each = fastestSampling
	}
	it.budget = time.Duration(min(float64(max(1, r.queue))*float64(each), math.MaxInt64/2))
}

// lengthen asks for longer queues, by the sampling intervals that the server chose itself. It asks for the same interval
// as before: 0 can mean "at every change", which no other interval does.
func (l *Link) lengthen(ctx context.Context, s *Session, items []*item) error {
	if len(items) == 0 {
		return nil
	}
	req := &ua.ModifyMonitoredItemsRequest{SubscriptionID: l.sub.ID, TimestampsToReturn: ua.TimestampsToReturnBoth}
	for _, it := range items {
		req.ItemsToModify = append(req.ItemsToModify, &ua.MonitoredItemModifyRequest{
			MonitoredItemID: it.id, RequestedParameters: l.parameters(it, it.sampling),
		})
	}
	var p modifyItemsResponse
	err := s.call(ctx, req, &p)
	if err == nil {
		err = answered(len(p.results), len(items), "lengthen queues")
	}
	if err != nil {
		if s.c.reason(nil) != nil {
			return err
		}
		l.log.Debug("queues not lengthened", "error", err) // what the server keeps is reported
		return nil
	}
	for i, r := range p.results {
		if !r.status.IsBad() {
			items[i].granted(r)
		}
	}
	return nil
}

// explain adds what to do where the status alone does not say it.
func explain(s StatusCode) error {
	switch ua.StatusCode(s) {
	case ua.StatusBadMonitoredItemFilterUnsupported, ua.StatusBadFilterNotAllowed, ua.StatusBadDeadbandFilterInvalid:
		return fmt.Errorf("%w: the server has no deadband for this node; leave deadband out", s)
	default:
		return s
	}
}

func (it *item) filter() *ua.ExtensionObject {
	if it.Deadband == 0 {
		return nil
	}
	kind := ua.DeadbandTypeAbsolute
	if it.Percent {
		kind = ua.DeadbandTypePercent
	}
	return ua.NewExtensionObject(&ua.DataChangeFilter{
		Trigger: ua.DataChangeTriggerStatusValue, DeadbandType: uint32(kind), DeadbandValue: it.Deadband,
	})
}

// report logs what came of an attempt: the budget that the server really grants, and what it refused. A retry that fails
// again is silent.
func (l *Link) report(tried, todo []*item) {
	least := l.sub.Budget
	for _, it := range todo {
		if it.id != 0 && (least == 0 || it.budget < least) {
			least = it.budget
		}
	}
	if least != l.sub.Budget && least < l.o.Budget {
		l.log.Warn("the server keeps values for less than outage_budget", "keeps", least, "wanted", l.o.Budget)
	}
	l.sub.Budget = least
	l.stats.budget.Store(int64(least))
	failed := slices.DeleteFunc(slices.Clone(tried), func(it *item) bool { return it.err == nil || it.failures != 1 })
	if len(failed) > 0 {
		l.log.Warn("some nodes are not watched; they are tried again", "nodes", len(failed),
			"first", failed[0].Ref.String(), "error", failed[0].err)
	}
}

// countItems brings the figures of good and failed items up to date, and with them when the next attempt is due.
func (l *Link) countItems() {
	good := 0
	l.pending = false
	for _, it := range l.items {
		if it.watched() {
			good++
		} else if !l.pending || it.due.Before(l.retryAt) {
			l.retryAt, l.pending = it.due, true
		}
	}
	l.stats.good.Store(int64(good))
	l.stats.failed.Store(int64(len(l.items) - good))
}
