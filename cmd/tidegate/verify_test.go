package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/message"
	"tidegate/message/envelope"
)

// single is a message as an uplink without batches sends it over MQTT 5.
func single(up, seq, topic string) message.Message {
	return message.Message{Topic: topic, Payload: []byte("x"), Properties: []message.Property{
		{Key: "a", Value: "b"},
		{Key: "tg-id", Value: "id"},
		{Key: "tg-seq", Value: seq},
		{Key: "tg-src", Value: "press7"},
		{Key: "tg-up", Value: up},
	}}
}

// TestWatcher: everything that a gateway sends is told apart, and so is what comes from others.
func TestWatcher(t *testing.T) {
	w := newWatcher(0, false)
	for n := 1; n <= 5; n++ {
		w.see(single("gw/one", fmt.Sprintf("e-normal-%d", n), "a"))
	}
	w.see(single("gw/one", "e-normal-9", "a"))
	w.see(single("gw/one", "e-normal-9", "a"))
	w.see(single("", "e-normal-1", "a")) // of a gateway that does not say who it is
	retained := single("gw/one", "e-normal-100", "a")
	retained.Retain = true
	w.see(retained)
	w.see(message.Message{Topic: "tidegate/gw/uplink/one/gaps", Payload: []byte(`{"epoch":"e","lane":"normal","reason":"evicted","count":3,"ranges":[[6,7],[8,8]]}`)})
	w.see(message.Message{Topic: "tidegate/gw/uplink/one/gaps", Payload: []byte(`{"epoch":`)})
	for _, c := range []envelope.Compression{envelope.None, envelope.Gzip, envelope.Zstd} {
		payload, _ := batchOf(t, c, 4)
		contentType := c.ContentType()
		if c == envelope.Gzip {
			contentType = "" // over 3.1.1
		}
		w.see(message.Message{Topic: "tidegate/gw/uplink/cloud/batch", Payload: payload, ContentType: contentType})
		w.see(message.Message{Topic: "b", Payload: payload[:len(payload)-2], ContentType: c.ContentType()})
	}
	w.see(message.Message{Topic: "tidegate/gw/status", Payload: []byte(`{"state":"online"}`)})
	w.see(message.Message{Topic: "other", Payload: []byte("x")})
	w.see(message.Message{Topic: "other", Payload: []byte(`{"v":1,"t":"2026-01-02T03:04:05Z"}`)})

	r := w.account.report()
	if len(r.Lanes) != 3 || r.Batches != 3 || r.Unidentified != 2 || r.Unreadable != 4 || r.Missing != 0 || r.Announced != 3 {
		t.Fatalf("%+v", r)
	}
	if l := r.Lanes[1]; l.Uplink != "cloud" || l.Received != 4 || l.Duplicates != 8 || l.Devices[0].Source != "press7" {
		t.Errorf("batches: %+v", l)
	}
	if l := r.Lanes[2]; l.Uplink != "one" || l.Received != 6 || l.Duplicates != 1 || l.First != 1 || l.Last != 9 || l.Announced != 3 {
		t.Errorf("single messages: %+v", l)
	}
}

// TestVerifyCounts: what has no sequence that can be told from others is no different message.
func TestVerifyCounts(t *testing.T) {
	w := newWatcher(3, false)
	for _, seq := range []string{"nonsense", "nonsense", "e-normal-1", "e-normal-1", "e-normal-18446744073709551615", "e-normal-2"} {
		w.see(single("gw/one", seq, "a"))
	}
	if n, full := w.count(); n != 2 || full {
		t.Errorf("%d different, full %t", n, full)
	}
	w.see(single("gw/one", "e-normal-4", "a"))
	if _, full := w.count(); !full || !isClosed(w.full) {
		t.Error("three different messages are not enough")
	}
	// Behind the end only what fills a gap counts.
	w.see(single("gw/one", "e-normal-5", "a"))
	w.see(single("gw/two", "e-normal-1", "a"))
	w.see(single("gw/one", "e-normal-3", "a"))
	if r := w.account.report(); r.Received != 4 || r.Missing != 0 || len(r.Lanes) != 1 || r.Lanes[0].Last != 4 {
		t.Errorf("%+v", r)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestVerifyExitCodes: what was not seen, or could not be read, is no success.
func TestVerifyExitCodes(t *testing.T) {
	payload, _ := batchOf(t, envelope.Zstd, 3)
	broken := message.Message{Topic: "x", Payload: payload[:len(payload)-4], ContentType: envelope.Zstd.ContentType()}
	for name, c := range map[string]struct {
		come      []message.Message
		unordered bool
		code      int
		says      string
	}{
		"nothing":          {nil, false, exitOK, "nothing was verified"},
		"no identity":      {[]message.Message{{Topic: "x", Payload: []byte("1")}}, false, exitFailed, "nothing was verified"},
		"all in order":     {[]message.Message{single("gw/one", "e-normal-1", "a"), single("gw/one", "e-normal-2", "a")}, false, exitOK, ""},
		"again":            {[]message.Message{single("gw/one", "e-normal-1", "a"), single("gw/one", "e-normal-1", "a")}, false, exitOK, ""},
		"a loss":           {[]message.Message{single("gw/one", "e-normal-1", "a"), single("gw/one", "e-normal-3", "a")}, false, exitFailed, "1 messages are missing"},
		"an older one":     {[]message.Message{single("gw/one", "e-normal-9", "a"), single("gw/one", "e-normal-3", "b")}, false, exitOK, "5 sequences did not come that may have come before"},
		"out of order":     {[]message.Message{single("gw/one", "e-normal-2", "a"), single("gw/one", "e-normal-1", "a")}, false, exitFailed, "say --unordered"},
		"which is allowed": {[]message.Message{single("gw/one", "e-normal-2", "a"), single("gw/one", "e-normal-1", "a")}, true, exitOK, ""},
		"nothing readable": {[]message.Message{broken}, false, exitFailed, "1 batches or gap reports cannot be read"},
		"one not readable": {[]message.Message{single("gw/one", "e-normal-1", "a"), broken}, false, exitFailed, "cannot be read"},
		"a huge gap report": {[]message.Message{{
			Topic: "tidegate/gw/uplink/one/gaps", Payload: []byte(`{"epoch":"e","lane":"normal","ranges":[[1,1]` + strings.Repeat(",[1,1]", 1<<18) + "]}"),
		}}, false, exitFailed, "cannot be read"},
		"a gap report of 7": {[]message.Message{{Topic: "tidegate/gw/uplink/one/gaps", Payload: []byte("7")}}, false, exitFailed, "cannot be read"},
	} {
		w := newWatcher(0, c.unordered)
		for _, m := range c.come {
			w.see(m)
		}
		var out, errs syncBuffer
		code := w.finish(stdio{out: &out, err: &errs}, verifyFlags{unordered: c.unordered})
		if code != c.code || !strings.Contains(errs.String(), c.says) {
			t.Errorf("%s: exit %d, %s", name, code, errs.String())
		}
	}
}

// TestVerifyWaitsForAnnouncements: a gap that is announced soon after the end is no loss; one that is not is told after a while.
func TestVerifyWaitsForAnnouncements(t *testing.T) {
	for after, want := range map[time.Duration]time.Duration{0: 0, 2 * time.Second: 2 * time.Second, time.Hour: gapPatience} {
		synctest.Test(t, func(t *testing.T) {
			w := newWatcher(2, false)
			report := time.AfterFunc(after, func() {
				w.see(message.Message{Topic: "tidegate/gw/uplink/one/gaps", Payload: []byte(`{"epoch":"e","lane":"normal","ranges":[[2,2]]}`)})
			})
			defer report.Stop()
			w.see(single("gw/one", "e-normal-1", "a"))
			w.see(single("gw/one", "e-normal-3", "a"))
			begun := time.Now()
			w.settle(t.Context(), nil)
			if took := time.Since(begun); took < want || took > want+time.Second {
				t.Errorf("announced after %v: it took %v", after, took)
			}
			if missing := w.account.report().Missing; (missing > 0) != (after > gapPatience) {
				t.Errorf("announced after %v: %d missing", after, missing)
			}
		})
	}
}

// TestVerifyUsage: what cannot work is refused before anything is tried.
func TestVerifyUsage(t *testing.T) {
	for args, want := range map[string]string{
		"":                                       "--server URL is missing",
		"--server mqtt://127.0.0.1:1":            "--filter FILTER is missing",
		"--server 127.0.0.1:1 --filter #":        "want mqtt://HOST:PORT",
		"--server http://127.0.0.1:1 --filter #": "want mqtt://HOST:PORT",
		"--server mqtt://u@127.0.0.1:1 --filter #":          "want mqtt://HOST:PORT",
		"--server mqtt://127.0.0.1:1 --filter a/#/b":        "a/#/b",
		"--server mqtt://127.0.0.1:1 --filter # -q 0":       "want 1 or 2",
		"--server mqtt://127.0.0.1:1 --filter # --for ever": "no duration",
		"--server mqtt://127.0.0.1:1 --filter # --for 0s":   "more than nothing",
		"--server mqtt://127.0.0.1:1 --filter # x":          "unexpected argument",
		"--server mqtts://127.0.0.1 --filter # --cert c":    "belong together",
		"--server mqtt://127.0.0.1:1 --filter # --ca c":     "only for mqtts",
		"--server mqtts://127.0.0.1 --filter # --ca nofile": "no such file",
		"--server mqtt://127.0.0.1:1 --filter # -V 3.1":     "want mqttv311 or mqttv5",
	} {
		tidegate(t, "", append([]string{"verify"}, strings.Fields(args)...)...).want(t, exitUsage, "", want)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	tidegate(t, "", "verify", "--server", "mqtt://"+l.Addr().String(), "--filter", "#").want(t, exitUnavailable, "", "cannot reach the broker")
}

// TestVerifySubscriptions: gap reports are always subscribed to, and never twice.
func TestVerifySubscriptions(t *testing.T) {
	for filters, want := range map[string]string{
		"a/#": "a/# " + gapsFilter, "#": "#", "tidegate/#": "tidegate/#", "a +/+/uplink/+/gaps": "a +/+/uplink/+/gaps", "tidegate/gw/#": "tidegate/gw/# " + gapsFilter,
	} {
		f := verifyFlags{filters: strings.Fields(filters)}
		if got := strings.Join(f.subscriptions(), " "); got != want {
			t.Errorf("%s: %s, want %s", filters, got, want)
		}
	}
}

// TestVerifyEnds: by --count, by --for, and when the broker goes; the report is printed in each case.
func TestVerifyEnds(t *testing.T) {
	port := mosquitto(t, "allow_anonymous true")
	server := fmt.Sprintf("mqtt://127.0.0.1:%d", port)
	tidegate(t, "", "verify", "--server", server, "--filter", "#", "--for", "10ms").want(t, exitOK, "0 messages", "nothing was verified")
	r := tidegate(t, "", "verify", "--server", server, "--filter", "#", "--for", "10ms", "--count", "1", "--json")
	r.want(t, exitFailed, `"lanes":[]`, "0 of 1 different messages came within 10ms")
	var report accountReport
	if err := json.Unmarshal([]byte(r.out), &report); err != nil {
		t.Error(err)
	}

	b := start(t, nil, "verify", "--server", server, "--filter", "#", "--count", "3")
	eventually(t, "verify to watch", func() bool { return strings.Contains(b.err.String(), "watching") })
	payload, _ := batchOf(t, envelope.Zstd, 3)
	tidegate(t, string(payload), "pub", "-p", fmt.Sprint(port), "-V", "5", "-t", "x/batch", "-s", "-q", "1").want(t, exitOK, "", "")
	b.wait(t).want(t, exitOK, "3 different, 0 missing", "")

	for count, code := range map[string]int{"0": exitOK, "3": exitFailed} {
		b := start(t, nil, "verify", "--server", server, "--filter", "#", "--count", count)
		eventually(t, "verify to watch", func() bool { return strings.Contains(b.err.String(), "watching") })
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil { // verify has taken the signal over
			t.Fatal(err)
		}
		b.wait(t).want(t, code, "0 messages", map[bool]string{true: "interrupted when 0 of 3"}[code == exitFailed])
	}
}
