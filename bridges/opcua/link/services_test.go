package link

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

// everyResponse makes an empty one of each kind.
func everyResponse() []response {
	list := []response{
		&openResponse{}, &endpointsResponse{}, &createSessionResponse{}, &activateSessionResponse{}, &closeSessionResponse{},
		&createSubscriptionResponse{}, &createItemsResponse{}, &modifyItemsResponse{}, &publishResponse{}, &republishResponse{},
		&transferResponse{}, &valuesResponse{},
	}
	for _, n := range []uint32{
		id.DeleteSubscriptionsResponse_Encoding_DefaultBinary, id.DeleteMonitoredItemsResponse_Encoding_DefaultBinary,
		id.WriteResponse_Encoding_DefaultBinary,
	} {
		list = append(list, &statusResponse{encoding: n})
	}
	for _, n := range []uint32{id.BrowseResponse_Encoding_DefaultBinary, id.BrowseNextResponse_Encoding_DefaultBinary} {
		list = append(list, &browseResponse{encoding: n})
	}
	return list
}

// encodeResponse encodes by the library, which is an independent second opinion.
func encodeResponse(t testing.TB, res ua.Response) []byte {
	t.Helper()
	res.SetHeader(&ua.ResponseHeader{
		Timestamp: time.Now(), ServiceDiagnostics: &ua.DiagnosticInfo{}, StringTable: []string{"a", ""}, AdditionalHeader: ua.NewExtensionObject(nil),
	})
	b := ua.NewBuffer(nil)
	b.WriteStruct(ua.NewFourByteExpandedNodeID(0, ua.ServiceTypeID(res)))
	b.WriteStruct(res)
	if b.Error() != nil {
		t.Fatal(b.Error())
	}
	return b.Bytes()
}

func samples(t testing.TB) [][]byte {
	endpoint := &ua.EndpointDescription{
		EndpointURL: "opc.tcp://a:1", Server: &ua.ApplicationDescription{ApplicationURI: "urn:a", ApplicationName: ua.NewLocalizedTextWithLocale("n", "de"), DiscoveryURLs: []string{"x", "y"}},
		ServerCertificate: []byte{1, 2}, SecurityMode: 3, SecurityPolicyURI: "p", TransportProfileURI: "t", SecurityLevel: 250,
		UserIdentityTokens: []*ua.UserTokenPolicy{{PolicyID: "1", TokenType: 1, SecurityPolicyURI: "q"}},
	}
	item := ua.NewExtensionObject(nil)
	value := &ua.DataValue{EncodingMask: 0x3f, Value: ua.MustVariant(21.5), Status: 0x480, SourceTimestamp: time.Unix(5, 100), ServerTimestamp: time.Unix(6, 0), SourcePicoseconds: 7, ServerPicoseconds: 8}
	var list [][]byte
	for _, r := range []ua.Response{
		&ua.OpenSecureChannelResponse{SecurityToken: &ua.ChannelSecurityToken{ChannelID: 1, TokenID: 2, RevisedLifetime: 60000}, ServerNonce: []byte{9}},
		&ua.GetEndpointsResponse{Endpoints: []*ua.EndpointDescription{endpoint, endpoint}},
		&ua.CreateSessionResponse{
			SessionID: ua.NewNumericNodeID(1, 2), AuthenticationToken: ua.NewByteStringNodeID(1, []byte{0, 255}), RevisedSessionTimeout: 1000,
			ServerNonce: []byte{1}, ServerCertificate: []byte{2}, ServerEndpoints: []*ua.EndpointDescription{endpoint}, ServerSignature: &ua.SignatureData{Algorithm: "x", Signature: []byte{3}},
			ServerSoftwareCertificates: []*ua.SignedSoftwareCertificate{{CertificateData: []byte{1}, Signature: []byte{2}}},
		},
		&ua.ActivateSessionResponse{ServerNonce: []byte{1}, Results: []ua.StatusCode{0}},
		&ua.CloseSessionResponse{},
		&ua.CreateSubscriptionResponse{SubscriptionID: 1, RevisedPublishingInterval: 100, RevisedLifetimeCount: 30, RevisedMaxKeepAliveCount: 10},
		&ua.CreateMonitoredItemsResponse{Results: []*ua.MonitoredItemCreateResult{{MonitoredItemID: 5, RevisedQueueSize: 6, RevisedSamplingInterval: 7, FilterResult: item}}},
		&ua.ModifyMonitoredItemsResponse{Results: []*ua.MonitoredItemModifyResult{{RevisedQueueSize: 6, RevisedSamplingInterval: 7, FilterResult: item}}},
		&ua.DeleteMonitoredItemsResponse{Results: []ua.StatusCode{0, 1}},
		&ua.DeleteSubscriptionsResponse{Results: []ua.StatusCode{0}},
		&ua.WriteResponse{Results: []ua.StatusCode{ua.StatusBadNotWritable}},
		&ua.TransferSubscriptionsResponse{Results: []*ua.TransferResult{{AvailableSequenceNumbers: []uint32{1, 2}}}},
		&ua.ReadResponse{Results: []*ua.DataValue{value, {EncodingMask: 1, Value: ua.MustVariant([][]int32{{1, 2, 3}, {4, 5, 6}})}}},
		&ua.BrowseResponse{Results: []*ua.BrowseResult{{ContinuationPoint: []byte{1}, References: []*ua.ReferenceDescription{{
			ReferenceTypeID: ua.NewNumericNodeID(0, 35), IsForward: true, NodeID: ua.NewExpandedNodeID(ua.NewStringNodeID(2, "n"), "urn:x", 3),
			BrowseName: &ua.QualifiedName{NamespaceIndex: 2, Name: "n"}, DisplayName: ua.NewLocalizedText("N"), NodeClass: 2, TypeDefinition: ua.NewNumericExpandedNodeID(0, 63),
		}}}}},
		&ua.BrowseNextResponse{Results: []*ua.BrowseResult{{}}},
		&ua.ServiceFault{},
	} {
		list = append(list, encodeResponse(t, r))
	}
	data := encodeNotification(3, []*ua.MonitoredItemNotification{{ClientHandle: 4, Value: value}, num(5, 6)})
	return append(list, publishBody(9, []uint32{1, 2, 3}, data), republishBody(data))
}

func TestResponsesAreRead(t *testing.T) {
	var e endpointsResponse
	var s createSessionResponse
	var p publishResponse
	var b browseResponse
	var v valuesResponse
	b.encoding = id.BrowseResponse_Encoding_DefaultBinary
	for _, into := range []response{&e, &s, &p, &b, &v} {
		found := false
		for _, body := range samples(t) {
			if r := (&reader{b: body}); r.nodeID().Num == into.encodingID() {
				found = true
				if err := decodeResponse(body, into); err != nil {
					t.Errorf("%T: %v", into, err)
				}
			}
		}
		if !found {
			t.Errorf("%T: no sample", into)
		}
	}
	want := Endpoint{URL: "opc.tcp://a:1", Application: "urn:a", Certificate: []byte{1, 2}, Mode: 3, Policy: "p", Transport: "t", Tokens: []Token{{"1", 1, "q"}}}
	if !reflect.DeepEqual(e.endpoints, []Endpoint{want, want}) {
		t.Errorf("endpoints: %+v", e)
	}
	if s.token != (NodeID{1, Opaque, 0, "\x00\xff"}) || s.timeout != 1000 || !bytes.Equal(s.signature, []byte{3}) || len(s.endpoints) != 1 {
		t.Errorf("session: %+v", s)
	}
	if p.subscription != 9 || len(p.available) != 3 || p.message.sequence != 3 || len(p.message.changes) != 2 || p.message.changes[0].handle != 4 {
		t.Errorf("publish: %+v", p)
	}
	d := p.message.changes[0].value
	if d.Value.Value != 21.5 || !d.Status.Overflow() || d.Source.Time() != time.Unix(5, 100).UTC() || d.Server.Time() != time.Unix(6, 0).UTC() {
		t.Errorf("value: %+v", d)
	}
	ref := b.results[0].references[0]
	if ref.Node != (ExpandedNodeID{NodeID{2, Text, 0, "n"}, "urn:x", 3}) || ref.BrowseName != (QualifiedName{2, "n"}) || !ref.Forward {
		t.Errorf("reference: %+v", ref)
	}
	if m := v.results[1].Value; !reflect.DeepEqual(m.Dimensions, []int32{2, 3}) || !reflect.DeepEqual(m.Value, []int32{1, 2, 3, 4, 5, 6}) {
		t.Errorf("matrix: %+v", m)
	}
	if err := decodeResponse(samples(t)[0], &p); err == nil || !strings.Contains(err.Error(), "answered with the type") {
		t.Errorf("another type: %v", err)
	}
}

// hostileBodies are messages that end a process which decodes them by the library: by a panic (p), by a stack that no
// recover can catch (s), by all memory or all time there is (m). The library is shown the first kind only.
func hostileBodies() []struct {
	name string
	kind byte
	body []byte
} {
	read := func(value ...byte) []byte {
		b := responseHead(id.ReadResponse_Encoding_DefaultBinary)
		b.WriteInt32(1)
		b.WriteByte(1) // a data value with a value
		b.Write(value)
		return b.Bytes()
	}
	le := func(n int32) []byte { b := ua.NewBuffer(nil); b.WriteInt32(n); return b.Bytes() }
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	diagnostics := ua.NewBuffer(nil)
	diagnostics.WriteStruct(ua.NewFourByteExpandedNodeID(0, id.ServiceFault_Encoding_DefaultBinary))
	diagnostics.Write(make([]byte, 16))
	return []struct {
		name string
		kind byte
		body []byte
	}{
		{"an array of -2 elements", 'p', read(cat([]byte{0x80 | 6}, le(-2))...)},
		{"an array of -2^31 elements", 'p', read(cat([]byte{0x80 | 6}, le(math.MinInt32))...)},
		{"a matrix of 2^31-1 dimensions", 'm', read(cat([]byte{0xC0 | 6}, le(0), le(math.MaxInt32))...)},
		{"a matrix whose size wraps to 0", 'm', read(cat([]byte{0xC0 | 6}, le(0), le(2), le(1<<16), le(1<<16))...)},
		{"a matrix that is split into steps of 0", 'm', read(cat([]byte{0xC0 | 1}, le(1), []byte{1}, le(2), le(math.MaxInt32), le(math.MaxInt32))...)},
		{"a million variants in one another", 's', read(bytes.Repeat([]byte{24}, 1_000_000)...)},
		{"a million data values in one another", 's', read(bytes.Repeat([]byte{23, 1}, 500_000)...)},
		{"a million diagnostics in one another", 's', append(diagnostics.Bytes(), bytes.Repeat([]byte{0x40}, 1_000_000)...)},
		{"variants in arrays in one another", 's', read(bytes.Repeat(cat([]byte{0x80 | 24}, le(1)), 200_000)...)},
	}
}

// TestHostileMessages: each of them is an error here. The first kind shows that the library's decoder is still no choice;
// when this fails because it does not panic any more, docs/adr/0005 wants another look.
func TestHostileMessages(t *testing.T) {
	for _, h := range hostileBodies() {
		err := readResponse(&reader{b: h.body}, &valuesResponse{})
		if err == nil {
			t.Errorf("%s: read without an error", h.name)
		}
		if h.kind != 'p' {
			continue
		}
		panics := func() (panics bool) {
			defer func() { panics = recover() != nil }()
			_, _, _ = ua.DecodeService(h.body)
			return false
		}()
		if !panics {
			t.Errorf("%s: the library does not panic any more", h.name)
		}
	}
}

// FuzzServiceResponse: no bytes make a decoder panic, recurse without bound or reserve memory without bound. Where the
// library makes sense of a response, so do we.
func FuzzServiceResponse(f *testing.F) {
	for _, body := range samples(f) {
		f.Add(body)
	}
	for _, h := range hostileBodies() {
		if len(h.body) < 1000 {
			f.Add(h.body)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 64<<10 {
			return
		}
		for _, into := range everyResponse() {
			_ = readResponse(&reader{b: body}, into) // not decodeResponse, which recovers
		}
	})
}

// FuzzVariant compares with the library, value by value, wherever it does not panic.
func FuzzVariant(f *testing.F) {
	for _, v := range []any{
		true, int8(-1), uint8(2), int16(-3), uint16(4), int32(-5), uint32(6), int64(-7), uint64(8), float32(1.5), 2.5, "text", time.Unix(1, 0),
		ua.NewGUID("72962B91-FA75-4AE6-8D28-B404DC7DAF63"),
		[]byte{1, 2},
		ua.XMLElement("<a/>"), ua.NewStringNodeID(1, "x"),
		ua.StatusBadTimeout, &ua.QualifiedName{Name: "q"}, ua.NewLocalizedText("l"),
		[]string{"a", "b"},
		[][]uint16{{1, 2}, {3, 4}},
	} {
		b, err := ua.MustVariant(v).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1000 {
			return
		}
		r := &reader{b: data}
		ours := r.variant()
		theirs, n, err := libraryVariant(data)
		if r.err != nil || err != nil {
			return // each has limits of its own
		}
		if used := len(data) - len(r.b); used != n {
			t.Fatalf("%x: %d bytes read, the library reads %d", data, used, n)
		}
		if text, want := fmt.Sprint(ours.Value), fmt.Sprint(theirs.Value()); comparable(ours) && text != want && !strings.EqualFold(text, want) {
			t.Errorf("%x: read %s, the library reads %s", data, text, want)
		}
	})
}

// comparable: both print it alike.
func comparable(v Variant) bool {
	switch v.Type {
	case ua.TypeIDBoolean, ua.TypeIDSByte, ua.TypeIDByte, ua.TypeIDInt16, ua.TypeIDUint16, ua.TypeIDInt32, ua.TypeIDUint32,
		ua.TypeIDInt64, ua.TypeIDUint64, ua.TypeIDFloat, ua.TypeIDDouble, ua.TypeIDGUID:
		return !v.Array
	default:
		return false
	}
}

var errPanic = errors.New("the library panics")

func libraryVariant(data []byte) (v *ua.Variant, n int, err error) {
	// What makes the library run on or fill the memory is no subject of a comparison.
	if len(data) > 0 && data[0]&0x40 != 0 || bytes.Count(data, []byte{24})+bytes.Count(data, []byte{23})+bytes.Count(data, []byte{25}) > 100 {
		return nil, 0, errPanic
	}
	defer func() {
		if recover() != nil {
			err = errPanic
		}
	}()
	v = &ua.Variant{}
	n, err = v.Decode(data)
	return v, n, err
}

// FuzzChunk: whatever a peer sends as a chunk ends in a chunk or an error.
func FuzzChunk(f *testing.F) {
	type pair struct{ client, server *channel }
	var pairs []pair
	for _, s := range everySecurity() {
		client, server := parties(f, s)
		agree(f, client, server, 1)
		pairs = append(pairs, pair{client, server})
		f.Add(server.testFrame(f, "MSG", []byte("body")))
		f.Add(server.testFrame(f, "OPN", []byte("body")))
	}
	f.Add([]byte("MSGF\x0c\x00\x00\x00\x07\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, p := range pairs {
			_, _ = p.client.unwrap(frame)
		}
	})
}

func TestNodeIDs(t *testing.T) {
	for text, want := range map[string]Ref{
		"i=85":                                   {ID: NodeID{Kind: Numeric, Num: 85}},
		"ns=2;s=a;b=c":                           {ID: NodeID{2, Text, 0, "a;b=c"}},
		"nsu=urn:x;i=4":                          {URI: "urn:x", ID: NodeID{Kind: Numeric, Num: 4}},
		"ns=1;b=AP8=":                            {ID: NodeID{1, Opaque, 0, "\x00\xff"}},
		"nsu=http://a/b?c;s=d":                   {URI: "http://a/b?c", ID: NodeID{Kind: Text, Text: "d"}},
		"g=72962B91-FA75-4AE6-8D28-B404DC7DAF63": {ID: NodeID{Kind: GUIDText, Text: "72962b91-fa75-4ae6-8d28-b404dc7daf63"}},
	} {
		got, err := ParseRef(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		again, err := ParseRef(got.String())
		if err != nil || again != got {
			t.Errorf("%s is written as %s, which reads as %+v, %v", text, got, again, err)
		}
		var back NodeID
		data, err := got.ID.MarshalText()
		if err == nil {
			err = back.UnmarshalText(data)
		}
		if err != nil || back != got.ID {
			t.Errorf("%s: stored as %s, read as %+v, %v", text, data, back, err)
		}
		r := &reader{b: mustEncode(t, got.ID.ua())}
		if id := r.nodeID(); id != got.ID || r.err != nil {
			t.Errorf("%s: sent and read as %+v, %v", text, id, r.err)
		}
	}
	for _, bad := range []string{"", "i=", "i=-1", "i=4294967296", "ns=65536;i=1", "ns=;i=1", "nsu=;i=1", "nsu=x", "x=1", "s", "g=12", "b=%", "ns=1"} {
		if got, err := ParseRef(bad); err == nil {
			t.Errorf("%q reads as %+v", bad, got)
		}
	}
	ref := Ref{URI: "urn:x", ID: NodeID{Kind: Numeric, Num: 4}}
	if id, err := ref.Resolve([]string{"a", "b", "urn:x"}); err != nil || id.Namespace != 2 {
		t.Errorf("resolved to %s, %v", id, err)
	}
	if _, err := ref.Resolve([]string{"a"}); err == nil {
		t.Error("resolved without its namespace")
	}
}

func mustEncode(t *testing.T, v ua.BinaryEncoder) []byte {
	t.Helper()
	b, err := v.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDateTimes(t *testing.T) {
	for d, want := range map[DateTime]string{
		1: "1601-01-01T00:00:00.0000001Z", 116444736000000000: "1970-01-01T00:00:00Z", 116444735999999999: "1969-12-31T23:59:59.9999999Z",
		125911584000000000: "2000-01-01T00:00:00Z", math.MaxInt64: "30828-09-14T02:48:05.4775807Z",
	} {
		if got := d.Time().Format("2006-01-02T15:04:05.9999999Z"); got != want {
			t.Errorf("%d ticks: %s, want %s", d, got, want)
		}
	}
}

func TestStatusNames(t *testing.T) {
	for s, want := range map[StatusCode]string{
		0: "Good", 0x40900000: "UncertainLastUsableValue", 0x80340000: "BadNodeIdUnknown", StatusCode(ua.StatusBadServerURIInvalid): "BadServerUriInvalid",
		0x00000480: "Good", 0x80ff0000: "0x80FF0000", StatusCode(ua.StatusBadTCPEndpointURLInvalid): "BadTcpEndpointUrlInvalid",
	} {
		if got := s.String(); got != want {
			t.Errorf("%#08x is named %s, want %s", uint32(s), got, want)
		}
	}
}

// BenchmarkPublishResponse reads a notification of a thousand values; the library's decoder beside it.
func BenchmarkPublishResponse(b *testing.B) {
	var values []*ua.MonitoredItemNotification
	for i := range uint32(1000) {
		values = append(values, &ua.MonitoredItemNotification{ClientHandle: i, Value: &ua.DataValue{
			EncodingMask: ua.DataValueValue | ua.DataValueSourceTimestamp | ua.DataValueServerTimestamp,
			Value:        ua.MustVariant(float64(i)), SourceTimestamp: time.Now(), ServerTimestamp: time.Now(),
		}})
	}
	body := publishBody(1, nil, encodeNotification(1, values))
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var p publishResponse
			if err := decodeResponse(body, &p); err != nil || len(p.message.changes) != 1000 {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*1000), "ns/value")
	})
	b.Run("library", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := ua.DecodeService(body); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*1000), "ns/value")
	})
}
