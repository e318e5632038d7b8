package opcua

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/bridges/opcua/link"
	"tidegate/config"
	"tidegate/message"
)

func describedAs(name string, path ...string) link.Description {
	return link.Description{Node: link.NodeID{Namespace: 2, Kind: link.Text, Text: name}, Name: name, Path: path}
}

// published is what the test server holds, as both formats publish it.
var published = map[string][2]string{
	"Boolean": {`true`, `true`}, "SByte": {`-128`, `-128`}, "Byte": {`255`, `255`}, "Int16": {`-32768`, `-32768`},
	"UInt16": {`65535`, `65535`}, "Int32": {`-2147483648`, `-2147483648`}, "UInt32": {`4294967295`, `4294967295`},
	"Int64": {`-9223372036854775808`, `-9223372036854775808`}, "UInt64": {`18446744073709551615`, `18446744073709551615`},
	"Float": {`1.5`, `1.5`}, "Double": {`0.1`, `0.1`}, "NaN": {`"NaN"`, `NaN`}, "Infinity": {`"Infinity"`, `Infinity`},
	"String":        {"\"grüße \\\"+\\\" \u2028\"", "grüße \"+\" \u2028"},
	"DateTime":      {`"2026-01-02T03:04:05.678Z"`, `2026-01-02T03:04:05.678Z`},
	"Guid":          {`"72962b91-fa75-4ae6-8d28-b404dc7daf63"`, `72962b91-fa75-4ae6-8d28-b404dc7daf63`},
	"ByteString":    {`"AAH+/w=="`, `AAH+/w==`},
	"LocalizedText": {`{"text":"Presse","locale":"de"}`, `Presse`}, "QualifiedName": {`"1:q"`, `1:q`},
	"NodeId": {`"ns=1;s=x"`, `ns=1;s=x`}, "StatusCode": {`"BadDeviceFailure"`, `BadDeviceFailure`},
	"DoubleArray": {`[1,2.5,-3]`, `[1,2.5,-3]`}, "Matrix": {`[[1,2,3],[4,5,6]]`, `[[1,2,3],[4,5,6]]`},
	"StringArray": {`["a","b"]`, `["a","b"]`}, "EmptyArray": {`[]`, `[]`},
	"Structure": {`{"structure":"i=886","base64":"AAAAAAAA8L8AAAAAAAAAQA=="}`, `{"structure":"i=886","base64":"AAAAAAAA8L8AAAAAAAAAQA=="}`},
	"Bad":       {`null`, `null`},
}

func typesConfig(url, format string) config.OPCUA {
	c := config.OPCUA{
		Endpoint: url, Security: "None", Format: format, Topic: format + "/{id}",
		PublishingInterval: config.Duration(100 * time.Millisecond), SamplingInterval: config.Duration(100 * time.Millisecond),
		OutageBudget: config.Duration(5 * time.Second),
	}
	for _, name := range slices.Sorted(maps.Keys(published)) {
		c.Nodes = append(c.Nodes, config.OPCUANode{ID: "nsu=urn:tidegate:test;s=" + name})
	}
	return c
}

func TestEveryTypeIsPublished(t *testing.T) {
	peer := startPeer(t, peerOptions{})
	bus := newBus()
	runBridge(t, typesConfig(peer.url(), "json"), bus, t.TempDir())
	runBridge(t, typesConfig(peer.url(), "value"), bus, t.TempDir())
	for name, want := range published {
		q := "Good"
		if name == "Bad" {
			q = "BadSensorFailure"
		}
		got := bus.last(t, "json/"+name, 20*time.Second, anyPayload)
		if !strings.HasPrefix(got, `{"v":`+want[0]+`,"t":"20`) || !strings.HasSuffix(got, `Z","q":"`+q+`"}`) {
			t.Errorf("%s: published %s, want the value %s and the quality %s", name, got, want[0], q)
		}
		if !json.Valid([]byte(got)) {
			t.Errorf("%s: %s is no JSON", name, got)
		}
		if got := bus.last(t, "value/"+name, 20*time.Second, anyPayload); got != want[1] {
			t.Errorf("%s: published %q as a bare value, want %q", name, got, want[1])
		}
	}
	m := bus.on("json/Double")[0]
	if m.Source != (message.Source{Protocol: message.OPCUA, Client: "press1"}) || m.QoS != 1 || m.ContentType != "application/json" ||
		!m.PayloadUTF8 || m.ID.IsZero() || time.Since(m.SourceTime) > time.Minute || m.SourceTime.IsZero() {
		t.Errorf("a value is published as %+v", m)
	}
	if m := bus.on("value/Double")[0]; m.ContentType != "text/plain" {
		t.Errorf("a bare value has the content type %q", m.ContentType)
	}
}

// writes is the table of what is written, and what the server then holds; an error instead is what refuses it.
var writeCases = []struct{ node, payload, want, err string }{
	{"Boolean", `false`, "false", ""},
	{"Boolean", `{"v":true}`, "true", ""},
	{"Boolean", `2`, "", "no Boolean"},
	{"SByte", `-128`, "-128", ""},
	{"SByte", `128`, "", "outside of -128 to 127"},
	{"Byte", `{"v":200,"q":"Good"}`, "200", ""},
	{"Byte", `-1`, "", "outside of 0 to 255"},
	{"Int16", `1e3`, "1000", ""},
	{"UInt16", `65536`, "", "outside of 0 to 65535"},
	{"Int32", `5.0`, "5", ""},
	{"Int32", `5.5`, "", "no whole number"},
	{"Int32", ` 7 `, "7", ""},
	{"Int32", `seven`, "", "no number"},
	{"Int32", `null`, "", "null"},
	{"Int32", `[1]`, "", "no single value"},
	{"Int32", `{"x":1}`, "", `without "v"`},
	{"UInt32", `4294967295`, "4294967295", ""},
	{"Int64", `-9223372036854775808`, "2147483648,0", ""},
	{"Int64", `9223372036854775808`, "", "outside"},
	{"UInt64", `"18446744073709551615"`, "4294967295,4294967295", ""},
	{"Float", `0.1`, "0.10000000149011612", ""},
	{"Float", `1e39`, "", "outside of the range of Float"},
	{"Double", `0.1`, "0.1", ""},
	{"Double", `"NaN"`, "NaN", ""},
	{"Double", `1e400`, "", "outside of the range of Double"},
	{"Duration", `250`, "250", ""},
	{"Enumeration", `1`, "1", ""},
	{"String", `plain text`, "plain text", ""},
	{"String", `"quoted"`, "quoted", ""},
	{"String", `21.5`, "21.5", ""},
	{"DateTime", `2026-05-06T07:08:09.1Z`, "", ""},
	{"DateTime", `yesterday`, "", "no time"},
	{"DateTime", `2026-05-06T07:08:09.123456789Z`, "", "finer than the 100 ns"},
	{"Guid", `"00112233-4455-6677-8899-AABBCCDDEEFF"`, "00112233-4455-6677-8899-AABBCCDDEEFF", ""},
	{"Guid", `x`, "", "no Guid"},
	{"ByteString", `"AAEC"`, "\x00\x01\x02", ""},
	{"ByteString", `%%`, "", "no base64"},
	{"LocalizedText", `Hallo`, "", ""},
	{"DoubleArray", `[1]`, "", "array"},
	{"Structure", `1`, "", "cannot be written"},
	{"ReadOnly", `1`, "", "BadNotWritable"},
}

func TestWrites(t *testing.T) {
	peer := startPeer(t, peerOptions{})
	bus := newBus()
	c := config.OPCUA{Endpoint: peer.url(), Security: "None", Format: "json", PublishingInterval: config.Duration(time.Second), OutageBudget: config.Duration(time.Second)}
	for _, w := range writeCases {
		c.Writes = append(c.Writes, config.OPCUAWrite{Topic: "cmd/" + w.node, ID: "nsu=urn:tidegate:test;s=" + w.node})
	}
	c.Writes = append(c.Writes, config.OPCUAWrite{Topic: "cmd/Nope", ID: "nsu=urn:tidegate:test;s=Nope"})
	b := runBridge(t, c, bus, t.TempDir())
	until(t, 20*time.Second, "connected", func() bool { return b.Status().Up })
	send := func(node, payload string) (reply string, err error) {
		t.Helper()
		from := bus.count()
		err = bus.deliver(message.Message{Topic: "cmd/" + node, Payload: []byte(payload), ResponseTopic: "reply/" + node, CorrelationData: []byte("c1")})
		if bus.count() != from+1 {
			t.Fatalf("%s: %d replies", node, bus.count()-from)
		}
		replies := bus.on("reply/" + node)
		r := replies[len(replies)-1]
		if string(r.CorrelationData) != "c1" || r.ContentType != "application/json" {
			t.Errorf("%s: the reply is %+v", node, r)
		}
		return string(r.Payload), err
	}
	for _, w := range writeCases {
		before := peer.do("get", "name", w.node)
		reply, err := send(w.node, w.payload)
		after := peer.do("get", "name", w.node)
		if w.err != "" {
			if err == nil || !strings.Contains(err.Error(), w.err) || !strings.HasPrefix(reply, `{"ok":false,"error":"`) {
				t.Errorf("%s <- %s: error %v, reply %s; want %q", w.node, w.payload, err, reply, w.err)
			}
			if after.Value != before.Value {
				t.Errorf("%s <- %s: refused, but it changed from %s to %s", w.node, w.payload, before.Value, after.Value)
			}
			if strings.Contains(w.payload, "secret") && strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: the error repeats the payload: %v", w.node, err)
			}
			continue
		}
		if err != nil || reply != `{"ok":true}` {
			t.Errorf("%s <- %s: error %v, reply %s", w.node, w.payload, err, reply)
		}
		if w.want != "" && after.Value != w.want {
			t.Errorf("%s <- %s: the server holds %q, want %q", w.node, w.payload, after.Value, w.want)
		}
	}
	if reply, err := send("Nope", "1"); err == nil || !strings.Contains(reply, "BadNodeIdUnknown") {
		t.Errorf("an unknown node: %v, %s", err, reply)
	}

	expired := message.Message{Topic: "cmd/Double", Payload: []byte("5"), Expires: time.Now().Add(-time.Second)}
	if err := bus.deliver(expired); !errors.Is(err, errExpired) {
		t.Errorf("an expired message: %v", err)
	}
	if got := b.figures.results(); got["expired"] != 1 || got["written"] == 0 || got["refused"] == 0 {
		t.Errorf("counted %v", got)
	}

	peer.kill()
	until(t, 6*time.Second, "the end of the server is noticed", func() bool { return !b.Status().Up })
	started := time.Now()
	reply, err := send("Double", "7")
	if err == nil || !strings.Contains(reply, "not connected") || time.Since(started) > time.Second {
		t.Errorf("a write without a server: %v, %s, after %s", err, reply, time.Since(started))
	}
	peer.start()
	until(t, 20*time.Second, "connected again", func() bool { return b.Status().Up })
	if got := peer.do("get", "name", "Double").Value; got != "0.1" {
		t.Errorf("a stale command ran later: the node holds %s", got)
	}
	if reply, err := send("Double", "8"); err != nil {
		t.Errorf("a write after the server is back: %v, %s", err, reply)
	}
}

// TestTools: what the commands need.
func TestTools(t *testing.T) {
	peer := startPeer(t, peerOptions{Announce: "plc-17.invalid", Users: map[string]string{"op": "secret"}})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	endpoints, err := Endpoints(ctx, peer.url())
	if err != nil || len(endpoints) != 7 {
		t.Fatalf("endpoints: %+v, %v", endpoints, err)
	}
	for _, e := range endpoints {
		if e.URL != peer.url() || !e.Usable || e.Thumbprint == "" || !slices.Contains(e.Logins, "anonymous") || !slices.Contains(e.Logins, "username") {
			t.Errorf("endpoint %+v, want the URL %s", e, peer.url())
		}
	}
	target := Target{Name: "press1", Config: config.OPCUA{Endpoint: peer.url(), Security: "None"}, Dir: t.TempDir(), GatewayID: "gw"}
	nodes, err := Browse(ctx, target, "", 3)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == "Temperature" })
	if i < 0 || nodes[i] != (Node{ID: "nsu=urn:tidegate:test;s=Temperature", Name: "Temperature", Class: "Variable", Type: "Double", Depth: 3}) {
		t.Errorf("browse finds %+v", nodes)
	}
	readings, err := Read(ctx, target, "nsu=urn:tidegate:test;s=UInt64", "i=1")
	if err != nil || len(readings) != 2 || !strings.HasPrefix(string(readings[0].Value), `{"v":18446744073709551615,`) ||
		!strings.Contains(string(readings[1].Value), `"q":"Bad`) {
		t.Errorf("read: %s, %v", readings, err)
	}
	if err := Write(ctx, target, "nsu=urn:tidegate:test;s=Double", []byte("2.25")); err != nil || peer.do("get", "name", "Double").Value != "2.25" {
		t.Errorf("write: %v", err)
	}
	if _, err := Endpoints(ctx, fmt.Sprintf("opc.tcp://127.0.0.1:%d", freePort(t))); err == nil {
		t.Error("endpoints of nobody")
	}
}
