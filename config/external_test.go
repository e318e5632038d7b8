package config

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

const externalText = "[broker]\nmode = 'external'\n[broker.external]\nservers = ['mqtt://b']\n"

func TestExternalDefaults(t *testing.T) {
	c, ps := checkText("[gateway]\nid = 'gw'\n" + externalText + uplinkText)
	if len(ps) > 0 {
		t.Fatalf("problems: %s", lines(ps))
	}
	e := *c.Broker.External
	e.ServersAt = nil
	want := External{
		Servers: []string{"mqtt://b:1883"}, ClientID: "gw-broker", Group: "tidegate", Subscribe: []string{"#"}, QoS: 1,
		ReceiveMaximum: 1024, SessionExpiry: Duration(7 * 24 * time.Hour), KeepAlive: Duration(30 * time.Second),
	}
	if !reflect.DeepEqual(e, want) {
		t.Errorf("got %+v\nwant %+v", e, want)
	}
	if len(c.Listeners) != 0 {
		t.Errorf("listeners %+v beside a broker of the user's own", c.Listeners)
	}
}

// TestExternalSubscriptions: what the routes want, and never two filters that select the same topic.
func TestExternalSubscriptions(t *testing.T) {
	for _, c := range []struct{ from, want string }{
		{"'a/#', 'b'", "a/# b"},
		{"'a/#', 'a/b', 'a/+/c'", "a/#"},
		{"'a/b', 'a/#'", "a/#"},
		{"'a/+/c', 'a/b/+'", "a/+/+"},
		{"'a/+/c', 'x/y', 'a/b/#', '+/y'", "+/+/#"},
		{"'a/b/c', 'a/+/c', '+/b/c'", "+/+/c"},
		{"'a', 'a/#', 'b/+', 'b/+/c'", "a/# b/+ b/+/c"},
		{"'+/b', 'a/b/#'", "+/b/#"},
	} {
		got, ps := checkText(externalText + "[route.r]\nfrom = [" + c.from + "]\n[uplink.u]\nservers = ['mqtt://h']")
		if ps.Wrong() || strings.Join(got.Broker.External.Subscribe, " ") != c.want {
			t.Errorf("from %s: %q, want %q; %s", c.from, got.Broker.External.Subscribe, c.want, lines(ps))
		}
	}
}

func TestExternalProblems(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"without a mode", "[broker.external]\nservers = ['mqtt://b']\n" + uplinkText, `1:9: broker.external: warning: has no effect while broker.mode is "embedded"`},
		{"without a table", "[broker]\nmode = 'external'\n" + uplinkText, `2:8: broker.mode: needs [broker.external] with the servers of that broker`},
		{"without servers", "[broker]\nmode = 'external'\n[broker.external]\n" + uplinkText, `3:9: broker.external.servers: is missing: name the broker, such as ["mqtt://127.0.0.1:1883"]`},
		{"WebSocket", "[broker]\nmode = 'external'\n[broker.external]\nservers = ['ws://h']\n" + uplinkText, `4:12: broker.external.servers: ws:// is not built yet here; this build has mqtt://, mqtts://`},
		{"unknown key", externalText + "grup = 'a'\n" + uplinkText, `5:1: broker.external.grup: unknown key; did you mean "group"?`},
		{"group", externalText + "group = 'a/b'\n" + uplinkText, `5:9: broker.external.group: "a/b" is no name of a group: none of / + # [MQTT-4.8.2-1]`},
		{"no group", externalText + "group = ''\n" + uplinkText, `5:9: broker.external.group: is empty; write "off" for a gateway that shares with no other, or leave the key out for "tidegate"`},
		{"client identifier", externalText + "client_id = '{gatway}'\n" + uplinkText, `5:13: broker.external.client_id: unknown name {gatway}, known here are {gateway}; did you mean "{gateway}"?`},
		{"client identifier of an uplink", externalText + "client_id = 'x'\n[route.all]\nfrom = ['#']\n[uplink.u]\nservers = ['mqtt://x', 'mqtt://b']\nclient_id = 'x'", "5:13: broker.external.client_id: uplink.u has the same server and the same client identifier \"x\": they would throw each other off\n9:24: uplink.u.servers: warning: is the broker of broker.external as well: what goes up would come back where broker.external.subscribe selects it, and go up again"},
		{"QoS", externalText + "qos = 0\n" + uplinkText, `5:7: broker.external.qos: must be 1 or 2, not 0`},
		{"receive maximum", externalText + "receive_maximum = 0\n" + uplinkText, `5:19: broker.external.receive_maximum: must be from 1 to 65535, not 0`},
		{"session expiry", externalText + "session_expiry = '0s'\n" + uplinkText, `5:18: broker.external.session_expiry: must be from 1s to 876000h0m0s`},
		{"password in the clear", "[broker]\nmode = 'external'\n[broker.external]\nservers = ['mqtt://192.0.2.1']\npassword = 'x'\n" + uplinkText, `5:12: broker.external.password: warning: goes to mqtt://192.0.2.1:1883 unencrypted; mqtts:// encrypts it`},
		{"a shared subscription", externalText + "subscribe = ['$share/g/a']\n" + uplinkText, `5:14: broker.external.subscribe: a shared subscription cannot stand here; write the filter alone, without $share/GROUP/`},
		{"overlap", externalText + "subscribe = ['a/#', 'a/+/c']\n" + uplinkText, `5:21: broker.external.subscribe: overlaps "a/#": the broker would hand over twice what both select`},
		{"not subscribed", externalText + "subscribe = ['a/#']\n[route.r]\nfrom = ['b/#']\n[uplink.u]\nservers = ['mqtt://h']", `7:9: route.r.from: warning: gets nothing from the broker: broker.external.subscribe does not select it`},
		{"nothing wanted", externalText, `3:9: broker.external: warning: no route wants anything: no message is taken from the broker`},
		{"listener", externalText + "[listener.a]\nlisten = 'mqtt://127.0.0.1:1'\n" + uplinkText, `5:11: listener.a: cannot stand beside broker.mode = "external": devices speak to that broker; remove one of them`},
		{"keys without effect", "[broker]\nmode = 'external'\nmax_clients = 5\nretained_limit = 5\nmax_packet = '1MiB'\n[broker.external]\nservers = ['mqtt://b']\n" + uplinkText, "3:1: broker.max_clients: warning: has no effect with broker.mode = \"external\"\n4:1: broker.retained_limit: warning: has no effect with broker.mode = \"external\""},
		{"retained messages of CoAP", externalText + "[coap]\n" + uplinkText, ""},
		{"rules without anybody to ask them for", externalText + "[auth]\nanonymous = false\n" + uplinkText, `5:2: auth: warning: has no effect with broker.mode = "external": that broker decides who may connect and publish`},
		{"unknown client in a topic", externalText + "[route.r]\nfrom = ['#']\ntopic = '{client}/{topic}'\n[uplink.u]\nservers = ['mqtt://h']", `7:9: route.r.topic: warning: behind a broker of your own {client} is not known: {client} is the user property tg-src, or the topic; {user} is empty`},
		{"name of an OPC UA server", externalText + "[opcua.broker]\nendpoint = 'opc.tcp://h'\n[[opcua.broker.write]]\ntopic = 'a'\nid = 'i=1'\n" + uplinkText, `5:8: opcua.broker: the name "broker" belongs to another bridge; choose one of your own`},
	} {
		_, ps := checkText(c.text)
		if got := strings.TrimSuffix(lines(ps), "\n"); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestExternalWithoutGroup(t *testing.T) {
	if c, ps := checkText(externalText + "group = 'off'\n" + uplinkText); len(ps) > 0 || c.Broker.External.Group != "" {
		t.Errorf("group %q; %s", c.Broker.External.Group, lines(ps))
	}
}

func TestExternalTakesTheTopicsOfWrites(t *testing.T) {
	c, ps := checkText(externalText + "[opcua.press]\nendpoint = 'opc.tcp://h'\n[[opcua.press.write]]\ntopic = 'cmd/a'\nid = 'i=1'\n[[opcua.press.write]]\ntopic = 'cmd/b'\nid = 'i=2'\n" + uplinkText)
	if ps.Wrong() || strings.Join(c.Broker.External.Local, " ") != "cmd/a cmd/b" {
		t.Errorf("local topics %q; %s", c.Broker.External.Local, lines(ps))
	}
}

// FuzzWiden: a widened filter selects what both did.
func FuzzWiden(f *testing.F) {
	f.Add("a/+/c", "a/b/+")
	f.Add("+/b", "a/b/#")
	f.Add("#", "a")
	f.Fuzz(func(t *testing.T, a, b string) {
		if checkFilter(a) != nil || checkFilter(b) != nil || !overlaps(a, b) {
			return
		}
		w := widen(a, b)
		if checkFilter(w) != nil || !covers(w, a) || !covers(w, b) {
			t.Errorf("%q and %q become %q", a, b, w)
		}
	})
}
