package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// write makes files below a new folder and returns it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// relative replaces dir in problems.
func relative(dir string, ps Problems) string {
	return strings.ReplaceAll(ps.Error(), dir+string(filepath.Separator), "")
}

func TestDefaults(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "/state/tidegate:/state/other")
	c := Default()
	yes := true
	want := &Config{
		Version: 1,
		Gateway: Gateway{ID: defaultGatewayID(), DataDir: "/state/tidegate"},
		Log:     Log{Level: "info", Format: "text"},
		Listeners: map[string]Listener{
			"mqtt": {Listen: "mqtt://127.0.0.1:1883", Anonymous: &yes, ClientAuth: "none", Identity: "cn", MinTLS: "1.2"},
		},
		Auth: Auth{Anonymous: &yes, ClientID: ClientIDAny},
		Broker: Broker{
			Mode: "embedded", MaxClients: 10000, MaxPacket: 1 << 20, SessionExpiry: Duration(7 * 24 * time.Hour), SessionQueue: 64 << 20, SessionStore: 256 << 20,
			MaxKeepAlive: Duration(5 * time.Minute), RetainedLimit: 100000,
		},
		OPCUA:   map[string]OPCUA{},
		Routes:  map[string]Route{},
		Uplinks: map[string]Uplink{},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("defaults\n%+v\nwant\n%+v", c, want)
	}

	c, err := Parse("/x/t.toml", []byte("[gateway]\nid = 'g'\n"+uplinkText+"[admin]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if r, want := c.Routes["all"], (Route{From: []string{"#"}, To: []string{"cloud"}, Topic: "{topic}", QoS: 1, Retain: "keep", Lane: "normal"}); !reflect.DeepEqual(r, want) {
		t.Errorf("route %+v, want %+v", r, want)
	}
	if u, want := c.Uplinks["cloud"], (Uplink{
		Servers: []string{"mqtt://127.0.0.1:1883"}, Protocol: "5", ClientID: "g-cloud",
		KeepAlive: Duration(30 * time.Second), AckTimeout: Duration(30 * time.Second), Buffer: Buffer{MaxBytes: 512 << 20, WhenFull: "drop-oldest", Compress: "auto"},
		ServersAt: []Place{{"/x/t.toml", 6, 12}}, Failback: Age(5 * time.Minute), Retain: "keep", SASLifetime: Duration(time.Hour),
	}); !reflect.DeepEqual(u, want) {
		t.Errorf("uplink %+v, want %+v", u, want)
	}
	if c.Admin == nil || c.Admin.Listen != "http://127.0.0.1:8080" {
		t.Errorf("admin %+v", c.Admin)
	}
}

func TestDataDir(t *testing.T) {
	home := t.TempDir()
	inHome := filepath.Join(home, ".local/state/tidegate")
	asService := "/xdg/tidegate" // a service of the user's
	if os.Geteuid() == 0 {
		asService = "/var/lib/tidegate"
	}
	for _, c := range []struct{ state, invocation, xdg, want string }{
		{"/var/lib/x", "1", "/xdg", "/var/lib/x"},
		{"", "1", "/xdg", asService},
		{"", "", "/xdg", "/xdg/tidegate"},
		{"", "", "", inHome},
		{"", "", "relative", inHome},
	} {
		t.Setenv("STATE_DIRECTORY", c.state)
		t.Setenv("INVOCATION_ID", c.invocation)
		t.Setenv("XDG_STATE_HOME", c.xdg)
		t.Setenv("HOME", home)
		if got := defaultDataDir(); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// TestSample holds `tidegate init` to its word: the file runs unchanged, means the defaults, and what stands in it behind a
// single # is right and is the default too.
func TestSample(t *testing.T) {
	c, err := Parse("", Sample())
	if err != nil {
		t.Fatal(err)
	}
	if want := Default(); !reflect.DeepEqual(c, want) {
		t.Errorf("the sample means\n%+v\nthe defaults are\n%+v", c, want)
	}

	dir := write(t, map[string]string{"users.toml": "", "tidegate.toml": string(regexp.MustCompile(`(?m)^(\s*)# (.*)$`).ReplaceAll(Sample(), []byte("$1$2")))})
	text, err := os.ReadFile(filepath.Join(dir, "tidegate.toml"))
	if err != nil {
		t.Fatal(err)
	}
	// The first lines are a title, not keys.
	text = append([]byte("#"), text[strings.Index(string(text), "\nversion"):]...)
	full, err := Parse(filepath.Join(dir, "tidegate.toml"), text)
	if err != nil {
		t.Fatalf("with every example taken in:\n%s", err)
	}
	for _, w := range full.Warnings {
		t.Errorf("warning with every example taken in: %s", w)
	}
	defaultRoute, defaultUplink := Route{}, Uplink{}
	defaults{}.fill(&defaultRoute)
	defaults{}.fill(&defaultUplink)
	r, u := full.Routes["telemetry"], full.Uplinks["cloud"]
	defaultRoute.From, defaultRoute.Except, defaultRoute.To = r.From, r.Except, r.To
	defaultUplink.Servers, defaultUplink.Username, defaultUplink.Password, defaultUplink.Commands = u.Servers, u.Username, u.Password, u.Commands
	defaultCommand := Command{}
	defaults{}.fill(&defaultCommand)
	defaultCommand.From, defaultCommand.To = u.Commands[0].From, u.Commands[0].To
	defaultOPCUA, o := OPCUA{}, full.OPCUA["press1"]
	defaults{}.fill(&defaultOPCUA)
	defaultOPCUA.Endpoint, defaultOPCUA.Username, defaultOPCUA.Password = o.Endpoint, o.Username, o.Password
	defaultOPCUA.Topic, defaultOPCUA.Nodes, defaultOPCUA.Writes = o.Topic, o.Nodes, o.Writes
	defaultUplink.ClientID, defaultUplink.ServersAt = "press-hall-3-cloud", u.ServersAt
	for _, pair := range [][2]any{
		{full.Log, c.Log},
		{full.Listeners, c.Listeners},
		{full.Auth.Anonymous, c.Auth.Anonymous},
		{full.Broker, c.Broker},
		{r, defaultRoute},
		{u, defaultUplink},
		{u.Commands, []Command{defaultCommand}},
		{full.CoAP.Listen, []string{"coap://127.0.0.1:5683"}},
		{o, defaultOPCUA},
		{full.Admin.Listen, "http://127.0.0.1:8080"},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("an example shows %+v, the default is %+v", pair[0], pair[1])
		}
	}
}

// TestAgreedFile reads the agreed face of the file. Only two kinds of problems may be left: a feature that is not built (and
// what follows from that), and a file that it names.
func TestAgreedFile(t *testing.T) {
	t.Setenv("PRESS1_PASSWORD", "secret")
	_, ps := Check(filepath.Join("testdata", "tidegate.example.toml"))
	for _, p := range ps {
		withoutDTLS := strings.Contains(p.Message, "clients of coap:// have no user name")
		if !strings.Contains(p.Message, "not built yet") && !strings.Contains(p.Message, "no such file") && !withoutDTLS {
			t.Errorf("%s", p)
		}
	}

	// Every key behind a single # is known as well.
	text, err := os.ReadFile(filepath.Join("testdata", "tidegate.example.toml"))
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile(`(?m)^(\s+)# ([a-z_]+ *=.*)$`).ReplaceAll(text, []byte("$1$2"))
	_, ps = checkText(string(shown))
	for _, p := range ps {
		// A key that is shown with its default and then set is there twice.
		withoutDTLS := strings.Contains(p.Message, "clients of coap:// have no user name")
		if !strings.Contains(p.Message, "not built yet") && !strings.Contains(p.Message, "no such file") && !strings.Contains(p.Message, "was set at") && !withoutDTLS {
			t.Errorf("with the defaults shown: %s", p)
		}
	}
	if n := len(regexp.MustCompile(`unknown key`).FindAllString(ps.Error(), -1)); n > 0 {
		t.Errorf("%d keys of the agreed file are unknown", n)
	}
}

// TestBatch: an empty table is one with every default, an absent one is none.
func TestBatch(t *testing.T) {
	want := Batch{
		MaxMessages: 100, MaxDelay: Duration(time.Second), MaxBytes: 128 << 10, Compress: "zstd", Topic: "tidegate/gw/uplink/cloud/batch",
	}
	gateway := "[gateway]\nid = 'gw'\n"
	if c, ps := checkText(gateway + uplinkText + "batch = {}"); len(ps) > 0 || *c.Uplinks["cloud"].Batch != want {
		t.Errorf("empty: %+v, %s", c.Uplinks["cloud"].Batch, ps)
	}
	if c, ps := checkText(gateway + uplinkText); len(ps) > 0 || c.Uplinks["cloud"].Batch != nil {
		t.Errorf("absent: %+v, %s", c.Uplinks["cloud"].Batch, ps)
	}
	want = Batch{MaxMessages: 5, MaxDelay: 0, MaxBytes: 64 << 10, Compress: "none", Topic: "up/gw"}
	c, ps := checkText(gateway + uplinkText + "[uplink.cloud.batch]\nmax_messages = 5\nmax_delay = '0s'\nmax_bytes = '64KiB'\ncompress = 'none'\ntopic = 'up/{gateway}'")
	if len(ps) > 0 || *c.Uplinks["cloud"].Batch != want {
		t.Errorf("set: %+v, %s", c.Uplinks["cloud"].Batch, ps)
	}
}

// TestNotBuilt gives every key that is not built and expects exactly that to be said.
func TestNotBuilt(t *testing.T) {
	for shape, what := range notBuiltKeys() {
		key := strings.ReplaceAll(shape, "*", "x")
		text := key + " = 'y'\n"
		_, ps := checkText(text)
		found := false
		for _, p := range ps {
			found = found || p.Key == key && p.Message == what && p.Severity == Error && p.Suggestion == ""
		}
		if !found || !strings.Contains(what, "not built yet") {
			t.Errorf("%s: %s", text, ps)
		}
	}
}

func TestConfD(t *testing.T) {
	dir := write(t, map[string]string{
		"tidegate.toml": `version = 1
[gateway]
id = "a"
[log]
level = "info"
[route.r]
from = ["a"]
[[auth.rule]]
user = "x"
publish = ["a"]
`,
		"conf.d/20-more.toml": `[gateway]
id = "c"
data_dir = "data"
[[auth.rule]]
user = "y"
publish = ["a"]
`,
		"conf.d/10-uplink.toml": `[gateway]
id = "b"
[route.r]
from = ["b", "c"]
[uplink.u]
servers = ["mqtt://h"]
password = { file = "secret" }
`,
		"conf.d/30-wrong.toml":   "version = 1\n[log]\nlevl = 'x'\n",
		"conf.d/.hidden.toml":    "nonsense",
		"conf.d/40-backup.toml~": "nonsense",
		"secret":                 "word\n",
	})
	main := filepath.Join(dir, "tidegate.toml")
	_, ps := Check(main)
	const want = `conf.d/10-uplink.toml:2:1: gateway.id: warning: replaces the value at tidegate.toml:3:1
conf.d/10-uplink.toml:4:1: route.r.from: warning: replaces the value at tidegate.toml:7:1
conf.d/10-uplink.toml:7:12: uplink.u.password: warning: goes to mqtt://h:1883 unencrypted; mqtts:// encrypts it
conf.d/20-more.toml:2:1: gateway.id: warning: replaces the value at conf.d/10-uplink.toml:2:1
conf.d/30-wrong.toml:1:1: version: stands in the main file alone, tidegate.toml
conf.d/30-wrong.toml:3:1: log.levl: unknown key; did you mean "level"?`
	if got := relative(dir, ps); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, err := Load(main); err == nil {
		t.Error("loaded a wrong configuration")
	}
	if err := os.Remove(filepath.Join(dir, "conf.d/30-wrong.toml")); err != nil {
		t.Fatal(err)
	}
	c, err := Load(main)
	if err != nil {
		t.Fatal(err)
	}
	if c.Gateway.ID != "c" || c.Gateway.DataDir != filepath.Join(dir, "data") || len(c.Warnings) != 4 || c.File != main {
		t.Errorf("%+v", c)
	}
	if got := fmt.Sprint(c.Routes["r"].From, c.Routes["r"].To); got != "[b c] [u]" {
		t.Errorf("route: %s", got)
	}
	if len(c.Auth.Rules) != 2 || c.Auth.Rules[0].User != "x" || c.Auth.Rules[1].User != "y" {
		t.Errorf("rules: %+v", c.Auth.Rules)
	}
	if at := c.Auth.Rules[1].At; at.File != filepath.Join(dir, "conf.d/20-more.toml") || at.Line != 4 || at.Column != 8 {
		t.Errorf("second rule at %s", at)
	}
	if p := c.Uplinks["u"].Password; p.Reveal() != "word" {
		t.Errorf("password %q", p.Reveal())
	}
}

func TestUnreadable(t *testing.T) {
	dir := write(t, map[string]string{"d/x": ""})
	for path, want := range map[string]string{
		"missing.toml": "missing.toml: no such file",
		"d":            "d: is a folder, not a file",
	} {
		c, err := Load(filepath.Join(dir, path))
		var ps Problems
		if c != nil || !errors.As(err, &ps) || relative(dir, ps) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	dir = write(t, map[string]string{"tidegate.toml": "", "conf.d": ""})
	_, ps := Check(filepath.Join(dir, "tidegate.toml"))
	if got := relative(dir, ps); got != "conf.d: not a directory" {
		t.Errorf("conf.d that is a file: %s", got)
	}
}

func TestFind(t *testing.T) {
	dir := write(t, map[string]string{"a.toml": "", "b.toml": ""})
	a, b := filepath.Join(dir, "a.toml"), filepath.Join(dir, "b.toml")
	t.Setenv("TIDEGATE_CONFIG", b)
	if got, err := Find(a); got != a || err != nil {
		t.Errorf("flag and environment: %s %v", got, err)
	}
	if got, err := Find(""); got != b || err != nil {
		t.Errorf("environment: %s %v", got, err)
	}
	t.Setenv("TIDEGATE_CONFIG", a+"x")
	if got, err := Find(""); got != "" || err == nil || err.Error() != a+"x: no such file; it was named by TIDEGATE_CONFIG" {
		t.Errorf("environment with a missing file: %s %v", got, err)
	}
	if got, err := Find(a + "y"); got != "" || err == nil || err.Error() != a+"y: no such file; it was named by --config" {
		t.Errorf("flag with a missing file: %s %v", got, err)
	}
	t.Setenv("TIDEGATE_CONFIG", "")
	if _, err := os.Stat(systemFile); errors.Is(err, os.ErrNotExist) {
		if got, err := Find(""); got != "" || err != nil {
			t.Errorf("nothing: %s %v", got, err)
		}
	}
}

func TestSecrets(t *testing.T) {
	dir := write(t, map[string]string{"p": "from file\r\n", "open": "x", "empty": "\n", "creds/c": "from systemd"})
	if err := os.Chmod(filepath.Join(dir, "open"), 0o604); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TIDEGATE_TEST_SECRET", "from env")
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Join(dir, "creds"))
	for _, c := range []struct{ source, want, problem string }{
		{`"plain"`, "plain", ""},
		{`{ env = "TIDEGATE_TEST_SECRET" }`, "from env", ""},
		{`{ file = "p" }`, "from file", ""},
		{`{ credential = "c" }`, "from systemd", ""},
		{`{ credential = "../p" }`, "", "t.toml:6:27: uplink.cloud.password.credential: a credential is named without a folder"},
		{`{ file = "open" }`, "x", "t.toml:6:21: uplink.cloud.password.file: warning: everybody on this machine can read open; chmod o-r it"},
		{`{ file = "empty" }`, "", "t.toml:6:21: uplink.cloud.password.file: the secret is empty"},
		{`{ file = "creds" }`, "", "t.toml:6:21: uplink.cloud.password.file: creds is no regular file"},
	} {
		name := filepath.Join(dir, "t.toml")
		config, ps := read(name, []document{{name, []byte(uplinkText + "username = 'u'\npassword = " + c.source)}}, nil)
		if got := config.Uplinks["cloud"].Password; got.Reveal() != c.want {
			t.Errorf("%s: %q", c.source, got.Reveal())
		}
		if got := relative(dir, ps); got != c.problem {
			t.Errorf("%s: %s", c.source, got)
		}
	}
	s := NewSecret("word")
	if text := fmt.Sprintf("%v %+v %#v %s", s, struct{ S Secret }{s}, s, s); strings.Contains(text, "word") {
		t.Errorf("a secret is printed: %s", text)
	}
	name := filepath.Join(dir, "t.toml")
	if err := os.WriteFile(name, []byte(uplinkText+"username = 'u'\npassword = 'word'\n"), 0o604); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o604); err != nil {
		t.Fatal(err)
	}
	const want = `t.toml:6:12: uplink.cloud.password: warning: everybody on this machine can read it here; write { file = "PATH" } or chmod o-r this file`
	if _, ps := Check(name); relative(dir, ps) != want {
		t.Errorf("plain secret in an open file: %s", relative(dir, ps))
	}
}

// TestNoSideEffects loads a configuration whose folders do not exist and finds them still missing.
func TestNoSideEffects(t *testing.T) {
	dir := write(t, map[string]string{"tidegate.toml": "[gateway]\ndata_dir = 'data'\n"})
	if _, err := Load(filepath.Join(dir, "tidegate.toml")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
}

func TestAnonymous(t *testing.T) {
	for _, c := range []struct {
		name, text string
		auth, a, b bool
	}{
		{"loopback", "[listener.a]\nlisten='mqtt://127.0.0.1:1'\n[listener.b]\nlisten='mqtt://[::1]:2'", true, true, true},
		{"one away", "[listener.a]\nlisten='mqtt://127.0.0.1:1'\n[listener.b]\nlisten='mqtt://192.0.2.1:2'", false, false, false},
		{"every address", "[listener.a]\nlisten='mqtt://localhost:1'\n[listener.b]\nlisten='mqtt://:2'", false, false, false},
		{"said", "[auth]\nanonymous=true\n[listener.a]\nlisten='mqtt://127.0.0.1:1'\n[listener.b]\nlisten='mqtt://:2'", true, true, true},
		{"by listener", "[listener.a]\nlisten='mqtt://127.0.0.1:1'\nanonymous=true\n[listener.b]\nlisten='mqtt://:2'", false, true, false},
	} {
		got, _ := checkText(c.text)
		if *got.Auth.Anonymous != c.auth || *got.Listeners["a"].Anonymous != c.a || *got.Listeners["b"].Anonymous != c.b {
			t.Errorf("%s: auth %t, a %t, b %t", c.name, *got.Auth.Anonymous, *got.Listeners["a"].Anonymous, *got.Listeners["b"].Anonymous)
		}
	}
}

// TestCommandDefaults: what stands beside from and to of a command, and what is there when nothing does.
func TestCommandDefaults(t *testing.T) {
	for text, want := range map[string]Command{
		"": {ID: "tg-id", ReplayWindow: Age(7 * day), Time: "tg-time"},
		"id = 'correlation-data'\nrequire_id = true\nreplay_window = '1h'\ntime = 'made'\nmax_age = '10m'\nexpire = '30s'": {
			ID: CorrelationData, RequireID: true, ReplayWindow: Age(time.Hour), Time: "made", MaxAge: Age(10 * time.Minute), Expire: Age(30 * time.Second),
		},
		"replay_window = 'off'": {ID: "tg-id", Time: "tg-time"},
	} {
		want.From, want.To = "a", "b"
		if c, ps := checkText(commandText + text); len(ps) > 0 || c.Uplinks["cloud"].Commands[0] != want {
			t.Errorf("%s: %+v, %s", text, c.Uplinks["cloud"].Commands, ps)
		}
	}
}
