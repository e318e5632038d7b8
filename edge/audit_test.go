package edge

import (
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

// TestAuditCountsWhatItLeavesOut: lines written and lines said to be left out add up to what happened.
func TestAuditCountsWhatItLeavesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logBuffer{}
		a := newAudit(slog.New(slog.NewTextHandler(log, nil)))
		var s sparing
		const n = 5000
		for i := range n {
			a.refused(&s, "client refused", "credentials", "client "+strconv.Itoa(i%400), "user", strings.Repeat("x", 1000))
			time.Sleep(7 * time.Millisecond)
		}
		time.Sleep(time.Hour) // and one more line that says what is left
		for i := range 400 {
			a.refused(&s, "client refused", "credentials", "client "+strconv.Itoa(i))
			time.Sleep(time.Second)
		}
		a.refused(&s, "client refused", "credentials", "last")
		lines, silent := 0, 0
		for _, m := range regexp.MustCompile(`not_logged=(\d+)`).FindAllStringSubmatch(log.String(), -1) {
			k, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			lines, silent = lines+1, silent+k
		}
		if lines+silent != n+401 {
			t.Errorf("%d lines and %d left out, of %d", lines, silent, n+401)
		}
		if most := 200 + 5*35 + 401 + 1; lines > most {
			t.Errorf("%d lines", lines)
		}
		if i := strings.Index(log.String(), strings.Repeat("x", maxBrief+1)); i >= 0 {
			t.Error("what a stranger wrote is not cut")
		}
	})
}

// TestLinesAreShort: whatever a client calls itself and writes, no line of the log is long, and a flood makes so many lines and no more.
func TestLinesAreShort(t *testing.T) {
	log := &logBuffer{}
	b := startBroker(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(log, nil)) })
	const n = 300
	for i := range n {
		c := connect(t, b.addr, rawOptions{ID: fmt.Sprint(i, strings.Repeat("x", 20_000)), V: 5, Clean: true})
		if err := c.Publish(1, "a\x01"+strings.Repeat("\x02", 20_000), 1, nil); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Recv(time.Second) // refused, one way or another
		_ = c.Close()
	}
	counts := map[string]int{}
	for l := range strings.SplitSeq(strings.TrimSpace(log.String()), "\n") {
		if len(l) > 2500 { // 200 bytes of control characters are 800 in quotes, 1,000 where they are quoted twice
			t.Fatalf("a line of %d bytes: %.300s", len(l), l)
		}
		for _, msg := range []string{"client admitted", "message refused"} {
			if strings.Contains(l, msg) {
				counts[msg]++
			}
		}
	}
	if counts["client admitted"] != n || counts["message refused"] == 0 || counts["message refused"] > 250 {
		t.Errorf("%v", counts)
	}
}

// TestRefusedWillIsShort: a will that is refused when it is published makes one short line in a while.
func TestRefusedWillIsShort(t *testing.T) {
	log := &logBuffer{}
	b := startBroker(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(log, nil)) })
	b.disk.refuseWith(message.ErrBusy)
	for range 5 {
		c := connect(t, b.addr, rawOptions{ID: "c" + strings.Repeat("x", 20_000), V: 5, Clean: true, Mod: func(pk *packets.Packet) {
			pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, strings.Repeat("w", 20_000), []byte("x")
		}})
		_ = c.Close()
		eventually(t, "the client is gone", func() bool { return b.Clients() == 0 })
	}
	eventually(t, "a line", func() bool { return strings.Contains(log.String(), "will message refused") })
	text := log.String()
	if n := strings.Count(text, "will message refused"); n != 1 {
		t.Errorf("%d lines", n)
	}
	for l := range strings.SplitSeq(text, "\n") {
		if len(l) > 2500 {
			t.Fatalf("a line of %d bytes", len(l))
		}
	}
}
