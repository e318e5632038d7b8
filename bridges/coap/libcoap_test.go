package coap

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidegate/message"
)

// libcoap runs coap-client of libcoap with a timeout of a few seconds and returns what it prints: the payload, or the code of
// a refusal.
func libcoap(t *testing.T, args ...string) string {
	t.Helper()
	name, err := exec.LookPath("coap-client-notls")
	if err != nil {
		if name, err = exec.LookPath("coap-client"); err != nil {
			t.Fatal("coap-client is not installed: apt-get install libcoap3-bin")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, append([]string{"-B", "5"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("coap-client %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimRight(string(out), "\n")
}

func wantText(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("coap-client prints %q, want %q", got, want)
	}
}

func TestLibcoap(t *testing.T) {
	g := start(t, nil)
	for _, kind := range []string{"", "-N"} {
		with := func(args ...string) []string {
			if kind != "" {
				args = append([]string{kind}, args...)
			}
			return args
		}
		t.Run("CON"+kind, func(t *testing.T) {
			wantText(t, libcoap(t, with("-m", "get", g.url("/ps/plant/temp"))...), "4.04")
			wantText(t, libcoap(t, with("-m", "put", "-e", "21.5", "-t", "50", g.url("/ps/plant/temp"))...), "")
			wantText(t, libcoap(t, with("-m", "get", g.url("/ps/plant/temp"))...), "21.5")
			wantText(t, libcoap(t, with("-m", "get", "-b", "1024", g.url("/ps/plant/temp"))...), "21.5")
			wantText(t, libcoap(t, with("-m", "get", "-A", "60", g.url("/ps/plant/temp"))...), "4.06")
			wantText(t, libcoap(t, with("-m", "post", "-e", "event", g.url("/ps//a%20b?expiry=60"))...), "")
			wantText(t, libcoap(t, with("-m", "post", "-e", "x", g.url("/ps/a?what=1"))...), `4.00 query "what=1" is not known`)
			wantText(t, libcoap(t, with("-m", "post", "-e", "x", g.url("/ps"))...), "4.05")
			wantText(t, libcoap(t, with("-m", "fetch", "-e", "x", g.url("/ps/a"))...), "4.05")
			wantText(t, libcoap(t, with("-m", "delete", g.url("/ps/plant/temp"))...), "")
			wantText(t, libcoap(t, with("-m", "get", g.url("/ps/plant/temp"))...), "4.04")
			if kind == "" {
				wantText(t, libcoap(t, "-m", "post", "-e", "x", "-O", "2053,0x01", g.url("/ps/a")), "4.02 an option that is not understood here")
			}
		})
	}
	var topics []string
	var qos []message.QoS
	for _, m := range g.bus.list() {
		topics, qos = append(topics, m.Topic), append(qos, m.QoS)
	}
	if got := strings.Join(topics, " "); got != "plant/temp /a b plant/temp plant/temp /a b plant/temp" {
		t.Errorf("published %s", got)
	}
	if len(qos) != 6 || qos[0] != 1 || qos[3] != 0 {
		t.Errorf("QoS %v", qos)
	}
}

func TestLibcoapReadsBlocksAndLists(t *testing.T) {
	g := start(t, nil)
	large := strings.Repeat("0123456789abcdef", 1000)
	g.bus.retain(message.Message{Topic: "large", Payload: []byte(large), ContentType: "text/plain"})
	wantText(t, libcoap(t, "-m", "get", g.url("/ps/large")), large)
	wantText(t, libcoap(t, "-m", "get", "-b", "64", g.url("/ps/large")), large)
	wantText(t, libcoap(t, "-m", "get", g.url("/.well-known/core")), `</ps>;rt="core.ps";ct=40,</ps/large>;rt="core.ps.data";ct=0`)
	wantText(t, libcoap(t, "-m", "get", g.url("/.well-known/core?rt=core.ps")), `</ps>;rt="core.ps";ct=40`)
}

// TestLibcoapUpload: libcoap cuts a large body into blocks, each under a token of its own, and is told that this is not taken.
func TestLibcoapUpload(t *testing.T) {
	g := start(t, nil)
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, []byte(strings.Repeat("x", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	wantText(t, libcoap(t, "-m", "put", "-f", file, g.url("/ps/large")), "4.13 bodies in blocks are not taken")
	if n := len(g.bus.list()); n != 0 {
		t.Errorf("%d published, want none", n)
	}
}

// TestLibcoapWaitsForTheDisk: what takes longer than its patience for an acknowledgement is answered all the same, once.
func TestLibcoapWaitsForTheDisk(t *testing.T) {
	g := start(t, nil)
	g.bus.disk.setSlow(func() time.Duration { return 2500 * time.Millisecond })
	began := time.Now()
	out := libcoap(t, "-v", "6", "-m", "put", "-e", "x", g.url("/ps/a"))
	if took := time.Since(began); took < 2500*time.Millisecond {
		t.Errorf("answered after %v, before the record was on disk", took)
	}
	if !strings.Contains(out, "t:CON c:2.01") {
		t.Errorf("coap-client saw no separate response:\n%s", out)
	}
	if n := g.bus.count([]byte("x")); n != 1 {
		t.Errorf("published %d times", n)
	}
}
