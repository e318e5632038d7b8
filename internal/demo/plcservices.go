package demo

import (
	"crypto/rand"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uasc"
)

// plcSession is a session of a client; it outlives its connection (OPC UA part 4, 5.6).
type plcSession struct {
	token    *ua.NodeID
	channel  *uasc.SecureChannel // of its last activation
	requests []publishRequest    // waiting for something to be published
}

// publishRequest is a PublishRequest that waits.
type publishRequest struct {
	id      uint32
	request *ua.PublishRequest
	results []ua.StatusCode
	channel *uasc.SecureChannel
}

// ok is the header of a response.
func ok(r ua.Request) *ua.ResponseHeader { return header(r, ua.StatusOK) }

func header(r ua.Request, code ua.StatusCode) *ua.ResponseHeader {
	return &ua.ResponseHeader{
		Timestamp: time.Now(), RequestHandle: r.Header().RequestHandle, ServiceResult: code,
		ServiceDiagnostics: &ua.DiagnosticInfo{}, StringTable: []string{}, AdditionalHeader: ua.NewExtensionObject(nil),
	}
}

func fault(r ua.Request, code ua.StatusCode) ua.Response {
	return &ua.ServiceFault{ResponseHeader: header(r, code)}
}

// answer returns the response to a request; nil for one that is answered later.
func (p *plc) answer(channel *uasc.SecureChannel, requestID uint32, r ua.Request) ua.Response {
	switch r := r.(type) {
	case *ua.GetEndpointsRequest:
		return &ua.GetEndpointsResponse{ResponseHeader: ok(r), Endpoints: p.endpoints()}
	case *ua.CreateSessionRequest:
		return p.createSession(r)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	session := p.sessions[r.Header().AuthenticationToken.String()]
	if session == nil {
		return fault(r, ua.StatusBadSessionIDInvalid)
	}
	switch r := r.(type) {
	case *ua.ActivateSessionRequest:
		session.channel = channel
		return &ua.ActivateSessionResponse{ResponseHeader: ok(r), ServerNonce: nonce()}
	case *ua.CloseSessionRequest:
		delete(p.sessions, session.token.String())
		if r.DeleteSubscriptions {
			p.dropSubscriptions(func(s *plcSubscription) bool { return s.session == session })
		}
		return &ua.CloseSessionResponse{ResponseHeader: ok(r)}
	case *ua.ReadRequest:
		return p.read(r)
	case *ua.CreateSubscriptionRequest:
		return p.createSubscription(session, r)
	case *ua.CreateMonitoredItemsRequest:
		return p.createItems(r)
	case *ua.DeleteSubscriptionsRequest:
		return p.deleteSubscriptions(r)
	case *ua.PublishRequest:
		p.publish(session, channel, requestID, r)
		return nil
	case *ua.RepublishRequest:
		return p.republish(r)
	}
	return fault(r, ua.StatusBadServiceUnsupported)
}

func (p *plc) endpoints() []*ua.EndpointDescription {
	return []*ua.EndpointDescription{{
		EndpointURL: p.url(),
		Server: &ua.ApplicationDescription{
			ApplicationURI: plcNamespace, ProductURI: plcNamespace,
			ApplicationName: &ua.LocalizedText{EncodingMask: ua.LocalizedTextText, Text: "Tidegate demo"},
			ApplicationType: ua.ApplicationTypeServer, DiscoveryURLs: []string{p.url()},
		},
		SecurityMode: ua.MessageSecurityModeNone, SecurityPolicyURI: ua.SecurityPolicyURINone,
		UserIdentityTokens:  []*ua.UserTokenPolicy{{PolicyID: "anonymous", TokenType: ua.UserTokenTypeAnonymous}},
		TransportProfileURI: "http://opcfoundation.org/UA-Profile/Transport/uatcp-uasc-uabinary",
	}}
}

func (p *plc) createSession(r *ua.CreateSessionRequest) ua.Response {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &plcSession{token: ua.NewByteStringNodeID(0, nonce())}
	p.sessions[s.token.String()] = s
	p.ids++
	return &ua.CreateSessionResponse{
		ResponseHeader: ok(r), SessionID: ua.NewNumericNodeID(plcIndex, p.ids), AuthenticationToken: s.token,
		RevisedSessionTimeout: r.RequestedSessionTimeout, ServerNonce: nonce(), ServerEndpoints: p.endpoints(),
		ServerSignature: &ua.SignatureData{},
	}
}

func nonce() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return b
}

// read answers what a client asks before it subscribes: the namespaces, the state, and what the counters are.
func (p *plc) read(r *ua.ReadRequest) ua.Response {
	results := make([]*ua.DataValue, len(r.NodesToRead))
	for i, n := range r.NodesToRead {
		results[i] = p.attribute(n.NodeID, n.AttributeID)
	}
	return &ua.ReadResponse{ResponseHeader: ok(r), Results: results, DiagnosticInfos: []*ua.DiagnosticInfo{}}
}

// attribute returns one attribute of one node; mu is held.
func (p *plc) attribute(node *ua.NodeID, a ua.AttributeID) *ua.DataValue {
	if node.Namespace() == 0 && a == ua.AttributeIDValue {
		switch node.IntID() {
		case id.Server_NamespaceArray:
			return value([]string{"http://opcfoundation.org/UA/", plcNamespace})
		case id.Server_ServerArray:
			return value([]string{plcNamespace})
		case id.Server_ServerStatus_State:
			return value(int32(ua.ServerStateRunning))
		}
	}
	i, known := counterOf(node)
	if !known {
		return &ua.DataValue{EncodingMask: ua.DataValueStatusCode, Status: ua.StatusBadNodeIDUnknown}
	}
	switch a {
	case ua.AttributeIDValue:
		return value(uint32(p.values[i])) //nolint:gosec // counts to a few hundred
	case ua.AttributeIDNodeClass:
		return value(int32(ua.NodeClassVariable))
	case ua.AttributeIDDataType:
		return value(ua.NewNumericNodeID(0, id.UInt32))
	case ua.AttributeIDBrowseName:
		return value(&ua.QualifiedName{NamespaceIndex: plcIndex, Name: counterName(i)})
	case ua.AttributeIDDisplayName:
		return value(&ua.LocalizedText{EncodingMask: ua.LocalizedTextText, Text: counterName(i)})
	}
	return &ua.DataValue{EncodingMask: ua.DataValueStatusCode, Status: ua.StatusBadAttributeIDInvalid}
}

// counterOf finds the counter that a node ID names.
func counterOf(node *ua.NodeID) (int, bool) {
	for i := range plcNodes {
		if node.Namespace() == plcIndex && node.StringID() == counterName(i) {
			return i, true
		}
	}
	return 0, false
}

func value(v any) *ua.DataValue {
	variant, err := ua.NewVariant(v)
	if err != nil {
		return &ua.DataValue{EncodingMask: ua.DataValueStatusCode, Status: ua.StatusBadInternalError}
	}
	now := time.Now()
	return &ua.DataValue{
		EncodingMask: ua.DataValueValue | ua.DataValueSourceTimestamp | ua.DataValueServerTimestamp, Value: variant,
		SourceTimestamp: now, ServerTimestamp: now,
	}
}
