package forwarder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/message"
)

func TestIngestUnrouted(t *testing.T) {
	r := open(t, t.TempDir(), testConfig(map[string]config.Route{"a": {From: []string{"a/#"}}}, "cloud"),
		map[string]*fakeCloud{"cloud": newFakeCloud(takeAll)})
	defer r.close()
	for _, topic := range []string{"b", "$SYS/x", "tidegate/gw/status"} {
		tk, err := r.f.Ingest(message.Message{Topic: topic})
		if err != nil || tk != (message.Ticket{}) || !tk.Durable() {
			t.Errorf("%s: ticket %v, error %v", topic, tk, err)
		}
	}
	if l := r.f.Ledger(); l.Unrouted != 3 {
		t.Errorf("%d unrouted", l.Unrouted)
	}
	r.balance()
}

// TestIngestShapesRecords looks at what is on disk: what is stored is what will be sent.
func TestIngestShapesRecords(t *testing.T) {
	cfg := testConfig(map[string]config.Route{
		"a": {From: []string{"x/#"}, Topic: "site/{gateway}/{uplink}/{rest}/{client}", QoS: 2, Retain: "clear"},
		"b": {From: []string{"x/#"}, To: []string{"two"}, Lane: "urgent"},
	}, "one", "two")
	r := open(t, t.TempDir(), cfg, map[string]*fakeCloud{"one": newFakeCloud(takeAll), "two": newFakeCloud(takeAll)})
	defer r.close()
	in := message.Message{
		ID: message.NewID(), Topic: "x/t", Payload: []byte("p"), QoS: 0, Retain: true, ContentType: "text/plain",
		Properties: []message.Property{{Key: "k", Value: "v"}}, Source: message.Source{Protocol: message.CoAP, Client: "c", User: "u"},
	}
	tk, err := r.f.Ingest(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := tk.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	got := map[string]Stored{}
	for _, o := range r.f.outs {
		for lane, q := range o.queues {
			err := q.Scan(0, func(rec buffer.Rec) bool {
				s, err := ReadRecord([]byte(string(rec.Data)))
				if err != nil {
					t.Fatal(err)
				}
				if seen[s.Message.ID.String()] {
					t.Errorf("identity %s is used twice", s.Message.ID)
				}
				seen[s.Message.ID.String()] = true
				got[fmt.Sprintf("%s/%d/%s", o.name, lane, s.Route)] = s
				return true
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(got) != 3 {
		t.Fatalf("got %d records: %v", len(got), got)
	}
	for key, want := range map[string]struct {
		topic  string
		qos    message.QoS
		retain bool
	}{"one/0/a": {"site/gw/one/t/c", 2, false}, "two/0/a": {"site/gw/two/t/c", 2, false}, "two/1/b": {"x/t", 1, true}} {
		m := got[key].Message
		if m.Topic != want.topic || m.QoS != want.qos || m.Retain != want.retain || string(m.Payload) != "p" ||
			m.ContentType != "text/plain" || len(m.Properties) != 1 || m.Source != in.Source || m.ID.Copy(0) != in.ID || m.ID == in.ID || m.Received.IsZero() {
			t.Errorf("%s: %+v", key, m)
		}
	}
}

// TestMergedCopies: two routes reach one uplink under one topic; the urgent lane wins and the other copy is merged.
func TestMergedCopies(t *testing.T) {
	cfg := testConfig(map[string]config.Route{
		"alarms":    {From: []string{"p/+/alarm"}, Lane: "urgent"},
		"telemetry": {From: []string{"p/#"}},
	}, "cloud")
	cloud := newFakeCloud(takeAll)
	r := open(t, t.TempDir(), cfg, map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	r.send("p/1/alarm", "1")
	r.send("p/1/temp", "1")
	eventually(t, "both arrive", func() bool { return len(cloud.records()) == 2 })
	eventually(t, "all is counted", func() bool { return r.queued() == 0 && r.unbalanced() == nil })
	for _, a := range cloud.records() {
		if want := map[string]string{"p/1/alarm": "-urgent-1", "p/1/temp": "-normal-1"}[a.topic]; !strings.HasSuffix(a.id.Seq, want) {
			t.Errorf("%s has tg-seq %s, want %s", a.topic, a.id.Seq, want)
		}
	}
	if a, b := r.entry("alarms", "cloud").Places, r.entry("telemetry", "cloud").Places; a["delivered"] != 1 || b["merged"] != 1 || b["delivered"] != 1 {
		t.Errorf("alarms %v, telemetry %v", a, b)
	}
}

// TestImpossibleTopicGoesToDeadLetters: and the other copies of the message go their way.
func TestImpossibleTopicGoesToDeadLetters(t *testing.T) {
	cfg := testConfig(map[string]config.Route{
		"byuser": {From: []string{"#"}, Topic: "{user}"},
		"plain":  {From: []string{"a/#"}},
	}, "cloud")
	cloud := newFakeCloud(takeAll)
	r := open(t, t.TempDir(), cfg, map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	for _, m := range []message.Message{
		{Topic: "a/b", Payload: []byte("1")}, // no user: an empty topic
		{Topic: "b", Payload: []byte("2"), Source: message.Source{User: "x/#"}},
		{Topic: "b", Payload: []byte("3"), Source: message.Source{User: strings.Repeat("long", 20000)}},
	} {
		tk, err := r.f.Ingest(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := tk.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the good copy arrives", func() bool { return len(cloud.records()) == 1 })
	eventually(t, "the queues are empty", func() bool { return r.queued() == 0 })
	letters, err := r.f.DeadLetters("cloud")
	if err != nil || len(letters) != 3 {
		t.Fatalf("%d dead letters, %v", len(letters), err)
	}
	for i, l := range letters {
		if string(l.Message.Payload) != fmt.Sprint(i+1) || l.Route != "byuser" || !strings.Contains(l.Reason, "topic") {
			t.Errorf("dead letter %d: route %s, payload %s, reason %.60s", i, l.Route, l.Message.Payload, l.Reason)
		}
	}
	if e := r.entry("byuser", "cloud"); e.Places["dead"] != 3 {
		t.Errorf("ledger: %v", e.Places)
	}
	if _, err := r.f.DeadLetters("nobody"); err == nil {
		t.Error("an uplink that is not there has dead letters")
	}
	r.eventuallyBalanced()
}

// TestOneFullUplinkRefusesForAll: reserve everywhere, then append.
func TestOneFullUplinkRefusesForAll(t *testing.T) {
	cfg := testConfig(map[string]config.Route{"r": {From: []string{"#"}}, "only": {From: []string{"o"}, To: []string{"roomy"}, Topic: "p"}}, "roomy", "small")
	cfg.Uplinks["small"] = config.Uplink{Buffer: config.Buffer{MaxBytes: 4096, WhenFull: "refuse"}}
	small, roomy := newFakeCloud(takeAll), newFakeCloud(takeAll)
	small.setOffline(true)
	r := open(t, t.TempDir(), cfg, map[string]*fakeCloud{"roomy": roomy, "small": small}).start()
	defer r.close()

	payload := make([]byte, 500)
	taken, refused := 0, 0
	for range 30 {
		tk, err := r.f.Ingest(message.Message{Topic: "o", Payload: payload})
		switch {
		case err == nil:
			taken++
			if err := tk.Wait(context.Background()); err != nil {
				t.Fatal(err)
			}
		case errors.Is(err, message.ErrBusy):
			refused++
		default:
			t.Fatal(err)
		}
	}
	if taken == 0 || refused == 0 {
		t.Fatalf("%d taken, %d refused", taken, refused)
	}
	eventually(t, "the roomy one delivers", func() bool { return len(roomy.records()) == 2*taken })
	for _, k := range []struct {
		route, uplink string
	}{{"r", "roomy"}, {"r", "small"}, {"only", "roomy"}} {
		if e := r.entry(k.route, k.uplink); e.Places["refused"] != uint64(refused) || e.Taken != uint64(taken+refused) {
			t.Errorf("%v: %+v", k, e)
		}
	}
	if _, err := r.f.Ingest(message.Message{Topic: "o", Payload: make([]byte, 5000)}); !errors.Is(err, message.ErrTooLarge) {
		t.Errorf("a message larger than a bound: %v", err)
	}
	r.eventuallyBalanced()
	small.setOffline(false)
	eventually(t, "the small one delivers", func() bool { return len(small.records()) == taken })
	eventually(t, "there is room again", func() bool {
		tk, err := r.f.Ingest(message.Message{Topic: "o", Payload: payload})
		return err == nil && tk.Wait(context.Background()) == nil
	})
}

// TestEvictionIsCountedAndAnnounced: with drop-oldest the normal lane goes first.
func TestEvictionIsCountedAndAnnounced(t *testing.T) {
	cfg := testConfig(map[string]config.Route{"n": {From: []string{"n"}}, "u": {From: []string{"u"}, Lane: "urgent"}}, "cloud")
	cfg.Uplinks["cloud"] = config.Uplink{Buffer: config.Buffer{MaxBytes: 64 << 10}}
	cloud := newFakeCloud(takeAll)
	cloud.setOffline(true)
	r := open(t, t.TempDir(), cfg, map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	payload := strings.Repeat("x", 1000)
	for range 20 {
		r.send("u", payload)
	}
	for range 200 {
		r.send("n", payload)
	}
	r.eventuallyBalanced()
	eventually(t, "ledger and status say the same", func() bool { // some may be evicted between two looks
		n, u, s := r.entry("n", "cloud"), r.entry("u", "cloud"), r.f.Status()[0]
		return n.Places["evicted"] > 0 && u.Places["evicted"] == 0 && n.Places["evicted"]+n.Places["buffered"] == 200 &&
			s.Evicted == n.Places["evicted"] && s.Records == n.Places["buffered"]+20 && !s.Connected
	})
	cloud.setOffline(false)
	eventually(t, "the rest arrives", func() bool { return r.queued() == 0 })
	eventually(t, "the gap is announced", func() bool { return len(cloud.arrivals()) > len(cloud.records()) })
	requireGaps(t, cloud, gap(1, uint64(220-len(cloud.records())), "evicted"))
	r.eventuallyBalanced()
}

// TestFailedDiskRefusesEveryCopy: also a dead letter and a merged copy that never reached the disk are refused ones.
func TestFailedDiskRefusesEveryCopy(t *testing.T) {
	disk := &badDisk{}
	cfg := testConfig(map[string]config.Route{
		"a": {From: []string{"#"}}, "b": {From: []string{"#"}}, "u": {From: []string{"#"}, Topic: "{user}"},
	}, "cloud")
	cloud := newFakeCloud(takeAll)
	r := openWith(t, t.TempDir(), cfg, map[string]*fakeCloud{"cloud": cloud}, buffer.Options{FS: disk})
	defer r.close()
	r.send("t", "1")
	disk.failing.Store(true)
	tk, err := r.f.Ingest(message.Message{Topic: "t", Payload: []byte("2"), Source: message.Source{Client: "c"}})
	if err == nil {
		err = tk.Wait(context.Background())
	}
	if err == nil {
		t.Fatal("the disk took it")
	}
	for route, place := range map[string]string{"a": "buffered", "b": "merged", "u": "dead"} {
		eventually(t, "the copy of "+route+" is refused", func() bool {
			e := r.entry(route, "cloud")
			return e.Taken == 2 && e.Places[place] == 1 && e.Places["refused"] == 1
		})
	}
	disk.failing.Store(false)
}

// TestFailedDisk: what the disk does not take is not the gateway's, and the ledger says so.
func TestFailedDisk(t *testing.T) {
	disk := &badDisk{}
	cloud := newFakeCloud(takeAll)
	r := openWith(t, t.TempDir(), testConfig(nil, "cloud"), map[string]*fakeCloud{"cloud": cloud}, buffer.Options{FS: disk}).start()
	defer r.close()
	r.send("a", "1")
	disk.failing.Store(true)
	tk, err := r.f.Ingest(message.Message{Topic: "a", Payload: []byte("x")})
	if err == nil {
		err = tk.Wait(context.Background())
	}
	if err == nil {
		t.Fatal("a message is durable on a failed disk")
	}
	eventually(t, "messages are refused", func() bool {
		_, err := r.f.Ingest(message.Message{Topic: "a", Payload: []byte("x")})
		return errors.Is(err, message.ErrBusy)
	})
	disk.failing.Store(false)
	eventually(t, "the disk works again", func() bool {
		tk, err := r.f.Ingest(message.Message{Topic: "a", Payload: []byte("2"), Source: message.Source{Client: "dev"}})
		return err == nil && tk.Wait(context.Background()) == nil
	})
	eventually(t, "the queue is empty and the ledger adds up", func() bool { return r.queued() == 0 && r.unbalanced() == nil })
	e := r.entry("all", "cloud")
	if e.Places["refused"] < 2 || e.Places["delivered"] < 2 {
		t.Errorf("ledger: %v", e.Places)
	}
	if d := checkOrder(t, cloud.records(), map[string]int{"dev a": 2}); d != 0 {
		t.Errorf("%d duplicates", d)
	}
}

// TestBehindIsNotFull: when too much waits for the disk, the error says when to try again, and then it works.
func TestBehindIsNotFull(t *testing.T) {
	disk := &badDisk{}
	r := openWith(t, t.TempDir(), testConfig(nil, "cloud"), map[string]*fakeCloud{"cloud": newFakeCloud(takeAll)},
		buffer.Options{FS: disk, GatherBytes: 64 << 10}).start()
	defer r.close()
	disk.slow.Store(int64(20 * time.Millisecond))
	behind := 0
	for range 1000 {
		for {
			_, err := r.f.Ingest(message.Message{Topic: "a", Payload: make([]byte, 1000)})
			if err == nil {
				break
			}
			var later interface{ After() message.Ticket }
			if !errors.Is(err, message.ErrBusy) || !errors.As(err, &later) {
				t.Fatal(err)
			}
			behind++
			if err := later.After().Wait(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if behind == 0 || behind > 100 {
		t.Errorf("behind %d times", behind)
	}
	disk.slow.Store(0)
	eventually(t, "the ledger adds up", func() bool { return r.queued() == 0 && r.unbalanced() == nil })
	if e := r.entry("all", "cloud"); e.Taken != 1000 || e.Places["delivered"] != 1000 {
		t.Errorf("ledger: %+v", e)
	}
}
