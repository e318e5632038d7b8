package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// presetFile is a folder with what a preset's uplink names.
func presetFile(t *testing.T) string {
	t.Helper()
	cert, key := certificate(t, time.Now().Add(time.Hour))
	return filepath.Join(write(t, map[string]string{"crt": cert, "key": key, "word": "w", "sas": "MDEyMzQ1Njc4OWFiY2RlZg=="}), "t.toml")
}

const (
	presetHead = "[route.r]\nfrom = ['a/#']\n"
	awsText    = "[uplink.c]\npreset = 'aws-iot-core'\ncert = 'crt'\nkey = 'key'\n"
	hubText    = "[uplink.c]\npreset = 'azure-iot-hub'\nclient_id = 'd1'\n"
	gridText   = "[uplink.c]\npreset = 'azure-event-grid'\n"
	hubTopic   = "topic = 'devices/d1/messages/events/'\n"
)

// TestPresetsFillIn: what the user left out is what the service wants.
func TestPresetsFillIn(t *testing.T) {
	name := presetFile(t)
	for _, c := range []struct{ text, want string }{
		{
			awsText + "servers = ['mqtts://x.amazonaws.com', 'mqtts://x.amazonaws.com:443']",
			"[mqtts://x.amazonaws.com:8883 mqtts://x.amazonaws.com:443] 5 [[] [x-amzn-mqtt-ca]] 100 100 strip",
		},
		{
			awsText + "servers = ['mqtts://x.amazonaws.com:443']\nalpn = ['own']\nmax_rate = { messages = '50/s', bytes = '1MB/s' }\nretain = 'keep'\nmax_in_flight = 20",
			"[mqtts://x.amazonaws.com:443] 5 [[own]] 50 20 keep",
		},
		{
			"[uplink.c]\npreset = 'aws-iot-core'\nusername = 'u?x-amz-customauthorizer-name=a'\npassword = { file = 'word' }\nservers = ['mqtts://x:443', 'wss://x']\nmax_rate = { bytes = '1MB/s' }",
			"[mqtts://x:443 wss://x:443/mqtt] 5 [[mqtt] []] 100 100 strip",
		},
		{
			hubText + "sas_key = { file = 'sas' }\nservers = ['mqtts://h.azure-devices.net', 'wss://h.azure-devices.net', 'wss://h/x']",
			"[mqtts://h.azure-devices.net:8883 wss://h.azure-devices.net:443/$iothub/websocket?iothub-no-client-cert=true wss://h:443/x] 3.1.1 [[] [] []] 0 0 strip",
		},
		{
			hubText + "cert = 'crt'\nkey = 'key'\nservers = ['wss://h.azure-devices.net']\nprotocol = '3.1.1'",
			"[wss://h.azure-devices.net:443/$iothub/websocket] 3.1.1 [[]] 0 0 strip",
		},
		{ // with batches the topics of routes stand inside
			hubText + "sas_key = { file = 'sas' }\nservers = ['wss://h/']\nbatch = {}",
			"[wss://h:443/$iothub/websocket?iothub-no-client-cert=true] 3.1.1 [[]] 0 0 strip",
		},
		{
			awsText + "servers = ['mqtts://x']\nbatch = {}\nmax_rate = { messages = '5000/s' }",
			"[mqtts://x:8883] 5 [[]] 5000 100 strip",
		},
		{
			awsText + "servers = ['mqtts://x']\nbatch = { max_bytes = '128KiB', compress = 'none', topic = '$aws/rules/tidegate/1/2/3/4/5/6/7/8' }",
			"[mqtts://x:8883] 5 [[]] 0 100 strip",
		},
		{
			gridText + "username = 'n'\ncert = 'crt'\nkey = 'key'\nservers = ['mqtts://h', 'wss://h']",
			"[mqtts://h:8883 wss://h:443/mqtt] 5 [[] []] 0 0 keep",
		},
		{
			"[uplink.c]\npreset = 'hivemq-cloud'\nusername = 'n'\npassword = { file = 'word' }\nservers = ['mqtts://h', 'wss://h', 'wss://h:1']",
			"[mqtts://h:8883 wss://h:8884/mqtt wss://h:1/mqtt] 5 [[] [] []] 0 0 keep",
		},
		{
			"[uplink.c]\npreset = 'emqx-cloud'\nusername = 'n'\npassword = { file = 'word' }\nservers = ['wss://h']\nprotocol = '3.1.1'",
			"[wss://h:8084/mqtt] 3.1.1 [[]] 0 0 keep",
		},
	} {
		head := presetHead
		if strings.Contains(c.text, AzureIoTHub) && !strings.Contains(c.text, "batch") {
			head += hubTopic
		}
		conf, ps := read(name, []document{{name, []byte(head + c.text)}}, nil)
		if len(ps) > 0 || conf == nil {
			t.Errorf("%s\n%s", c.text, relative(filepath.Dir(name), ps))
			continue
		}
		u := conf.Uplinks["c"]
		got := fmt.Sprint(u.Servers, u.Protocol, u.ServerALPN, u.MaxRate.Messages.PerSecond(), u.MaxInFlight, u.Retain)
		got = strings.ReplaceAll(got, "]"+u.Protocol+"[", "] "+u.Protocol+" [")
		if strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(c.want, " ", "") {
			t.Errorf("%s\n got %s\nwant %s", c.text, got, c.want)
		}
		if u.Limits.Service != u.Preset || (u.Limits.MaxPublishes > 0) != (u.Preset == AWSIoTCore && u.Batch != nil) {
			t.Errorf("limits %+v", u.Limits)
		}
	}
}

// TestPresetProblems: what a service would refuse is refused before it is tried.
func TestPresetProblems(t *testing.T) {
	name := presetFile(t)
	aws, hub := awsText+"servers = ['mqtts://x']\n", hubText+"servers = ['mqtts://h']\nsas_key = { file = 'sas' }\n"
	grid := gridText + "servers = ['mqtts://h']\ncert = 'crt'\nkey = 'key'\nusername = 'n'\n"
	topic := func(template string) string { return presetHead + "topic = '" + template + "'\n" }
	for _, c := range []struct{ text, want string }{
		{presetHead + awsText + "servers = ['mqtt://x']", "uplink.c.servers: aws-iot-core takes only encrypted connections: mqtts:// or wss://"},
		{presetHead + awsText + "servers = ['mqtts://10.0.0.1']", "uplink.c.servers: aws-iot-core finds its customers by the host name in the TLS handshake: write the name instead of the address, or set server_name"},
		{presetHead + awsText + "servers = ['wss://x']", "uplink.c.servers: aws-iot-core over WebSocket needs a signature this build cannot make"},
		{presetHead + "[uplink.c]\npreset = 'aws-iot-core'\nservers = ['mqtts://x']", "uplink.c.cert: aws-iot-core knows a client by its certificate"},
		{presetHead + aws + "keep_alive = '10s'", "uplink.c.keep_alive: aws-iot-core takes 30s to 20m0s"},
		{presetHead + aws + "keep_alive = '21m'", "uplink.c.keep_alive: aws-iot-core takes 30s to 20m0s"},
		{presetHead + aws + "batch = { topic = '1/2/3/4/5/6/7/8/9' }", "uplink.c.batch.topic: a topic with 8 slashes, aws-iot-core takes 7"},
		{presetHead + aws + "batch = { max_bytes = '1MiB', compress = 'none' }", "uplink.c.batch.max_bytes: aws-iot-core takes 131072 bytes in one message: lower it, or let the batches be packed"},
		{presetHead + hub + "batch = { topic = 'sites/batch' }", "uplink.c.batch.topic: the topic does not begin with devices/d1/messages/events/, which azure-iot-hub wants"},
		{presetHead + hub + "batch = { max_bytes = '256KiB', compress = 'none' }", "uplink.c.batch.max_bytes: azure-iot-hub takes 261"},
		{presetHead + hubTopic + hub + "[[uplink.c.command]]\nfrom = 'devices/d1/messages/devicebound/+/x'\nto = 'y'", "uplink.c.command[1].from: azure-iot-hub takes no + there: write devices/d1/messages/devicebound/#"},
		{presetHead + aws + "max_rate = { messages = '101/s' }", "uplink.c.max_rate: warning: aws-iot-core takes 100 messages a second of one connection"},
		{presetHead + aws + "client_id = '" + strings.Repeat("x", 129) + "'", "uplink.c.client_id: has 129 bytes, aws-iot-core takes 128"},
		{presetHead + aws + strings.Repeat("[[uplink.c.command]]\nfrom = 'x'\nto = 'y'\n", 9), "uplink.c.command: aws-iot-core takes at most 8 subscriptions at once, this uplink has 9"},
		{presetHead + aws + "[[uplink.c.command]]\nfrom = 'a/b/c/d/e/f/g/h/i'\nto = 'y'", "uplink.c.command[1].from: a topic with 8 slashes, aws-iot-core takes 7"},
		{topic("1/2/3/4/5/6/7/8/{topic}") + aws, "route.r.topic: uplink.c: a topic with 8 slashes, aws-iot-core takes 7"},
		{topic("{gateway}/"+strings.Repeat("x", 256)) + aws, "route.r.topic: uplink.c: a topic of "},
		{presetHead + "qos = 2\n" + aws, "route.r.qos: warning: uplink.c (aws-iot-core) takes at most QoS 1: it is sent with that"},
		{presetHead + "retain = 'keep'\n" + aws, "route.r.retain: warning: uplink.c (aws-iot-core) sends no retained messages: the flag is removed"},

		{presetHead + hubTopic + hub + "protocol = '5'", `uplink.c.protocol: azure-iot-hub speaks MQTT 3.1.1 only: write "3.1.1", or leave the key out`},
		{presetHead + hubTopic + strings.Replace(hub, "client_id = 'd1'\n", "", 1), "uplink.c.client_id: azure-iot-hub knows a device by its identifier: set client_id to the device id"},
		{presetHead + hubTopic + hubText + "servers = ['mqtts://h']", "uplink.c.sas_key: azure-iot-hub wants the device's key (sas_key), a token of it (password), or its certificate (cert and key)"},
		{presetHead + hubTopic + hubText + "servers = ['mqtts://h']\nsas_key = { file = 'word' }", "uplink.c.sas_key: is no base64 key"},
		{presetHead + hubTopic + hub + "password = { file = 'word' }", "uplink.c.password: and sas_key exclude each other"},
		{presetHead + hubTopic + hub + "username = 'gw'", "uplink.c.username: azure-iot-hub wants HUB/d1/?api-version=..."},
		{presetHead + hubTopic + hub + "keep_alive = '20m'", "uplink.c.keep_alive: azure-iot-hub takes 1s to 19m0s"},
		{presetHead + hubTopic + hub + "retain = 'keep'", `uplink.c.retain: azure-iot-hub refuses retained messages: write "strip", or leave the key out`},
		{presetHead + hubTopic + hub + "sas_lifetime = '10s'", "uplink.c.sas_lifetime: must be from 1m0s to "},
		{presetHead + hubTopic + hub + "[[uplink.c.command]]\nfrom = 'cmd/#'\nto = 'y'", "uplink.c.command[1].from: azure-iot-hub sends commands on devices/d1/messages/devicebound/# and on $iothub/ only"},
		{presetHead + hub, `route.r.topic: uplink.c (azure-iot-hub) takes only topics that begin with "devices/d1/messages/events/"`},
		{topic("devices/{client}/messages/events/") + hub, `route.r.topic: uplink.c (azure-iot-hub) takes only topics that begin with "devices/d1/messages/events/"`},

		{presetHead + gridText + "servers = ['mqtts://h']\nusername = 'n'", "uplink.c.cert: azure-event-grid knows a client by its certificate"},
		{presetHead + strings.Replace(grid, "username = 'n'\n", "", 1), "uplink.c.username: warning: azure-event-grid wants the client's authentication name here"},
		{presetHead + grid + "keep_alive = '1161s'", "uplink.c.keep_alive: azure-event-grid takes 1s to 19m20s"},
		{presetHead + grid + "sas_key = { file = 'sas' }", `uplink.c.sas_key: is only for preset = "azure-iot-hub"`},

		{presetHead + "[uplink.c]\npreset = 'hivemq-cloud'\nservers = ['mqtts://h']\npassword = { file = 'word' }", "uplink.c.username: hivemq-cloud wants a user name and a password"},
		{presetHead + "[uplink.c]\npreset = 'emqx-cloud'\nservers = ['mqtts://h']\nusername = 'n'", "uplink.c.password: emqx-cloud wants a user name and a password"},
	} {
		_, ps := read(name, []document{{name, []byte(c.text)}}, nil)
		if !slices.ContainsFunc(ps, func(p Problem) bool {
			_, text, _ := strings.Cut(strings.TrimPrefix(p.String(), p.File), ": ")
			return strings.HasPrefix(text, c.want)
		}) {
			t.Errorf("%s\n got %s\nwant %s", c.text, relative(filepath.Dir(name), ps), c.want)
		}
	}
}

// TestModuleOfAHub: a module has topics of its own below its device.
func TestModuleOfAHub(t *testing.T) {
	name := presetFile(t)
	text := "[route.r]\nfrom=['a/#']\ntopic='devices/d1/modules/m1/messages/events/'\n[uplink.c]\npreset='azure-iot-hub'\nclient_id='d1/m1'\nservers=['mqtts://h']\nsas_key={file='sas'}"
	if _, ps := read(name, []document{{name, []byte(text)}}, nil); len(ps) > 0 {
		t.Error(relative(filepath.Dir(name), ps))
	}
}

func TestLimits(t *testing.T) {
	aws := Limits{Service: "s", MaxTopicBytes: 20, MaxTopicSlashes: 2}
	for topic, ok := range map[string]bool{
		"a/b/c": true, "a/b/c/d": false, "$aws/rules/r/a/b": true, "$aws/rules/r/a/b/c/": false, "$aws/rules/a_long_name_of_a_rule/a/b": true, strings.Repeat("x", 21): false,
	} {
		if err := aws.CheckTopic(topic); (err == nil) != ok {
			t.Errorf("%s: %v", topic, err)
		}
	}
	hub := Limits{Service: "s", TopicPrefix: "devices/d/messages/events/"}
	if got := hub.OwnTopic("tidegate/gw/status"); got != "devices/d/messages/events/topic=tidegate%2Fgw%2Fstatus" || hub.CheckTopic(got) != nil {
		t.Errorf("own topic %s", got)
	}
	if hub.CheckTopic("plant/x") == nil || aws.OwnTopic("tidegate/x") != "tidegate/x" {
		t.Error("a prefix that is wanted and not, or the other way round")
	}
}
