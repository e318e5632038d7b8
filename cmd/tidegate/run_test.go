package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/internal/testpeer"
	"tidegate/message/envelope"
)

// From a device through an outage to a Mosquitto "cloud", with a look from every side.
func TestRunThroughAnOutage(t *testing.T) {
	cloud := freePort(t)
	g := startGateway(t, writeConfig(t, oneListener+oneRoute+uplinkTo(cloud, "")+withAdmin))

	if code, body := g.get(t, "/readyz"); code != 200 {
		t.Errorf("readyz: %d %s", code, body)
	}
	g.pub(t, numbered(100), "-t", "plant/a", "-l", "-q", "1").want(t, exitOK, "", "")
	s := g.status(t)
	if !s.Ready || s.Gateway != "g1" || s.LastError != "" || !s.Buffer.Writable || len(s.Uplinks) != 1 {
		t.Fatalf("status %+v", s)
	}
	if u := s.Uplinks[0]; u.Name != "cloud" || u.Connected || u.Records != 100 || u.Bytes == 0 || u.OldestS <= 0 || u.LastError == "" {
		t.Errorf("uplink %+v", u)
	}
	// The gateway's own status is retained on the local side.
	tidegate(t, "", "sub", "-p", g.port(t, "a"), "-t", "tidegate/#", "-v", "-C", "1", "-W", "20").
		want(t, exitOK, `tidegate/g1/status {"state":"online"`, "")
	beside(t, g.file)

	mosquittoOn(t, cloud, "allow_anonymous true")
	eventually(t, "everything is delivered", func() bool {
		u := g.status(t).Uplinks[0]
		return u.Connected && u.Records == 0 && u.Delivered == 100
	})
	tidegate(t, "", "status", "--config", g.file).want(t, exitOK, "cloud   connected", "")
	tidegate(t, "", "buffer", "export", "--config", g.file).want(t, exitOK, "", "")
	sub := start(t, nil, "sub", "-p", strconv.Itoa(cloud), "-t", "#", "-C", "11", "-W", "20", "-q", "1")
	eventually(t, "the retained status comes", func() bool { return strings.Contains(sub.out.String(), "\n") })
	if want := fmt.Sprintf("%q:%q", "version", buildVersion()); !strings.Contains(sub.out.String(), want) {
		t.Errorf("the status at the cloud: %s, want %s", sub.out.String(), want)
	}
	g.pub(t, numbered(10), "-t", "plant/a", "-l", "-q", "1").want(t, exitOK, "", "")
	if r := sub.wait(t); r.code != exitOK || !strings.HasSuffix(r.out, "}\n"+numbered(10)) {
		t.Errorf("the cloud got %+v", r)
	}

	// A reload of the same file changes nothing.
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log says that nothing changed", func() bool {
		return strings.Contains(g.err.String(), "result=unchanged")
	})
	if code, _ := g.get(t, "/healthz"); code != 200 {
		t.Error("the gateway is gone")
	}
	g.stop(t)
	if _, err := os.Stat(filepath.Join(filepath.Dir(g.file), "data", "admin.sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	tidegate(t, "", "status", "--config", g.file).want(t, exitUnavailable, "", "no gateway runs on")
}

// beside looks at a buffer with a hundred records of plant/a for the uplink cloud.
func beside(t *testing.T, file string) {
	t.Helper()
	r := tidegate(t, "", "buffer", "ls", "--json", "--config", file)
	r.want(t, exitOK, "", "")
	var rows []map[string]any
	if err := json.Unmarshal([]byte(r.out), &rows); err != nil || len(rows) != 2 {
		t.Fatalf("%v in %s", err, r.out)
	}
	for _, key := range []string{"uplink", "lane", "records", "bytes", "first_seq", "last_seq", "oldest", "newest", "segments", "damaged"} {
		if _, ok := rows[0][key]; !ok {
			t.Errorf("ls has no %s: %s", key, r.out)
		}
	}
	if rows[0]["configured"] != true {
		t.Errorf("ls of a configured uplink: %s", r.out)
	}
	if rows[0]["lane"] != "normal" || rows[0]["records"] != 100.0 || rows[0]["first_seq"] != 1.0 || rows[0]["last_seq"] != 100.0 || rows[1]["oldest"] != nil {
		t.Errorf("ls: %s", r.out)
	}
	tidegate(t, "", "buffer", "ls", "--config", file).want(t, exitOK, "cloud   normal  100", "")
	tidegate(t, "", "buffer", "verify", "--config", file).want(t, exitOK, "100 records", "")

	r = tidegate(t, "", "buffer", "export", "--uplink", "cloud", "--lane", "normal", "--config", file)
	r.want(t, exitOK, "", "")
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if len(lines) != 100 {
		t.Fatalf("export has %d lines", len(lines))
	}
	for i, line := range lines {
		var row envelope.Record
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatal(err)
		}
		if string(row.Payload) != strconv.Itoa(i) || !strings.Contains(line, `"encoding":"utf8"`) || row.Topic != "plant/a" || row.QoS != 1 ||
			!strings.HasSuffix(row.Seq, fmt.Sprintf("-normal-%d", i+1)) || len(row.ID) != 26 || row.Received.IsZero() {
			t.Fatalf("line %d: %s", i, line)
		}
	}
	tidegate(t, "", "buffer", "export", "--uplink", "cloudy", "--config", file).want(t, exitFailed, "", `no uplink "cloudy"`)
	tidegate(t, "", "buffer", "export", "--lane", "urgent", "--config", file).want(t, exitOK, "", "")
	tidegate(t, "", "buffer", "dead", "ls", "--config", file).want(t, exitOK, "", "")
}

// On a stopped gateway the same commands read the files; a binary payload comes as base64; purge empties the buffer, and a
// flipped bit is found.
func TestBufferOfAStoppedGateway(t *testing.T) {
	file := writeConfig(t, oneListener+oneRoute+uplinkTo(1, ""))
	tidegate(t, "", "buffer", "ls", "--config", file).want(t, exitUnavailable, "", "there is no buffer in")
	g := startGateway(t, file)
	g.pub(t, numbered(100), "-t", "plant/a", "-l", "-q", "1").want(t, exitOK, "", "")
	g.stop(t)
	beside(t, file)

	g = startGateway(t, file)
	g.pub(t, "\xff\x00", "-t", "plant/b", "-s", "-q", "2", "-r").want(t, exitOK, "", "")
	g.stop(t)
	r := tidegate(t, "", "buffer", "export", "--config", file)
	if last := r.out[strings.LastIndexByte(strings.TrimSpace(r.out), '\n')+1:]; !strings.Contains(last, `"payload":"/wA=","encoding":"base64"`) ||
		!strings.Contains(last, `"retain":true`) {
		t.Errorf("last line %s", last)
	}

	tidegate(t, "", "buffer", "purge", "--config", file).want(t, exitUsage, "", "--yes")
	flipBit(t, file)
	r = tidegate(t, "", "buffer", "verify", "--config", file)
	r.want(t, exitFailed, "damaged: ", "damaged regions")
	var v verifyReport
	if err := json.Unmarshal([]byte(tidegate(t, "", "buffer", "verify", "--json", "--config", file).out), &v); err != nil || len(v.Damage) == 0 {
		t.Errorf("%v: %+v", err, v)
	}
	tidegate(t, "", "buffer", "purge", "--yes", "--uplink", "cloud", "--config", file).want(t, exitOK, "cloud normal: ", "")
	other := filepath.Join(filepath.Dir(file), "other.toml")
	if err := os.WriteFile(other, []byte(strings.ReplaceAll(string(mustRead(t, file)), "[uplink.cloud]", "[uplink.other]")), 0o600); err != nil {
		t.Fatal(err)
	}
	tidegate(t, "", "buffer", "ls", "--json", "--config", other).want(t, exitOK, `"configured":false`, "")
	tidegate(t, "", "buffer", "export", "--config", file).want(t, exitOK, "", "")
	if r := tidegate(t, "", "buffer", "export", "--config", file); r.out != "" {
		t.Errorf("records are left: %s", r.out)
	}
}

func mustRead(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// flipBit changes one bit in the middle of the first frame of records.
func flipBit(t *testing.T, file string) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(filepath.Dir(file), "data", "log", "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	data, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(data), "plant/a")
	if at < 0 {
		t.Fatal("no record in the first segment")
	}
	data[at] ^= 1
	if err := os.WriteFile(segments[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPurgeBesideTheGateway(t *testing.T) {
	g := startGateway(t, writeConfig(t, oneListener+oneRoute+uplinkTo(1, "")+withAdmin))
	g.pub(t, numbered(10), "-t", "plant/a", "-l", "-q", "1").want(t, exitOK, "", "")
	tidegate(t, "", "buffer", "purge", "--yes", "--uplink", "nobody", "--config", g.file).want(t, exitFailed, "", `no uplink "nobody"`)
	tidegate(t, "", "buffer", "purge", "--yes", "--config", g.file).want(t, exitOK, "cloud normal: 10 records purged", "")
	if _, text := g.get(t, "/metrics"); !strings.Contains(text, `tidegate_ledger_total{place="purged",route="all",uplink="cloud"} 10`) {
		t.Errorf("the ledger does not show what was purged: %s", text)
	}
}

// Every metric that INTERFACE.md promises, but for bridges, which this build has none of.
func TestMetricNames(t *testing.T) {
	cloud := freePort(t)
	g := startGateway(t, writeConfig(t, oneListener+oneRoute+uplinkTo(cloud, "")+withAdmin+"[broker]\nsession_queue = \"4KiB\"\n"))
	eventually(t, "the cloud is not there", func() bool { return g.status(t).Uplinks[0].LastError != "" })
	mosquittoOn(t, cloud, "allow_anonymous true")
	// A session of a client that went away overflows.
	if out, err := exec.Command("mosquitto_sub", "-p", g.port(t, "a"), "-c", "-i", "away", "-q", "1", "-t", "local/#", "-E").CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_sub: %v: %s", err, out)
	}
	g.pub(t, numbered(2000), "-t", "local/a", "-l", "-q", "1").want(t, exitOK, "", "")
	g.pub(t, "", "-t", "plant/a", "-m", "x", "-q", "1").want(t, exitOK, "", "")
	g.pub(t, "", "-t", "$x/a", "-m", "x", "-q", "1", "-V", "5").want(t, exitFailed, "", "0x87")
	eventually(t, "the message is delivered", func() bool { return g.status(t).Uplinks[0].Delivered == 1 })
	_, text := g.get(t, "/metrics")
	samples := map[string]bool{}
	for line := range strings.Lines(text) {
		name := regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^}]*\})?`).FindString(line)
		if !strings.HasPrefix(line, "#") && !regexp.MustCompile(`^(tidegate|go|process)_`).MatchString(name) {
			t.Errorf("metric %s", line)
		}
		samples[name] = true
	}
	for _, name := range []string{
		`tidegate_ingested_messages_total{protocol="mqtt"}`,
		`tidegate_refused_messages_total{protocol="mqtt",reason="not_allowed"}`,
		`tidegate_ledger_total{place="delivered",route="all",uplink="cloud"}`,
		`tidegate_delivered_messages_total{uplink="cloud"}`,
		`tidegate_buffer_records{lane="normal",uplink="cloud"}`,
		`tidegate_buffer_bytes{lane="urgent",uplink="cloud"}`,
		`tidegate_buffer_oldest_seconds{uplink="cloud"}`,
		`tidegate_buffer_fsync_seconds_count`,
		`tidegate_buffer_written_bytes_total`,
		`tidegate_ingest_seconds_count`,
		`tidegate_uplink_seconds_count`,
		`tidegate_uplink_connected{uplink="cloud"}`,
		`tidegate_clients_connected`,
		`tidegate_sessions`,
	} {
		if !samples[name] {
			t.Errorf("no %s", name)
		}
	}
	for _, sample := range []string{
		`tidegate_uplink_reconnects_total{reason="network",uplink="cloud"} `,
		`tidegate_session_drops_total{reason="`,
	} {
		if !strings.Contains(text, "\n"+sample) {
			t.Errorf("no %s", sample)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestRunRefusesToStart(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	taken := busy.Addr().String()
	folder := t.TempDir()
	for _, c := range []struct {
		name, text string
		code       int
		errs       string
	}{
		{"unknown key", "[listner.a]\n", exitConfig, "listner"},
		{"listener's address in use", "[listener.a]\nlisten = \"mqtt://" + taken + "\"\n", exitFailed, "address already in use; choose another address in [listener]"},
		{"admin's address in use", oneListener + "[admin]\nlisten = \"http://" + taken + "\"\n", exitFailed, "choose another address in [admin]"},
		{"admin for everybody", oneListener + "[admin]\nlisten = \"http://0.0.0.0:0\"\n", exitConfig, "login"},
		{"users file is a folder", oneListener + fmt.Sprintf("[auth]\nusers_file = %q\n", folder), exitConfig, folder},
	} {
		t.Run(c.name, func(t *testing.T) {
			runImpatiently(t, writeConfig(t, c.text)).want(t, c.code, "", c.errs)
		})
	}
	tidegate(t, "", "run", "--config", filepath.Join(folder, "missing.toml")).want(t, exitConfig, "", "missing.toml")
	tidegate(t, "", "run", "now").want(t, exitUsage, "", `unexpected argument "now"`)
	tidegate(t, "", "run", "--confg", "x").want(t, exitUsage, "", "not defined: -confg")
}

// runImpatiently is `tidegate run`, but does not wait for what another process holds.
func runImpatiently(t *testing.T, file string) result {
	t.Helper()
	var out, errs syncBuffer
	std := stdio{out: &out, err: &errs}
	c, code, done := loadConfig(std, file)
	if !done {
		code = run(std, c, seams{patience: time.Millisecond})
	}
	return result{code, out.String(), errs.String()}
}

// One gateway for each data folder; what the first one holds is left alone.
func TestSecondGatewayOnTheSameFolder(t *testing.T) {
	g := startGateway(t, writeConfig(t, oneListener))
	runImpatiently(t, g.file).want(t, exitFailed, "", "another gateway runs on "+filepath.Join(filepath.Dir(g.file), "data"))
	if s := g.status(t); !s.Ready {
		t.Errorf("the first gateway: %+v", s)
	}
}

func TestReadyLineAsJSON(t *testing.T) {
	b := start(t, nil, "run", "--config", writeConfig(t, oneListener+withAdmin+"[log]\nformat = \"json\"\n"))
	eventually(t, "the gateway is ready", func() bool { return strings.Contains(b.err.String(), "\n") })
	var line map[string]any
	if err := json.Unmarshal([]byte(strings.SplitN(b.err.String(), "\n", 2)[0]), &line); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"listener.a", "admin"} {
		if address, _ := line[key].(string); line["msg"] != "ready" || !strings.HasPrefix(address, "127.0.0.1:") {
			t.Errorf("%s in %v", key, line)
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	b.wait(t).want(t, exitOK, "", "stopped")
}

// While the disk fails nothing is acknowledged, the gateway runs on and says why; it recovers by itself.
func TestDiskFails(t *testing.T) {
	disk := &faultyDisk{}
	g := startGatewayOn(t, writeConfig(t, oneListener+oneRoute+uplinkTo(1, "")+withAdmin), disk)
	g.pub(t, "", "-t", "plant/a", "-m", "1", "-q", "1").want(t, exitOK, "", "")

	disk.broken.Store(true)
	g.pub(t, "", "-t", "plant/a", "-m", "2", "-q", "1").want(t, exitFailed, "", "1 messages were not acknowledged")
	code, body := g.get(t, "/readyz")
	if code != 503 || !strings.Contains(body, "input/output error") {
		t.Errorf("readyz: %d %s", code, body)
	}
	if code, _ := g.get(t, "/healthz"); code != 200 {
		t.Errorf("healthz: %d", code)
	}
	s := g.status(t)
	if s.Ready || s.Buffer.Writable || !strings.Contains(s.Buffer.LastError, "input/output error") || !strings.Contains(s.LastError, "the disk fails") {
		t.Errorf("status %+v", s)
	}
	tidegate(t, "", "status", "--config", g.file).want(t, exitOK, "NOT READY: the disk fails", "")
	if !strings.Contains(g.err.String(), "the disk failed") {
		t.Errorf("log: %s", g.err.String())
	}

	disk.broken.Store(false)
	eventually(t, "the gateway takes messages again", func() bool {
		return g.pub(t, "", "-t", "plant/a", "-m", "3", "-q", "1").code == exitOK
	})
	if s := g.status(t); !s.Ready || !s.Buffer.Writable {
		t.Errorf("status %+v", s)
	}
	r := tidegate(t, "", "buffer", "export", "--config", g.file)
	for _, want := range []string{`"payload":"1"`, `"payload":"3"`} {
		if !strings.Contains(r.out, want) {
			t.Errorf("no %s in %s", want, r.out)
		}
	}
}

// A full disk is shown by status and metrics.
func TestDiskIsFull(t *testing.T) {
	disk := &faultyDisk{}
	file := writeConfig(t, oneListener+oneRoute+uplinkTo(1, "")+withAdmin)
	disk.full.Store(true)
	g := startGatewayOn(t, file, disk)
	g.pub(t, "", "-t", "plant/a", "-m", "1", "-q", "1").want(t, exitOK, "", "") // the first segment wants a spare behind it
	eventually(t, "status says that there is no space", func() bool { return g.status(t).Buffer.NoSpace })
	tidegate(t, "", "status", "--config", file).want(t, exitOK, "NO SPACE LEFT", "")
	if _, text := g.get(t, "/metrics"); !strings.Contains(text, "\ntidegate_buffer_no_space 1\n") {
		t.Errorf("metrics: %s", text)
	}
}

// pickyCloud is a cloud broker that answers messages of plant/bad in its own way. It returns its port.
func pickyCloud(t *testing.T, bad testpeer.Answer) int {
	t.Helper()
	cloud, err := testpeer.Listen(testpeer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	cloud.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer {
		if r.Topic == "plant/bad" {
			return bad
		}
		return testpeer.Answer{}
	}})
	port, err := strconv.Atoi(cloud.Addr()[strings.LastIndexByte(cloud.Addr(), ':')+1:])
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// What the cloud refuses for what it is goes to the dead letters, with the reason, and is shown.
func TestDeadLetters(t *testing.T) {
	cloud := pickyCloud(t, testpeer.Answer{Code: 0x99, Reason: "not the payload I want"})
	g := startGateway(t, writeConfig(t, oneListener+oneRoute+uplinkTo(cloud, "")+withAdmin))
	g.pub(t, "", "-t", "plant/bad", "-m", "x", "-q", "1").want(t, exitOK, "", "")
	g.pub(t, "", "-t", "plant/good", "-m", "y", "-q", "1").want(t, exitOK, "", "")
	eventually(t, "one is delivered and one is dead", func() bool {
		u := g.status(t).Uplinks[0]
		return u.Dead == 1 && u.Delivered == 1 && u.Records == 0
	})
	r := tidegate(t, "", "buffer", "dead", "ls", "--config", g.file)
	r.want(t, exitOK, `"reason":"`, "")
	var row envelope.Record
	if err := json.Unmarshal([]byte(r.out), &row); err != nil || row.Topic != "plant/bad" || string(row.Payload) != "x" ||
		!strings.Contains(row.Reason, "not the payload I want") {
		t.Errorf("%v: %s", err, r.out)
	}
	if _, text := g.get(t, "/metrics"); !strings.Contains(text, `tidegate_buffer_dead_letters{uplink="cloud"} 1`) {
		t.Errorf("no dead letter in the metrics: %s", text)
	}
}

// A user that is added while the gateway runs can log in soon.
func TestUsersFileIsReadAgain(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users.toml")
	file := writeConfig(t, oneListener+fmt.Sprintf("[auth]\nanonymous = false\nusers_file = %q\n", users))
	tidegate(t, "first\n", "passwd", "anna", "--config", file).want(t, exitOK, "added anna", "")
	g := startGateway(t, file)
	login := func(user, password string) int {
		return g.pub(t, "", "-t", "a", "-m", "x", "-q", "1", "-u", user, "-P", password).code
	}
	if login("anna", "first") != exitOK || login("anna", "wrong") == exitOK || login("ben", "second") == exitOK {
		t.Error("the first users are wrong")
	}
	tidegate(t, "second\n", "passwd", "ben", "--config", file).want(t, exitOK, "added ben", "")
	eventually(t, "ben can log in", func() bool { return login("ben", "second") == exitOK })
	if !strings.Contains(g.err.String(), "users file read again") {
		t.Errorf("log: %s", g.err.String())
	}
}

func TestBufferWrongUse(t *testing.T) {
	for _, c := range []struct{ args, errs string }{
		{"buffer", "tidegate buffer ls"},
		{"buffer look", `unknown command "buffer look"`},
		{"buffer ls now", `unexpected argument "now"`},
		{"buffer export --lane fast", "want normal or urgent"},
		{"buffer dead", "tidegate buffer dead ls"},
		{"buffer dead drop", "tidegate buffer dead ls"},
		{"buffer dead discard", "say --yes"},
		{"buffer dead resend now", `unexpected argument "now"`},
		{"status now", `unexpected argument "now"`},
	} {
		t.Run(c.args, func(t *testing.T) {
			tidegate(t, "", strings.Fields(c.args)...).want(t, exitUsage, "", c.errs)
		})
	}
	tidegate(t, "", "buffer", "--help").want(t, exitOK, "", "tidegate buffer purge")
}
