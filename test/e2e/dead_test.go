package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// deadLetters are the lines of `buffer dead ls`.
func (g *gateway) deadLetters() []exported {
	g.t.Helper()
	r := g.run("buffer", "dead", "ls")
	if r.code != 0 {
		g.t.Fatalf("buffer dead ls: %v", r)
	}
	var list []exported
	for d := json.NewDecoder(strings.NewReader(r.out)); d.More(); {
		var e exported
		if err := d.Decode(&e); err != nil {
			g.t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

// TestDeadLetters: what the cloud refused for its size is sent again when the cloud takes it, beside a running gateway and on
// a stopped one, over a kill; it arrives with the identity it had, and the ledger adds up. What is discarded is gone.
func TestDeadLetters(t *testing.T) {
	for name, batch := range map[string]string{"single": "", "batches": `  batch = { compress = "none", max_delay = "100ms" }`} {
		t.Run(name, func(t *testing.T) { deadLetters(t, batch) })
	}
}

func deadLetters(t *testing.T, batch string) {
	c := newCloud(t, "max_packet_size 2000")
	conf := filepath.Join(c.dir, "mosquitto.conf")
	c.start()
	g := newGateway(t, plantUp, uplinkTo("cloud", c.url(), "5", batch))
	g.start()
	big := strings.Repeat("x", 3000)
	send := func(from, n int) {
		t.Helper()
		publishLines(t, g.addr(devices), "5", "big", "plant/small", 1, from, n)
		publishLines(t, g.addr(devices), "5", "dev "+fmt.Sprint(from)+" "+big, "plant/big", 1, from, n)
	}
	send(1, 5)
	g.requireDrained("cloud", soon)
	g.requireLedger("cloud", 10)
	letters := g.deadLetters()
	if len(letters) != 5 || !strings.Contains(g.run("buffer", "dead", "ls").out, `"reason":`) {
		t.Fatalf("%d dead letters", len(letters))
	}
	if u := g.uplink("cloud"); u.Dead != 5 {
		t.Errorf("status: %+v", u)
	}

	// The cloud learns to take them.
	c.stop()
	if err := os.WriteFile(conf, []byte(strings.Replace(readFile(t, conf), "max_packet_size 2000", "max_packet_size 200000", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start()
	far := consume(t, c.addr(), "application", "plant/big", "tidegate/+/uplink/+/batch")
	g.requireConnected("cloud")
	arrived := func(want int) {
		t.Helper()
		waitFor(t, 60*time.Second, fmt.Sprintf("%d records to arrive", want), func() bool { return far.identities() >= want }, func() string { return fmt.Sprint(far.identities()) })
	}
	if r := g.run("buffer", "dead", "resend", "--id", letters[1].ID); r.code != 0 || !strings.Contains(r.out, "cloud: 1 dead letters resent") {
		t.Errorf("resend by identity: %v", r)
	}
	if r := g.run("buffer", "dead", "resend", "--seq", letters[2].Seq); r.code != 0 {
		t.Errorf("resend by sequence: %v", r)
	}
	arrived(2)
	if r := g.run("buffer", "dead", "resend", "--id", letters[1].ID); r.code != 1 || !strings.Contains(r.err, "no dead letter is the one") {
		t.Errorf("resend what is gone: %v", r)
	}
	if r := g.run("buffer", "dead", "resend", "--uplink", "other"); r.code != 1 {
		t.Errorf("resend of another uplink: %v", r)
	}
	g.kill()
	if r := g.run("buffer", "dead", "resend", "--uplink", "cloud"); r.code != 0 { // what the kill cost of the acknowledgements comes again
		t.Errorf("resend beside a killed gateway: %v", r)
	}
	if left := g.deadLetters(); len(left) != 0 {
		t.Errorf("%d dead letters are left", len(left))
	}
	g.start()
	arrived(5)
	g.requireDrained("cloud", soon)
	for _, l := range letters {
		if !far.saw(l.ID) {
			t.Errorf("%s did not arrive, or under another identity", l.ID)
		}
	}
	places := g.metrics().places("cloud")
	if len(places) != 1 || places["delivered"] == 0 {
		t.Errorf("ledger: %s", ledgerText(places))
	}
	g.stop()
}

// TestDiscardDeadLetters: only with --yes; the gateway counts them as dead still.
func TestDiscardDeadLetters(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n  topic = \"{3}\"\n", uplinkTo("cloud", c.url(), "5"))
	g.start()
	publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1, 8)
	if n := len(g.deadLetters()); n != 8 {
		t.Fatalf("%d dead letters", n)
	}
	if r := g.run("buffer", "dead", "resend"); r.code != 1 || !strings.Contains(r.err, "8 dead letters cannot be sent and stay") {
		t.Errorf("resend of what has no topic: %v", r)
	}
	if r := g.run("buffer", "dead", "discard"); r.code != 2 || !strings.Contains(r.err, "--yes") {
		t.Errorf("discard without --yes: %v", r)
	}
	first := g.deadLetters()[0]
	if r := g.run("buffer", "dead", "discard", "--yes", "--id", first.ID); r.code != 0 || !strings.Contains(r.out, "1 dead letters discarded") {
		t.Errorf("discard one: %v", r)
	}
	if u := g.uplink("cloud"); u.Dead != 7 {
		t.Errorf("status: %+v", u)
	}
	if places := g.metrics().places("cloud"); places["dead"] != 8 || len(places) != 1 {
		t.Errorf("ledger: %s", ledgerText(places))
	}
	g.stop()
	if r := g.run("buffer", "dead", "discard", "--yes"); r.code != 0 || !strings.Contains(r.out, "7 dead letters discarded") {
		t.Errorf("discard beside a stopped gateway: %v", r)
	}
	g.start()
	if n := len(g.deadLetters()); n != 0 || g.uplink("cloud").Dead != 0 {
		t.Errorf("%d dead letters came back", n)
	}
	for _, wrong := range [][]string{{"buffer", "dead"}, {"buffer", "dead", "purge"}, {"buffer", "dead", "resend", "--yes"}, {"buffer", "dead", "resend", "x"}} {
		if r := g.run(wrong...); r.code != 2 {
			t.Errorf("%v: %v", wrong, r)
		}
	}
	g.stop()
}
