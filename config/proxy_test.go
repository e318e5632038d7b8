package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProxy(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "word")
	if err := os.WriteFile(file, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{`"off"`, "false  "},
		{`"env"`, "true  "},
		{`"http://proxy.example.com:3128"`, "false http://proxy.example.com:3128 "},
		{`"http://gw:a%40b@10.0.0.1:3128/"`, "false http://10.0.0.1:3128 gw:a@b"},
		{`"https://gw@[::1]:443"`, "false https://[::1]:443 gw:"},
		{`"socks5://p"`, "false socks5://p:1080 "},
		{`"socks5h://gw:w@p:9050"`, "false socks5://p:9050 gw:w"},
		{`{ url = "http://p:1", username = "gw", password = { file = "` + file + `" } }`, "false http://p:1 gw:from-file"},
		{`{ url = "socks5://p:1" }`, "false socks5://p:1 "},
	} {
		conf, ps := checkText(uplinkText + "proxy = " + c.text)
		if len(ps) > 0 || conf == nil {
			t.Errorf("%s: %s", c.text, ps)
			continue
		}
		p := conf.Uplinks["cloud"].Proxy
		got := fmt.Sprintf("%t %s ", p.Env, p.URL)
		if p.Username != "" {
			got += p.Username + ":" + p.Password.Reveal()
		}
		if strings.TrimSpace(got) != strings.TrimSpace(c.want) {
			t.Errorf("%s: %q, want %q", c.text, got, c.want)
		}
	}
}

// TestProxyProblems: every mistake is told with its key, and none of them repeats a password.
func TestProxyProblems(t *testing.T) {
	for _, c := range []struct{ text, key, want string }{
		{`"p:3128"`, "proxy", "is no proxy"},
		{`"ftp://gw:s3cret@p:1"`, "proxy", "is no proxy this build can use"},
		{`"http://gw:s3cret@p"`, "proxy", "needs a port"},
		{`"http://gw:s3cret@:1"`, "proxy", "needs a host"},
		{`"http://gw:s3cret@p:99999"`, "proxy", "not from 1 to 65535"},
		{`"http://gw:s3cret@p:x"`, "proxy", "is no proxy; write"},
		{`"http://gw:s3cret@p:1/path"`, "proxy", "something behind the port"},
		{`"http://:s3cret@p:1"`, "proxy", "no user name in front"},
		{`5`, "proxy", `"http://HOST:PORT"`},
		{`""`, "proxy", "is no proxy this build can use"},
		{`{}`, "proxy", "needs the address of the proxy"},
		{`{ url = "http://p:1", pasword = "s3cret" }`, "proxy.pasword", "unknown key"},
		{`{ url = "http://p:1", password = "s3cret" }`, "proxy", "a password and no username"},
		{`{ url = "http://p:1", username = "u", password = { env = "TIDEGATE_TEST_NOT_SET" } }`, "proxy.password.env", "is not set"},
		{`{ url = "http://p:1", ca = "/nowhere/ca.crt" }`, "proxy.ca", "no such file"},
		{`{ url = "http://gw:s3cret@p:1", username = "u" }`, "proxy.username", "and a user in url exclude each other"},
		{`{ url = "http://p:1", username = "a:b" }`, "proxy", "cannot have a colon"},
		{`"socks5://gw:` + strings.Repeat("s3cret", 50) + `@p"`, "proxy", "at most 255 bytes"},
	} {
		_, ps := checkText(uplinkText + "proxy = " + c.text)
		found := false
		for _, p := range ps {
			found = found || p.Key == "uplink.cloud."+c.key && strings.Contains(p.Message, c.want) && p.Severity == Error && p.Line == 5
			if strings.Contains(p.String(), "s3cret") {
				t.Errorf("%s: the password is repeated: %s", c.text, p)
			}
		}
		if !found {
			t.Errorf("%s: got\n%s\nwant %s", c.text, ps, c.want)
		}
	}
	_, ps := checkText(uplinkText + `proxy = { url = "http://p:1", pasword = "x" }`)
	if len(ps) != 1 || ps[0].Suggestion != "password" {
		t.Errorf("got %s", ps)
	}
}

func TestWordsOfAnUplink(t *testing.T) {
	gateway := defaultGatewayID()
	for _, c := range []struct{ text, want string }{
		{"failback = '500ms'", `5:12: uplink.cloud.failback: must be "off" or 1s or more, not "500ms"`},
		{"failback = 5", `5:12: uplink.cloud.failback: must be "off" or a duration in quotes, such as "24h", not an integer`},
		{"retain = 'clear'", `5:10: uplink.cloud.retain: must be "keep" or "strip", not "clear"`},
		{"server_name = 'https://x'", `5:15: uplink.cloud.server_name: "https://x" is no host name` + "\n" + `5:15: uplink.cloud.server_name: warning: has no effect: no server of this uplink is mqtts:// or wss://`},
		{"alpn = ['']", `5:8: uplink.cloud.alpn: warning: has no effect: no server of this uplink is mqtts:// or wss://` + "\n" + `5:9: uplink.cloud.alpn: a protocol has 1 to 255 bytes`},
		{"failback = '1m'", "5:12: uplink.cloud.failback: warning: has no effect: there is one server, and nothing to return to"},
		{"failback = '5m'", ""},
		{"failback = 'off'", ""},
		{"sas_lifetime = '1h'", "5:16: uplink.cloud.sas_lifetime: warning: has no effect without sas_key"},
		{"max_in_flight = 40000", "5:17: uplink.cloud.max_in_flight: warning: more than 32000 are never in flight"},
		{"batch = { topic = 'tidegate/{gateway}/status' }", "5:19: uplink.cloud.batch.topic: the gateway publishes something else on tidegate/" + gateway + "/status; choose another topic, or leave the key out"},
		{"batch = { topic = 'tidegate/{gateway}/uplink/other/gaps' }", "5:19: uplink.cloud.batch.topic: the gateway publishes something else on tidegate/" + gateway + "/uplink/other/gaps; choose another topic, or leave the key out"},
		{"batch = { topic = 'tidegate/{gateway}/bridge/coap/status' }", "5:19: uplink.cloud.batch.topic: the gateway publishes something else on tidegate/" + gateway + "/bridge/coap/status; choose another topic, or leave the key out"},
		{"batch = { topic = 'tidegate/{gateway}/uplink/other/batch' }", ""},
		{"sas_key = 'AAAA'", `5:11: uplink.cloud.sas_key: is only for preset = "azure-iot-hub"`},
		{"preset = 'aws'", `5:10: uplink.cloud.preset: must be "aws-iot-core", "azure-iot-hub", "azure-event-grid", "hivemq-cloud" or "emqx-cloud", not "aws"; did you mean "aws-iot-core"?`},
	} {
		if _, ps := checkText(uplinkText + c.text); strings.TrimSpace(lines(ps)) != c.want {
			t.Errorf("%s: got\n%s", c.text, lines(ps))
		}
	}
}

// TestServersTellNoQuery: it may hold a token.
func TestServersTellNoQuery(t *testing.T) {
	for _, servers := range []string{
		`'ws:/h?t=s3cret'`, `'ws://h:x?t=s3cret'`, `'ws://h:?t=s3cret'`, `'mqtt://h?t=s3cret'`, `'ws://h:0?t=s3cret'`, `'ws://10.0.0.1/m?t=s3cret'`,
		`'ws://h/?t=s3cret', 'ws://H:80/?t=s3cret'`,
	} {
		_, ps := checkText("[route.r]\nfrom = ['a']\n[uplink.c]\nusername = 'u'\npassword = 'p'\nservers = [" + servers + "]")
		if len(ps) == 0 || strings.Contains(lines(ps), "s3cret") {
			t.Errorf("%s: %s", servers, lines(ps))
		}
	}
	if got := WithoutQuery("wss://h/mqtt?a=b?c"); got != "wss://h/mqtt?..." {
		t.Error(got)
	}
}

func TestWebSocketServers(t *testing.T) {
	for text, want := range map[string]string{
		"ws://h": "ws://h:80/mqtt", "wss://h": "wss://h:443/mqtt", "wss://h/": "wss://h:443/", "wss://h:8084/x/y?z=1": "wss://h:8084/x/y?z=1",
		"wss://h?z=1": "wss://h:443/mqtt?z=1", "ws://h//mqtt": "ws://h:80//mqtt", "mqtt://[fe80::1%25eth0]": "mqtt://[fe80::1%25eth0]:1883",
		"ws://[::1]:8083/a%2Fb": "ws://[::1]:8083/a%2Fb",
	} {
		c, ps := checkText("[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['" + text + "']")
		if len(ps) > 0 {
			t.Errorf("%s: %s", text, ps)
			continue
		}
		if got := c.Uplinks["c"].Servers[0]; got != want {
			t.Errorf("%s becomes %s, want %s", text, got, want)
		}
	}
	for text, want := range map[string]string{"wss://h:443/mqtt?x=1": "h:443", "coap://[fe80::1%25eth0]:5683": "[fe80::1%eth0]:5683"} {
		if got := HostPort(text); got != want {
			t.Errorf("host and port %s, want %s", got, want)
		}
	}
}
