package link

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

// fakeServer is an OPC UA server without security in this process, over net.Pipe, so that it runs in fake time. It does
// what a good server does, and what its hooks make of that.
type fakeServer struct {
	t *testing.T

	mu         sync.Mutex
	sessions   map[uint32]bool // by token
	sub        uint32          // 0: there is none
	interval   time.Duration
	sequence   uint32
	kept       map[uint32][]byte // sent and not acknowledged: encoded notification data, by sequence number
	queue      [][]*ua.MonitoredItemNotification
	publishes  []pendingPublish
	acked      []uint32
	nextID     uint32
	namespaces []string
	unknown    map[string]bool // nodes that are not there
	denied     map[string]bool // nodes whose names may not be read
	itemLimit  int             // more items in one call are refused
	shrink     float64         // revised sampling interval in ms; 0: as asked
	conns      map[*fakeConn]bool

	// onRequest may answer in place of the server; nil, nil: it does not. It is called under mu.
	onRequest func(req ua.Request) (ua.Response, error)
	// silent: takes everything and says nothing.
	silent bool
	refuse bool // new connections
	slow   time.Duration
}

type pendingPublish struct {
	conn    *fakeConn
	request uint32
}

type fakeConn struct {
	net.Conn
	mu       sync.Mutex
	sequence uint32
}

func newFake(t *testing.T) *fakeServer {
	return &fakeServer{
		t: t, sessions: map[uint32]bool{}, kept: map[uint32][]byte{}, nextID: 100,
		namespaces: []string{"http://opcfoundation.org/UA/", "urn:fake", "urn:test"},
		unknown:    map[string]bool{}, denied: map[string]bool{}, conns: map[*fakeConn]bool{},
	}
}

// dial is a dialer.
func (f *fakeServer) dial(context.Context, string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	c := &fakeConn{Conn: there}
	f.conns[c] = true
	go f.serve(c)
	return here, nil
}

// cut ends every connection.
func (f *fakeServer) cut() {
	f.mu.Lock()
	conns := f.conns
	f.conns = map[*fakeConn]bool{}
	f.publishes = nil
	f.mu.Unlock()
	for c := range conns {
		_ = c.Close()
	}
}

// restart is a server that knows nothing of before.
func (f *fakeServer) restart() {
	f.cut()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions, f.sub, f.sequence, f.kept, f.queue = map[uint32]bool{}, 0, 0, map[uint32][]byte{}, nil
}

func (f *fakeServer) serve(c *fakeConn) {
	defer c.Close()
	for {
		head := make([]byte, 8)
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		body := make([]byte, binary.LittleEndian.Uint32(head[4:])-8)
		if _, err := io.ReadFull(c, body); err != nil {
			return
		}
		f.mu.Lock()
		silent, slow := f.silent, f.slow
		f.mu.Unlock()
		if silent {
			continue
		}
		time.Sleep(slow)
		switch string(head[:3]) {
		case "HEL":
			ack := []byte("ACKF\x1c\x00\x00\x00")
			for _, n := range []uint32{0, 65535, 65535, 0, 0} {
				ack = binary.LittleEndian.AppendUint32(ack, n)
			}
			_, _ = c.Write(ack)
		case "OPN":
			r := &reader{b: body[4:]}
			r.bytes()
			r.bytes()
			r.bytes()
			r.u32()
			request := r.u32()
			c.send("OPN", request, &ua.OpenSecureChannelResponse{
				SecurityToken: &ua.ChannelSecurityToken{ChannelID: 7, TokenID: 1, RevisedLifetime: 3_600_000},
			}, 0)
		case "CLO":
			return
		case "MSG":
			request := binary.LittleEndian.Uint32(body[12:])
			_, v, err := ua.DecodeService(body[16:])
			if err != nil {
				f.t.Errorf("the fake server cannot read a request: %v", err)
				return
			}
			f.handle(c, request, v.(ua.Request))
		}
	}
}

// send writes a response in one chunk.
func (c *fakeConn) send(kind string, request uint32, res ua.Response, status ua.StatusCode) {
	res.SetHeader(&ua.ResponseHeader{ServiceResult: status, ServiceDiagnostics: &ua.DiagnosticInfo{}, AdditionalHeader: ua.NewExtensionObject(nil)})
	b := ua.NewBuffer(nil)
	b.WriteStruct(ua.NewFourByteExpandedNodeID(0, ua.ServiceTypeID(res)))
	b.WriteStruct(res)
	c.sendBody(kind, request, b.Bytes())
}

func (c *fakeConn) sendBody(kind string, request uint32, body []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sequence++
	frame := append([]byte(kind), 'F', 0, 0, 0, 0)
	frame = binary.LittleEndian.AppendUint32(frame, 7)
	if kind == "OPN" {
		h := ua.NewBuffer(nil)
		h.WriteString(ua.SecurityPolicyURINone)
		h.WriteByteString(nil)
		h.WriteByteString(nil)
		frame = append(frame, h.Bytes()...)
	} else {
		frame = binary.LittleEndian.AppendUint32(frame, 1)
	}
	frame = binary.LittleEndian.AppendUint32(frame, c.sequence)
	frame = binary.LittleEndian.AppendUint32(frame, request)
	frame = append(frame, body...)
	binary.LittleEndian.PutUint32(frame[4:], uint32(len(frame)))
	_, _ = c.Write(frame)
}

func (c *fakeConn) fault(request uint32, status ua.StatusCode) {
	c.send("MSG", request, &ua.ServiceFault{}, status)
}

func (f *fakeServer) handle(c *fakeConn, request uint32, req ua.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onRequest != nil {
		if res, err := f.onRequest(req); err != nil {
			var status ua.StatusCode
			if errors.As(err, &status) {
				go c.fault(request, status)
			}
			return
		} else if res != nil {
			go c.send("MSG", request, res, 0)
			return
		}
	}
	token := req.Header().AuthenticationToken.IntID()
	switch req.(type) {
	case *ua.GetEndpointsRequest, *ua.CreateSessionRequest:
	default:
		if !f.sessions[token] {
			go c.fault(request, ua.StatusBadSessionIDInvalid)
			return
		}
	}
	switch q := req.(type) {
	case *ua.PublishRequest:
		for _, a := range q.SubscriptionAcknowledgements {
			delete(f.kept, a.SequenceNumber)
			f.acked = append(f.acked, a.SequenceNumber)
		}
		if f.sub == 0 {
			go c.fault(request, ua.StatusBadNoSubscription)
			return
		}
		f.publishes = append(f.publishes, pendingPublish{c, request})
		f.flush()
		return
	case *ua.RepublishRequest:
		data, ok := f.kept[q.RetransmitSequenceNumber]
		switch {
		case q.SubscriptionID != f.sub:
			go c.fault(request, ua.StatusBadSubscriptionIDInvalid)
		case !ok:
			go c.fault(request, ua.StatusBadMessageNotAvailable)
		default:
			go c.sendBody("MSG", request, republishBody(data))
		}
		return
	}
	res := f.answer(req)
	if res == nil {
		go c.fault(request, ua.StatusBadServiceUnsupported)
		return
	}
	go c.send("MSG", request, res, 0)
}

func (f *fakeServer) answer(req ua.Request) ua.Response {
	switch q := req.(type) {
	case *ua.GetEndpointsRequest:
		return &ua.GetEndpointsResponse{Endpoints: f.endpoints()}
	case *ua.CreateSessionRequest:
		f.nextID++
		f.sessions[f.nextID] = true
		return &ua.CreateSessionResponse{
			SessionID: ua.NewNumericNodeID(1, f.nextID), AuthenticationToken: ua.NewNumericNodeID(0, f.nextID),
			RevisedSessionTimeout: q.RequestedSessionTimeout, ServerEndpoints: f.endpoints(), ServerSignature: &ua.SignatureData{},
		}
	case *ua.ActivateSessionRequest:
		return &ua.ActivateSessionResponse{ServerNonce: []byte("nonce")}
	case *ua.CloseSessionRequest:
		delete(f.sessions, req.Header().AuthenticationToken.IntID())
		if q.DeleteSubscriptions {
			f.sub = 0
		}
		return &ua.CloseSessionResponse{}
	case *ua.ReadRequest:
		res := &ua.ReadResponse{}
		for _, n := range q.NodesToRead {
			v := &ua.DataValue{EncodingMask: ua.DataValueStatusCode, Status: ua.StatusBadNodeIDUnknown}
			switch {
			case n.NodeID.IntID() == id.Server_NamespaceArray:
				v = &ua.DataValue{EncodingMask: ua.DataValueValue, Value: ua.MustVariant(f.namespaces)}
			case n.NodeID.IntID() == id.Server_ServerStatus_State:
				v = &ua.DataValue{EncodingMask: ua.DataValueValue, Value: ua.MustVariant(int32(0))}
			case n.AttributeID == ua.AttributeIDBrowseName && f.denied[n.NodeID.String()]:
				v = &ua.DataValue{EncodingMask: ua.DataValueStatusCode, Status: ua.StatusBadUserAccessDenied}
			case n.AttributeID == ua.AttributeIDBrowseName && !f.unknown[n.NodeID.String()]:
				v = &ua.DataValue{EncodingMask: ua.DataValueValue, Value: ua.MustVariant(&ua.QualifiedName{Name: n.NodeID.StringID()})}
			}
			res.Results = append(res.Results, v)
		}
		return res
	case *ua.BrowseRequest:
		res := &ua.BrowseResponse{}
		for range q.NodesToBrowse {
			res.Results = append(res.Results, &ua.BrowseResult{References: []*ua.ReferenceDescription{{
				ReferenceTypeID: ua.NewNumericNodeID(0, id.Organizes), NodeID: ua.NewNumericExpandedNodeID(0, id.ObjectsFolder),
				BrowseName: &ua.QualifiedName{Name: "Objects"}, DisplayName: ua.NewLocalizedText("Objects"),
				TypeDefinition: ua.NewNumericExpandedNodeID(0, 61),
			}}})
		}
		return res
	case *ua.CreateSubscriptionRequest:
		f.nextID++
		f.sub, f.sequence = f.nextID, 0
		f.interval = time.Duration(q.RequestedPublishingInterval) * time.Millisecond
		return &ua.CreateSubscriptionResponse{
			SubscriptionID: f.sub, RevisedPublishingInterval: q.RequestedPublishingInterval,
			RevisedLifetimeCount: q.RequestedLifetimeCount, RevisedMaxKeepAliveCount: q.RequestedMaxKeepAliveCount,
		}
	case *ua.DeleteSubscriptionsRequest:
		f.sub = 0
		return &ua.DeleteSubscriptionsResponse{Results: []ua.StatusCode{0}}
	case *ua.TransferSubscriptionsRequest:
		res := &ua.TransferSubscriptionsResponse{Results: []*ua.TransferResult{{StatusCode: ua.StatusBadSubscriptionIDInvalid}}}
		if f.sub == q.SubscriptionIDs[0] {
			res.Results[0].StatusCode = 0
		}
		return res
	case *ua.CreateMonitoredItemsRequest:
		if f.itemLimit > 0 && len(q.ItemsToCreate) > f.itemLimit {
			return nil
		}
		res := &ua.CreateMonitoredItemsResponse{}
		for _, it := range q.ItemsToCreate {
			r := &ua.MonitoredItemCreateResult{
				MonitoredItemID: it.RequestedParameters.ClientHandle + 1000, RevisedQueueSize: it.RequestedParameters.QueueSize,
				RevisedSamplingInterval: it.RequestedParameters.SamplingInterval, FilterResult: ua.NewExtensionObject(nil),
			}
			if f.shrink > 0 {
				r.RevisedSamplingInterval = f.shrink
			}
			if f.unknown[it.ItemToMonitor.NodeID.String()] {
				r = &ua.MonitoredItemCreateResult{StatusCode: ua.StatusBadNodeIDUnknown, FilterResult: ua.NewExtensionObject(nil)}
			}
			res.Results = append(res.Results, r)
		}
		return res
	case *ua.ModifyMonitoredItemsRequest:
		res := &ua.ModifyMonitoredItemsResponse{}
		for _, it := range q.ItemsToModify {
			res.Results = append(res.Results, &ua.MonitoredItemModifyResult{
				RevisedSamplingInterval: f.shrink, RevisedQueueSize: it.RequestedParameters.QueueSize, FilterResult: ua.NewExtensionObject(nil),
			})
		}
		return res
	case *ua.DeleteMonitoredItemsRequest:
		return &ua.DeleteMonitoredItemsResponse{Results: make([]ua.StatusCode, len(q.MonitoredItemIDs))}
	}
	return nil
}

func (f *fakeServer) endpoints() []*ua.EndpointDescription {
	return []*ua.EndpointDescription{{
		EndpointURL: "opc.tcp://unreachable:1/", Server: &ua.ApplicationDescription{ApplicationName: ua.NewLocalizedText("fake")},
		SecurityMode: ua.MessageSecurityModeNone, SecurityPolicyURI: ua.SecurityPolicyURINone,
		UserIdentityTokens: []*ua.UserTokenPolicy{{PolicyID: "anonymous", TokenType: ua.UserTokenTypeAnonymous}},
	}}
}

// change queues one notification with values for items by their handle; it is sent when there is a request for it.
func (f *fakeServer) change(values ...*ua.MonitoredItemNotification) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = append(f.queue, values)
	f.flush()
}

func num(handle uint32, n int32) *ua.MonitoredItemNotification {
	return &ua.MonitoredItemNotification{ClientHandle: handle, Value: &ua.DataValue{EncodingMask: ua.DataValueValue, Value: ua.MustVariant(n)}}
}

// flush answers publish requests, in order, with what is queued. mu is held.
func (f *fakeServer) flush() {
	for len(f.queue) > 0 && len(f.publishes) > 0 {
		f.sequence++
		data := encodeNotification(f.sequence, f.queue[0])
		f.queue = f.queue[1:]
		f.kept[f.sequence] = data
		f.reply(data)
	}
}

// reply sends a notification message to the oldest publish request. mu is held.
func (f *fakeServer) reply(data []byte) {
	p := f.publishes[0]
	f.publishes = f.publishes[1:]
	var available []uint32
	for n := range f.kept {
		available = append(available, n)
	}
	slices.Sort(available)
	body := publishBody(f.sub, available, data)
	p.conn.sendBody("MSG", p.request, body) // in order: the sequence numbers of chunks are
}

// keepalive sends one, with the number of what comes next.
func (f *fakeServer) keepalive() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.publishes) > 0 && !f.silent && f.sub != 0 {
		f.reply(encodeNotification(f.sequence+1, nil))
	}
}

// lose counts a notification as sent that never is; the server keeps it for republishing, or not.
func (f *fakeServer) lose(keep bool, values ...*ua.MonitoredItemNotification) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sequence++
	if keep {
		f.kept[f.sequence] = encodeNotification(f.sequence, values)
	}
}

func (f *fakeServer) outstanding() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.publishes)
}

func (f *fakeServer) unacked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.kept)
}

// encodeNotification makes a NotificationMessage.
func encodeNotification(sequence uint32, values []*ua.MonitoredItemNotification) []byte {
	b := ua.NewBuffer(nil)
	b.WriteUint32(sequence)
	b.WriteTime(time.Now())
	if values == nil {
		b.WriteInt32(0)
		return b.Bytes()
	}
	b.WriteInt32(1)
	inner := ua.NewBuffer(nil)
	inner.WriteInt32(int32(len(values)))
	for _, v := range values {
		inner.WriteUint32(v.ClientHandle)
		inner.WriteStruct(v.Value)
	}
	inner.WriteInt32(0)
	b.WriteStruct(ua.NewFourByteExpandedNodeID(0, id.DataChangeNotification_Encoding_DefaultBinary))
	b.WriteByte(1)
	b.WriteByteString(inner.Bytes())
	return b.Bytes()
}

func responseHead(typ uint16) *ua.Buffer {
	b := ua.NewBuffer(nil)
	b.WriteStruct(ua.NewFourByteExpandedNodeID(0, typ))
	b.WriteTime(time.Now())
	b.WriteUint32(0)
	b.WriteUint32(0)
	b.WriteByte(0)
	b.WriteInt32(0)
	b.Write([]byte{0, 0, 0})
	return b
}

func publishBody(sub uint32, available []uint32, data []byte) []byte {
	b := responseHead(id.PublishResponse_Encoding_DefaultBinary)
	b.WriteUint32(sub)
	b.WriteInt32(int32(len(available)))
	for _, n := range available {
		b.WriteUint32(n)
	}
	b.WriteBool(false)
	b.Write(data)
	b.WriteInt32(0)
	b.WriteInt32(0)
	return b.Bytes()
}

func republishBody(data []byte) []byte {
	b := responseHead(id.RepublishResponse_Encoding_DefaultBinary)
	b.Write(data)
	return b.Bytes()
}
