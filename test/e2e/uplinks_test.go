package e2e

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"
	"time"
)

// TestOneUplinkDown: an uplink whose cloud is away keeps its own backlog and holds up nobody else.
func TestOneUplinkDown(t *testing.T) {
	const n = 300
	good, bad := startCloud(t), newCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("good", good.url(), "5"), uplinkTo("bad", bad.url(), "3.1.1"))
	far := consume(t, good.addr(), "application", "plant/#")
	g.start()
	publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1, n)
	far.requireAll(t, "plant/dev", n, soon)
	g.requireDrained("good", soon)
	u := g.uplink("bad")
	if u.Connected || u.Records != n || u.LastError == "" || u.Bytes == 0 {
		t.Errorf("status of the uplink that is down: %+v, want %d records and the reason", u, n)
	}
	m := g.metrics()
	if up := m.sum("tidegate_uplink_connected", "uplink=good"); up != 1 {
		t.Errorf("tidegate_uplink_connected of good is %v", up)
	}
	if up := m.sum("tidegate_uplink_connected", "uplink=bad"); up != 0 {
		t.Errorf("tidegate_uplink_connected of bad is %v", up)
	}
	g.requireLedger("good", n)
	g.requireLedger("bad", n)

	bad.start()
	late := subscribe(t, bad.addr(), "", "-i", "late", "-q", "1", "-t", "nothing")
	late.stop()
	g.requireDrained("bad", 60*time.Second)
	g.requireLedger("bad", n)
	g.stop()
}

// TestRoutesAndLanes: every matching route sends, one resulting topic once; `to`, `except` and the templates decide where.
func TestRoutesAndLanes(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, `[route.a]
  from = ["plant/#"]
  except = ["plant/+/debug/#"]
  to = ["one"]
  topic = "one/{topic}"
[route.b]
  from = ["plant/+/alarm"]
  lane = "urgent"
  to = ["one"]
  topic = "one/{topic}"
[route.c]
  from = ["plant/+/alarm"]
  to = ["two"]
  topic = "two/{2}"
  qos = 2
  retain = "clear"
`, uplinkTo("one", c.url(), "5"), uplinkTo("two", c.url(), "5"))
	far := subscribe(t, c.addr(), "%t %q %p", "-V", "mqttv5", "-q", "2", "-t", "one/#", "-t", "two/#", "-t", "plant/#", "-t", "other/#")
	g.start()
	dev := g.addr(devices)
	publish(t, dev, "-q", "1", "-t", "plant/p1/temp", "-m", "m1")
	publish(t, dev, "-q", "1", "-t", "plant/p1/debug/x", "-m", "m2") // excepted
	publish(t, dev, "-q", "1", "-t", "plant/p1/alarm", "-m", "m3")   // a and b give the same topic: once
	publish(t, dev, "-q", "1", "-t", "other/p1", "-m", "m4")         // no route
	publish(t, dev, "-q", "1", "-r", "-t", "plant/p2/alarm", "-m", "m5")
	publish(t, dev, "-q", "1", "-t", "plant/p1/temp", "-m", "last")
	far.await("one/plant/p1/temp 1 last")
	waitFor(t, soon, "six messages", func() bool { return len(far.got()) >= 6 })
	g.requireDrained("one", soon)
	g.requireDrained("two", soon)
	got := map[string]int{}
	for _, line := range far.got() {
		got[line]++
	}
	for _, want := range []string{
		"one/plant/p1/temp 1 m1", "one/plant/p1/alarm 1 m3", "two/p1 2 m3", "one/plant/p2/alarm 1 m5",
		"two/p2 2 m5", "one/plant/p1/temp 1 last",
	} {
		if got[want] != 1 {
			t.Errorf("%q arrived %d times, want once; all: %q", want, got[want], far.got())
		}
	}
	if len(far.got()) != 6 {
		t.Errorf("%d messages, want 6: %q", len(far.got()), far.got())
	}
	m := g.metrics()
	if n := m.sum("tidegate_ledger_total", "place=merged"); n != 2 {
		t.Errorf("ledger: merged is %v, want 2 (the same topic by a second route)", n)
	}
	if n := m.sum("tidegate_ledger_total", "place=unrouted"); n != 2 {
		t.Errorf("ledger: unrouted is %v, want 2", n)
	}
	g.stop()
}

// kilobyte is a payload of numbered messages that fill a buffer soon.
func kilobyte(n int) []byte { return append(fmt.Appendf(nil, "dev %d ", n), make([]byte, 1000)...) }

// TestRefuse: a full buffer that refuses makes MQTT 5 clients wait with 0x97 and closes 3.1.1 clients without an
// acknowledgement; what was acknowledged is kept, what was refused reaches nobody, and when there is room it goes on.
func TestRefuse(t *testing.T) {
	c := newCloud(t)
	other := startCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n",
		uplinkTo("cloud", c.url(), "5", "[uplink.cloud.buffer]\n  max_bytes = \"1MiB\"\n  when_full = \"refuse\""),
		uplinkTo("other", other.url(), "5"))
	far := consume(t, other.addr(), "application", "plant/#")
	g.start()

	five, err := dial(g.addr(devices), "5", login{client: "five"})
	if err != nil {
		t.Fatal(err)
	}
	defer five.close()
	accepted, attempts, reason := 0, 0, byte(0)
	for reason == 0 && attempts < 5000 {
		attempts++
		reason = ackOf(t, five, "plant/dev", 1, uint16(attempts), kilobyte(attempts))
		if reason == 0 {
			accepted++
		}
	}
	if reason != reasonQuota {
		t.Fatalf("after %d messages of 1 KiB the reason is %#x, want 0x97", attempts, reason)
	}
	if accepted < 512 || accepted > 1100 {
		t.Errorf("a buffer of 1 MiB took %d messages of 1 KiB", accepted)
	}
	attempts++
	if got := ackOf(t, five, "plant/dev", 2, 9001, kilobyte(attempts)); got != reasonQuota {
		t.Errorf("QoS 2: PUBREC with %#x, want 0x97", got)
	}

	three, err := dial(g.addr(devices), "3.1.1", login{client: "three"})
	if err != nil {
		t.Fatal(err)
	}
	defer three.close()
	attempts++
	if err := three.publish("plant/dev", 1, 1, kilobyte(attempts)); err != nil {
		t.Fatal(err)
	}
	if p, err := three.readWithin(soon); err == nil {
		t.Errorf("3.1.1: packet %#x, want the connection closed without an acknowledgement", p.kind)
	} else if isTimeout(err) {
		t.Errorf("3.1.1: still open after %v, want the connection closed", soon)
	}
	g.requireLedger("cloud", attempts)
	if n := g.metrics().sum("tidegate_refused_messages_total", "protocol=mqtt"); int(n) != attempts-accepted {
		t.Errorf("tidegate_refused_messages_total is %v, want %d", n, attempts-accepted)
	}

	// With the cloud there is room again.
	c.start()
	keep := consume(t, c.addr(), "application", "plant/#")
	d := &device{name: "late", topic: "plant/late", version: "3.1.1", qos: 1, window: 10, addr: g.here}
	n := d.start(t).finish(t, 50, 60*time.Second)
	keep.requireAll(t, "plant/late", n, soon)
	far.requireAll(t, "plant/dev", accepted, soon)
	if got := far.distinct("plant/dev"); got != accepted {
		t.Errorf("the other uplink delivered %d messages, want the %d that were accepted: refused is refused for all", got, accepted)
	}
	g.requireDrained("cloud", soon)
	g.stop()
}

// ackOf publishes and returns the reason code of the acknowledgement.
func ackOf(t *testing.T, w *wire, topic string, qos byte, id uint16, payload []byte) byte {
	t.Helper()
	if err := w.publish(topic, qos, id, payload); err != nil {
		t.Fatal(err)
	}
	p, err := w.readWithin(soon)
	if err != nil {
		t.Fatal(err)
	}
	if want := byte(typePuback) + (qos-1)<<4; p.kind != want || p.id() != id {
		t.Fatalf("packet %#x with identifier %d, want %#x with %d", p.kind, p.id(), want, id)
	}
	return p.reason()
}

// TestDropOldest: a full buffer that drops its oldest records counts each, keeps to its bound on disk, and delivers the rest.
func TestDropOldest(t *testing.T) {
	const n = 4000
	c := startCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n",
		uplinkTo("cloud", c.url(), "5", "[uplink.cloud.buffer]\n  max_bytes = \"1MiB\"\n  when_full = \"drop-oldest\""))
	far := consume(t, c.addr(), "application", "plant/#")
	c.stop()
	g.start()
	d := &device{name: "dev", topic: "plant/dev", version: "5", qos: 1, window: 100, pad: 1000, addr: g.here}
	d.start(t).finish(t, n, 60*time.Second)
	u := g.uplink("cloud")
	if u.Bytes > 1<<20 || u.Evicted == 0 || u.Evicted+u.Records != n {
		t.Errorf("status: %+v; want at most 1 MiB, and evicted and records together %d", u, n)
	}
	if size := diskUse(t, g.data()); size > 6<<20 {
		t.Errorf("the data folder holds %d bytes for a bound of 1 MiB", size)
	} else {
		t.Logf("the data folder holds %d KiB for a bound of 1 MiB; %d evicted", size>>10, u.Evicted)
	}
	g.requireLedger("cloud", n)
	c.start()
	g.requireDrained("cloud", 60*time.Second)
	g.requireLedger("cloud", n)
	places := g.metrics().places("cloud")
	waitFor(t, soon, "the rest to arrive", func() bool { return far.distinct("plant/dev") >= int(places["delivered"]) })
	v := far.verdict("plant/dev", n)
	if len(v.lost) != int(places["evicted"]) || len(v.disorder) > 0 {
		t.Errorf("%v; the ledger says %s", v, ledgerText(places))
	}
	if len(v.lost) > 0 && v.lost[len(v.lost)-1] != len(v.lost) {
		t.Errorf("lost up to number %d, but only %d: not the oldest ones", v.lost[len(v.lost)-1], len(v.lost))
	}
	g.stop()
}

// TestMaxAge: what is too old leaves the disk while the cloud is away, also what an earlier process stored, and is counted; what
// comes in later is delivered.
func TestMaxAge(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n",
		uplinkTo("cloud", c.url(), "5", "[uplink.cloud.buffer]\n  max_age = \"3s\""))
	far := consume(t, c.addr(), "application", "plant/#")
	c.stop()
	g.start()
	publishLines(t, g.addr(devices), "5", "dev", "plant/old", 1, 1, 500)
	g.kill()
	g.start()
	g.requireLedger("cloud", 500)
	waitFor(t, soon, "the records to expire", func() bool { return g.metrics().places("cloud")["expired"] == 500 })
	if u := g.uplink("cloud"); u.Records != 0 {
		t.Errorf("status: %+v", u)
	}
	c.start()
	g.requireConnected("cloud") // the new ones would expire as well while the uplink waits for its next try
	publishLines(t, g.addr(devices), "5", "dev", "plant/new", 1, 1, 100)
	g.requireDrained("cloud", soon)
	waitFor(t, soon, "the new ones to arrive", func() bool { return far.distinct("plant/new") == 100 })
	if n := far.distinct("plant/old"); n != 0 {
		t.Errorf("%d expired messages arrived", n)
	}
	if v := far.verdict("plant/new", 100); len(v.lost) > 0 || v.duplicates > 0 || len(v.disorder) > 0 {
		t.Errorf("new ones: %v", v)
	}
	places := g.metrics().places("cloud")
	if places["expired"] != 500 || places["delivered"] != 100 {
		t.Errorf("ledger: %s", ledgerText(places))
	}
	g.stop()
}

// TestOldRecordPinsNothing: one record that waits for a cloud that is away does not keep the disk full of what another cloud
// has long taken.
func TestOldRecordPinsNothing(t *testing.T) {
	good, bad := startCloud(t), newCloud(t)
	small := "[uplink.%s.buffer]\n  max_bytes = \"1MiB\""
	g := newGateway(t, "[route.much]\n  from = [\"much/#\"]\n  to = [\"good\"]\n[route.rare]\n  from = [\"rare/#\"]\n  to = [\"bad\"]\n",
		uplinkTo("good", good.url(), "5", fmt.Sprintf(small, "good")), uplinkTo("bad", bad.url(), "5", fmt.Sprintf(small, "bad")))
	g.start()
	publishLines(t, g.addr(devices), "5", "rare", "rare/x", 1, 1, 3)
	d := &device{name: "much", topic: "much/x", version: "5", qos: 1, window: 200, pad: 1000, addr: g.here}
	d.start(t).finish(t, 12000, 120*time.Second)
	g.requireDrained("good", 60*time.Second)
	size := diskUse(t, g.data())
	t.Logf("12 MB passed through; the data folder holds %d KiB for two bounds of 1 MiB", size>>10)
	if size > 8<<20 {
		t.Errorf("the data folder holds %d KiB", size>>10)
	}
	g.kill()
	g.start()
	bad.start()
	g.requireDrained("bad", 60*time.Second)
	g.requireLedger("bad", 3)
	g.stop()
}

// diskUse adds up the files of a folder.
func diskUse(t *testing.T, dir string) int64 {
	t.Helper()
	var size int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}
