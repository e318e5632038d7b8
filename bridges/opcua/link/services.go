package link

import (
	"fmt"

	"github.com/gopcua/opcua/id"
)

// response is what a service answers. decode reads what follows the response header.
type response interface {
	encodingID() uint32 // of its binary encoding, in namespace 0
	decode(r *reader)
}

// decodeResponse reads the answer to a request into into. A service fault, or a bad result in the header, is the error.
// Bytes that no server should send are an error too; nothing in them makes it panic or recurse without bound.
func decodeResponse(body []byte, into response) (err error) {
	defer func() {
		if p := recover(); p != nil { // the decoders check what they read; this is for what they miss
			err = fmt.Errorf("decode %T: %v", into, p)
		}
	}()
	return readResponse(&reader{b: body}, into)
}

func readResponse(r *reader, into response) error {
	typ := r.nodeID()
	r.u64() // timestamp
	r.u32() // request handle
	result := r.status()
	r.diagnostics()
	for range r.count(4) {
		r.bytes()
	}
	r.structure()
	switch {
	case r.err != nil:
		return fmt.Errorf("decode the header of a response: %w", r.err)
	case result.IsBad():
		return result
	case typ.Namespace != 0 || typ.Kind != Numeric || typ.Num != into.encodingID():
		return fmt.Errorf("the server answered with the type %s where %d was due", typ, into.encodingID())
	}
	if into.decode(r); r.err != nil {
		return fmt.Errorf("decode %T: %w", into, r.err)
	}
	return nil
}

type openResponse struct {
	channel, token uint32
	lifetime       uint32 // milliseconds
	nonce          []byte
}

func (*openResponse) encodingID() uint32 { return id.OpenSecureChannelResponse_Encoding_DefaultBinary }

func (p *openResponse) decode(r *reader) {
	r.u32() // protocol version
	p.channel, p.token = r.u32(), r.u32()
	r.u64() // created at
	p.lifetime = r.u32()
	p.nonce = r.bytes()
}

// Endpoint is one way into a server, as the server describes it.
type Endpoint struct {
	URL         string
	Application string // the server's application URI
	Certificate []byte // DER, perhaps a chain
	Mode        uint32 // ua.MessageSecurityMode
	Policy      string // URI
	Tokens      []Token
	Transport   string
}

// Token is one way to log in at an endpoint.
type Token struct {
	ID     string
	Type   uint32 // ua.UserTokenType
	Policy string // URI of how a password is encrypted; empty: that of the endpoint
}

func (r *reader) endpoint() Endpoint {
	e := Endpoint{URL: r.string()}
	e.Application = r.string()
	r.bytes() // product
	r.localizedText()
	r.u32()   // application type
	r.bytes() // gateway server
	r.bytes() // discovery profile
	for range r.count(4) {
		r.bytes() // discovery URLs
	}
	e.Certificate = r.bytes()
	e.Mode = r.u32()
	e.Policy = r.string()
	e.Tokens = list(r, 20, (*reader).token)
	e.Transport = r.string()
	r.u8() // the level that the server claims: never used
	return e
}

func (r *reader) token() Token {
	t := Token{ID: r.string(), Type: r.u32()}
	r.bytes() // issued token type
	r.bytes() // issuer
	t.Policy = r.string()
	return t
}

type endpointsResponse struct{ endpoints []Endpoint }

func (*endpointsResponse) encodingID() uint32 { return id.GetEndpointsResponse_Encoding_DefaultBinary }
func (p *endpointsResponse) decode(r *reader) { p.endpoints = list(r, 40, (*reader).endpoint) }

type createSessionResponse struct {
	token       NodeID
	timeout     float64 // milliseconds
	nonce       []byte
	certificate []byte
	endpoints   []Endpoint
	signature   []byte
}

func (*createSessionResponse) encodingID() uint32 {
	return id.CreateSessionResponse_Encoding_DefaultBinary
}

func (p *createSessionResponse) decode(r *reader) {
	r.nodeID() // session: only diagnostics use it
	p.token = r.nodeID()
	p.timeout = r.f64()
	p.nonce = r.bytes()
	p.certificate = r.bytes()
	p.endpoints = list(r, 40, (*reader).endpoint)
	for range r.count(8) { // software certificates
		r.bytes()
		r.bytes()
	}
	r.bytes() // algorithm of the signature: the policy's
	p.signature = r.bytes()
	r.u32() // largest request
}

type activateSessionResponse struct{ nonce []byte }

func (*activateSessionResponse) encodingID() uint32 {
	return id.ActivateSessionResponse_Encoding_DefaultBinary
}
func (p *activateSessionResponse) decode(r *reader) { p.nonce = r.bytes() }

type closeSessionResponse struct{}

func (*closeSessionResponse) encodingID() uint32 {
	return id.CloseSessionResponse_Encoding_DefaultBinary
}
func (*closeSessionResponse) decode(*reader) {}

type createSubscriptionResponse struct {
	id                  uint32
	interval            float64 // milliseconds
	lifetime, keepAlive uint32  // in intervals
}

func (*createSubscriptionResponse) encodingID() uint32 {
	return id.CreateSubscriptionResponse_Encoding_DefaultBinary
}

func (p *createSubscriptionResponse) decode(r *reader) {
	p.id, p.interval, p.lifetime, p.keepAlive = r.u32(), r.f64(), r.u32(), r.u32()
}

// statusResponse is the shape of all answers that are a list of status codes.
type statusResponse struct {
	encoding uint32
	results  []StatusCode
}

func (p *statusResponse) encodingID() uint32 { return p.encoding }
func (p *statusResponse) decode(r *reader)   { p.results = list(r, 4, (*reader).status) }

type createdItem struct {
	status   StatusCode
	id       uint32
	sampling float64 // milliseconds
	queue    uint32
}

func (r *reader) createdItem() createdItem {
	c := createdItem{status: r.status(), id: r.u32(), sampling: r.f64(), queue: r.u32()}
	r.structure() // filter result
	return c
}

type createItemsResponse struct{ results []createdItem }

func (*createItemsResponse) encodingID() uint32 {
	return id.CreateMonitoredItemsResponse_Encoding_DefaultBinary
}
func (p *createItemsResponse) decode(r *reader) { p.results = list(r, 23, (*reader).createdItem) }

type modifyItemsResponse struct{ results []createdItem } // without ids

func (*modifyItemsResponse) encodingID() uint32 {
	return id.ModifyMonitoredItemsResponse_Encoding_DefaultBinary
}

func (p *modifyItemsResponse) decode(r *reader) {
	p.results = list(r, 19, func(r *reader) createdItem {
		c := createdItem{status: r.status(), sampling: r.f64(), queue: r.u32()}
		r.structure()
		return c
	})
}

// change is one value of one monitored item.
type change struct {
	handle uint32
	value  DataValue
}

// notification is one notification message of a subscription.
type notification struct {
	sequence  uint32
	keepalive bool // it carries nothing; sequence is that of the next one that does
	changes   []change
	// ended is the status by which the server says that the subscription is no more; zero: it lives.
	ended StatusCode
	// broken says why the content could not be read; the rest of the message could.
	broken error
}

func (r *reader) notification() notification {
	n := notification{sequence: r.u32()}
	r.u64() // publish time
	parts := list(r, 3, (*reader).structure)
	n.keepalive = len(parts) == 0
	for _, p := range parts {
		if p.Encoding != StructureBinary || p.TypeID.Namespace != 0 || p.TypeID.NamespaceURI != "" || r.err != nil {
			continue
		}
		body := &reader{b: p.Body}
		switch p.TypeID.Num {
		case id.DataChangeNotification_Encoding_DefaultBinary:
			n.changes = append(n.changes, list(body, 5, func(r *reader) change {
				return change{r.u32(), r.dataValue()}
			})...)
		case id.StatusChangeNotification_Encoding_DefaultBinary:
			n.ended = body.status()
		}
		if body.err != nil {
			n.broken = body.err
		}
	}
	return n
}

type publishResponse struct {
	subscription uint32
	available    []uint32
	more         bool
	message      notification
	acks         []StatusCode
}

func (*publishResponse) encodingID() uint32 { return id.PublishResponse_Encoding_DefaultBinary }
func (p *publishResponse) decode(r *reader) {
	p.subscription = r.u32()
	p.available = list(r, 4, (*reader).u32)
	p.more = r.bool()
	p.message = r.notification()
	p.acks = list(r, 4, (*reader).status)
}

type republishResponse struct{ message notification }

func (*republishResponse) encodingID() uint32 { return id.RepublishResponse_Encoding_DefaultBinary }
func (p *republishResponse) decode(r *reader) { p.message = r.notification() }

type transferred struct {
	status    StatusCode
	available []uint32
}

type transferResponse struct{ results []transferred }

func (*transferResponse) encodingID() uint32 {
	return id.TransferSubscriptionsResponse_Encoding_DefaultBinary
}

func (p *transferResponse) decode(r *reader) {
	p.results = list(r, 8, func(r *reader) transferred {
		return transferred{r.status(), list(r, 4, (*reader).u32)}
	})
}

type valuesResponse struct{ results []DataValue }

func (*valuesResponse) encodingID() uint32 { return id.ReadResponse_Encoding_DefaultBinary }
func (p *valuesResponse) decode(r *reader) { p.results = list(r, 1, (*reader).dataValue) }

// Reference is one reference from a node to another.
type Reference struct {
	Type        NodeID
	Forward     bool
	Node        ExpandedNodeID
	BrowseName  QualifiedName
	DisplayName LocalizedText
	Class       uint32 // ua.NodeClass
}

type browsed struct {
	status     StatusCode
	more       []byte // continuation point
	references []Reference
}

// browseResponse is the answer to Browse and to BrowseNext.
type browseResponse struct {
	encoding uint32
	results  []browsed
}

func (p *browseResponse) encodingID() uint32 { return p.encoding }
func (p *browseResponse) decode(r *reader) {
	p.results = list(r, 12, func(r *reader) browsed {
		return browsed{r.status(), r.bytes(), list(r, 16, (*reader).reference)}
	})
}

func (r *reader) reference() Reference {
	ref := Reference{Type: r.nodeID(), Forward: r.bool(), Node: r.expandedNodeID(), BrowseName: r.qualifiedName()}
	ref.DisplayName = r.localizedText()
	ref.Class = r.u32()
	r.expandedNodeID() // type definition
	return ref
}
