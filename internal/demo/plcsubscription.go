package demo

import (
	"context"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uasc"
)

// plcSubscription is a subscription of a session (OPC UA part 4, 5.13). Its fields are guarded by plc.mu.
type plcSubscription struct {
	p        *plc
	id       uint32
	session  *plcSession
	interval time.Duration
	keep     uint32 // keep-alive count
	end      context.CancelFunc

	items   map[int]*plcItem // by counter
	next    uint32           // sequence number of the next message
	pending map[uint32]plcMessage
	quiet   uint32 // intervals without a message
}

// plcItem is a monitored item: a counter and what of it was not sent yet.
type plcItem struct {
	handle uint32
	queue  []plcValue
}

type plcValue struct {
	counter, n int
	at         time.Time
}

// plcMessage is a notification message that the client has not acknowledged, with what is in it.
type plcMessage struct {
	message *ua.NotificationMessage
	values  []plcValue
}

// maxPerMessage bounds the values of one notification message.
const maxPerMessage = 200

func (p *plc) createSubscription(session *plcSession, r *ua.CreateSubscriptionRequest) ua.Response {
	p.ids++
	s := &plcSubscription{
		p: p, id: p.ids, session: session, next: 1, pending: map[uint32]plcMessage{}, items: map[int]*plcItem{},
		interval: max(time.Duration(r.RequestedPublishingInterval*float64(time.Millisecond)), 10*time.Millisecond),
		keep:     max(r.RequestedMaxKeepAliveCount, 1),
	}
	p.subs[s.id] = s
	var life context.Context
	life, s.end = context.WithCancel(p.life)
	p.running.Go(func() { s.run(life) }) // ends with the subscription, or the server
	return &ua.CreateSubscriptionResponse{
		ResponseHeader: ok(r), SubscriptionID: s.id, RevisedPublishingInterval: float64(s.interval / time.Millisecond),
		RevisedLifetimeCount: r.RequestedLifetimeCount, RevisedMaxKeepAliveCount: s.keep,
	}
}

// createItems makes monitored items; the first value of each is the present one.
func (p *plc) createItems(r *ua.CreateMonitoredItemsRequest) ua.Response {
	s := p.subs[r.SubscriptionID]
	if s == nil {
		return fault(r, ua.StatusBadSubscriptionIDInvalid)
	}
	results := make([]*ua.MonitoredItemCreateResult, len(r.ItemsToCreate))
	for i, item := range r.ItemsToCreate {
		results[i] = &ua.MonitoredItemCreateResult{StatusCode: ua.StatusBadNodeIDUnknown, FilterResult: ua.NewExtensionObject(nil)}
		counter, known := counterOf(item.ItemToMonitor.NodeID)
		if !known {
			continue
		}
		p.ids++
		s.items[counter] = &plcItem{handle: item.RequestedParameters.ClientHandle}
		s.offer(counter, p.values[counter])
		results[i].StatusCode, results[i].MonitoredItemID = ua.StatusOK, p.ids
		results[i].RevisedSamplingInterval = item.RequestedParameters.SamplingInterval
		results[i].RevisedQueueSize = item.RequestedParameters.QueueSize
	}
	return &ua.CreateMonitoredItemsResponse{ResponseHeader: ok(r), Results: results, DiagnosticInfos: []*ua.DiagnosticInfo{}}
}

func (p *plc) deleteSubscriptions(r *ua.DeleteSubscriptionsRequest) ua.Response {
	results := make([]ua.StatusCode, len(r.SubscriptionIDs))
	for i, id := range r.SubscriptionIDs {
		if p.subs[id] == nil {
			results[i] = ua.StatusBadSubscriptionIDInvalid
		}
		p.dropSubscriptions(func(s *plcSubscription) bool { return s.id == id })
	}
	return &ua.DeleteSubscriptionsResponse{ResponseHeader: ok(r), Results: results, DiagnosticInfos: []*ua.DiagnosticInfo{}}
}

// dropSubscriptions ends those that which selects. What they had not handed over is not to be waited for.
func (p *plc) dropSubscriptions(which func(*plcSubscription) bool) {
	for id, s := range p.subs {
		if which(s) {
			delete(p.subs, id)
			s.end()
		}
	}
}

// watches marks the counters that s has items for.
func (s *plcSubscription) watches(marked []bool) {
	for i := range s.items {
		marked[i] = true
	}
}

// offer queues a value of a counter.
func (s *plcSubscription) offer(counter, n int) {
	if item := s.items[counter]; item != nil {
		item.queue = append(item.queue, plcValue{counter, n, time.Now()})
	}
}

// idle reports whether everything was sent and acknowledged.
func (s *plcSubscription) idle() bool {
	for _, item := range s.items {
		if len(item.queue) > 0 {
			return false
		}
	}
	return len(s.pending) == 0
}

// publish takes the acknowledgements of a PublishRequest and keeps it for the next notification.
func (p *plc) publish(session *plcSession, channel *uasc.SecureChannel, requestID uint32, r *ua.PublishRequest) {
	results := make([]ua.StatusCode, len(r.SubscriptionAcknowledgements))
	for i, a := range r.SubscriptionAcknowledgements {
		results[i] = ua.StatusBadSequenceNumberUnknown
		s := p.subs[a.SubscriptionID]
		if s == nil {
			results[i] = ua.StatusBadSubscriptionIDInvalid
			continue
		}
		m, known := s.pending[a.SequenceNumber]
		if !known {
			continue
		}
		results[i] = ua.StatusOK
		delete(s.pending, a.SequenceNumber)
		for _, v := range m.values {
			if v.n > 0 {
				p.tally.answered(counterTopic(v.counter), v.n, true)
			}
		}
	}
	session.requests = append(session.requests, publishRequest{requestID, r, results, channel})
}

func (p *plc) republish(r *ua.RepublishRequest) ua.Response {
	s := p.subs[r.SubscriptionID]
	if s == nil {
		return fault(r, ua.StatusBadSubscriptionIDInvalid)
	}
	m, known := s.pending[r.RetransmitSequenceNumber]
	if !known {
		return fault(r, ua.StatusBadMessageNotAvailable)
	}
	return &ua.RepublishResponse{ResponseHeader: ok(r), NotificationMessage: m.message}
}

// run publishes until ctx ends.
func (s *plcSubscription) run(ctx context.Context) {
	for pause(ctx, s.interval) {
		s.p.mu.Lock()
		request, response := s.turn()
		s.p.mu.Unlock()
		if response != nil {
			// A connection that is gone takes the response with it; the client asks for it again.
			_ = request.channel.SendResponseWithContext(ctx, request.id, response)
		}
	}
}

// turn is one publishing interval: it makes the response to send, if there is one. mu is held.
func (s *plcSubscription) turn() (publishRequest, *ua.PublishResponse) {
	values, notifications := s.collect()
	if len(values) == 0 {
		if s.quiet++; s.quiet < s.keep {
			return publishRequest{}, nil
		}
	}
	request, found := s.session.take()
	if !found {
		s.giveBack(values)
		return publishRequest{}, nil
	}
	s.quiet = 0
	m := &ua.NotificationMessage{SequenceNumber: s.next, PublishTime: time.Now(), NotificationData: []*ua.ExtensionObject{}}
	if len(values) > 0 {
		m.NotificationData = append(m.NotificationData, ua.NewExtensionObject(&ua.DataChangeNotification{
			MonitoredItems: notifications, DiagnosticInfos: []*ua.DiagnosticInfo{},
		}))
		s.pending[s.next] = plcMessage{m, values}
		s.next++
	}
	available := []uint32{}
	for n := range s.pending {
		available = append(available, n)
	}
	return request, &ua.PublishResponse{
		ResponseHeader: ok(request.request), SubscriptionID: s.id, AvailableSequenceNumbers: available, NotificationMessage: m,
		Results: request.results, DiagnosticInfos: []*ua.DiagnosticInfo{},
	}
}

// take returns the oldest request that waits on the session's present connection.
func (s *plcSession) take() (publishRequest, bool) {
	for len(s.requests) > 0 {
		r := s.requests[0]
		s.requests = s.requests[1:]
		if r.channel == s.channel {
			return r, true
		}
	}
	return publishRequest{}, false
}

// collect takes values out of the queues.
func (s *plcSubscription) collect() (values []plcValue, notifications []*ua.MonitoredItemNotification) {
	for counter := range plcNodes {
		item := s.items[counter]
		for item != nil && len(item.queue) > 0 && len(values) < maxPerMessage {
			v := item.queue[0]
			item.queue = item.queue[1:]
			values = append(values, v)
			dv := value(uint32(v.n)) //nolint:gosec // counts to a few hundred
			dv.SourceTimestamp, dv.ServerTimestamp = v.at, v.at
			notifications = append(notifications, &ua.MonitoredItemNotification{ClientHandle: item.handle, Value: dv})
		}
	}
	return values, notifications
}

// giveBack puts values that nobody asked for back to the front of their queues.
func (s *plcSubscription) giveBack(values []plcValue) {
	for i := len(values) - 1; i >= 0; i-- {
		item := s.items[values[i].counter]
		item.queue = append([]plcValue{values[i]}, item.queue...)
	}
}
