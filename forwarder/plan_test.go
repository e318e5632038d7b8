package forwarder

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/message"
)

// change makes cfg what holds, with new connections for some uplinks.
func (r *rig) change(cfg *config.Config, clouds map[string]*fakeCloud) {
	r.t.Helper()
	links := map[string]Uplink{}
	for name, c := range clouds {
		links[name] = c
	}
	n, err := r.f.Prepare(cfg, links)
	if err == nil {
		err = n.Commit()
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// stored counts the records in all lanes, those of uplinks that were removed included.
func (r *rig) stored() (n uint64) {
	for _, l := range r.f.everyLane() {
		n += l.queue.Stats().Records
	}
	return n
}

// A route that changes holds for what comes from then on. One that is gone stays in the ledger, a new one begins at 0.
func TestRoutesChange(t *testing.T) {
	cloud := newFakeCloud(takeAll)
	clouds := map[string]*fakeCloud{"cloud": cloud}
	r := open(t, t.TempDir(), testConfig(map[string]config.Route{"old": {From: []string{"a/#"}}}, "cloud"), clouds).start()
	defer r.close()
	cloud.setOffline(true)
	r.send("a/1", "1")
	r.send("b/1", "unrouted")
	r.change(testConfig(map[string]config.Route{"new": {From: []string{"b/#"}, Topic: "x/{topic}", QoS: 2, Lane: "urgent"}}, "cloud"), nil)
	if e := r.entry("new", "cloud"); e.Taken != 0 {
		t.Errorf("the new route begins with %d", e.Taken)
	}
	r.send("a/2", "unrouted")
	r.send("b/2", "2")
	cloud.setOffline(false)
	eventually(t, "both delivered", func() bool { return len(cloud.records()) == 2 })
	r.eventuallyBalanced()
	got := map[string]message.QoS{}
	for _, a := range cloud.records() {
		got[a.topic] = a.msg.QoS
	}
	if got["x/b/2"] != 2 || got["a/1"] != 1 {
		t.Errorf("got %v", got)
	}
	for _, route := range []string{"old", "new"} {
		if e := r.entry(route, "cloud"); e.Taken != 1 || e.Places["delivered"] != 1 {
			t.Errorf("%s: %v", route, e)
		}
	}
	if n := r.f.Ledger().Unrouted; n != 2 {
		t.Errorf("%d unrouted", n)
	}
	if _, err := r.f.Prepare(testConfig(map[string]config.Route{"bad": {From: []string{"b/#"}, To: []string{"nowhere"}}}, "cloud"), nil); err == nil {
		t.Error("a route to an uplink that is not there is taken")
	}
}

// Uplinks come, go and are replaced while devices publish. Nothing is lost, nothing is in two places, and the uplink that
// stays keeps its connection.
func TestUplinksChangeUnderLoad(t *testing.T) {
	stays := newFakeCloud(takeAll)
	routes := map[string]config.Route{"all": {From: []string{"#"}}}
	var moving []*fakeCloud
	fresh := func() *fakeCloud {
		moving = append(moving, newFakeCloud(func(*fakeCloud, int, message.Message, Identity) act { return act{take: true, delay: time.Millisecond} }))
		return moving[len(moving)-1]
	}
	both := testConfig(routes, "stays", "moves")
	r := open(t, t.TempDir(), both, map[string]*fakeCloud{"stays": stays, "moves": fresh()}).start()
	defer r.close()

	const devices = 4
	stop := make(chan struct{})
	sent := [devices]int{}
	var all atomic.Int64
	some := func() { // lets some messages come in
		n := all.Load()
		eventually(t, "more messages", func() bool { return all.Load() >= n+20 })
	}
	var publishing sync.WaitGroup
	for d := range devices {
		publishing.Go(func() {
			for ; ; sent[d]++ {
				select {
				case <-stop:
					return
				default:
					r.sendFrom(fmt.Sprint("dev", d), fmt.Sprint("t/", d), fmt.Sprintf("%d-%d", d, sent[d]))
					all.Add(1)
				}
			}
		})
	}
	alone := testConfig(routes, "stays")
	live := testConfig(routes, "stays", "moves")
	fast := live.Uplinks["moves"]
	fast.LiveFirst = true
	live.Uplinks["moves"] = fast
	for range 10 {
		r.change(live, map[string]*fakeCloud{"moves": fresh()}) // replaced
		some()
		r.change(alone, nil) // removed
		some()
		r.change(both, map[string]*fakeCloud{"moves": fresh()}) // back
		some()
		small := testConfig(routes, "stays", "moves")
		u := small.Uplinks["stays"]
		u.Buffer.MaxBytes, u.Buffer.MaxAge = 32<<20, config.Age(time.Hour)
		small.Uplinks["stays"] = u
		r.change(small, nil) // bounds
	}
	close(stop)
	publishing.Wait()
	eventually(t, "everything left", func() bool { return r.stored() == 0 })
	r.eventuallyBalanced()
	total := 0
	for _, n := range sent {
		total += n
	}
	if got := len(stays.records()); got != total || stays.links != 1 {
		t.Errorf("the uplink that stays got %d of %d messages over %d connections", got, total, stays.links)
	}
	if e := r.entry("all", "stays"); e.Taken != uint64(total) || e.Places["delivered"] != uint64(total) {
		t.Errorf("ledger: %v, %d were sent", e, total)
	}
	got := map[string]bool{}
	for _, c := range moving {
		for _, a := range c.records() {
			got[a.id.Seq] = true
		}
	}
	e := r.entry("all", "moves")
	if e.Taken != uint64(len(got)) || e.Places["delivered"] != e.Taken || e.Taken == 0 {
		t.Errorf("ledger of the other one: %v, %d arrived", e, len(got))
	}
	t.Logf("%d messages, %d of them for the uplink that comes and goes", total, len(got))
}

// What an uplink left when it was removed is sent when it is back, also by another process that never had it before.
func TestRemovedUplinkKeepsItsQueue(t *testing.T) {
	dir := t.TempDir()
	cloud, other := newFakeCloud(takeAll), newFakeCloud(takeAll)
	r := open(t, dir, testConfig(nil, "cloud", "other"), map[string]*fakeCloud{"cloud": cloud, "other": other}).start()
	cloud.setOffline(true)
	r.send("a", "1")
	r.change(testConfig(nil, "other"), nil)
	r.send("a", "2")
	if r.f.output("cloud") != nil || len(r.f.Status()) != 1 {
		t.Error("the removed uplink is still there")
	}
	r.change(testConfig(nil, "cloud", "other"), map[string]*fakeCloud{"cloud": newFakeCloud(takeAll)})
	eventually(t, "the first one arrived", func() bool { return r.stored() == 0 })
	r.send("a", "3")
	eventually(t, "the third one arrived", func() bool { return r.stored() == 0 })
	r.change(testConfig(nil, "other"), nil)
	r.close()

	again := newFakeCloud(takeAll)
	r = open(t, dir, testConfig(nil, "cloud", "other"), map[string]*fakeCloud{"cloud": cloud, "other": other}).start()
	r.send("a", "4") // for the one that is offline
	r.close()
	r = open(t, dir, testConfig(nil, "other"), map[string]*fakeCloud{"other": other}).start()
	defer r.close()
	if e := r.entry("", "cloud"); e.Places["buffered"] == 0 && r.entry("all", "cloud").Places["buffered"] == 0 {
		t.Error("the records that nobody sends are not in the ledger")
	}
	r.change(testConfig(nil, "cloud", "other"), map[string]*fakeCloud{"cloud": again})
	eventually(t, "the last one arrived", func() bool { return len(again.records()) == 1 && r.stored() == 0 })
	r.eventuallyBalanced()
	if e := r.entry("all", "cloud"); e.Recovered != 1 || e.Places["delivered"] != 1 {
		t.Errorf("ledger: %v", e)
	}
}

// The bounds of a buffer change while it is full, without a new connection.
func TestBoundsChange(t *testing.T) {
	cloud := newFakeCloud(takeAll)
	cfg := testConfig(nil, "cloud")
	r := open(t, t.TempDir(), cfg, map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	cloud.setOffline(true)
	const n, size = 300, 20_000
	for range n {
		r.send("a", string(make([]byte, size)))
	}
	buffered := func() int { return int(r.entry("all", "cloud").Places["buffered"]) }
	if left := buffered(); left < n-1 { // one may have been on its way
		t.Fatalf("%d of %d are buffered", left, n)
	}
	bounds := func(c config.Buffer) {
		next := testConfig(nil, "cloud")
		next.Uplinks["cloud"] = config.Uplink{Buffer: c}
		r.change(next, nil)
	}
	bounds(config.Buffer{MaxBytes: 2 << 20})
	eventually(t, "the oldest have gone", func() bool { return buffered()*size <= 2<<20 })
	r.eventuallyBalanced()
	bounds(config.Buffer{MaxBytes: 2 << 20, WhenFull: "refuse"})
	refused := false
	for range n {
		_, err := r.f.Ingest(message.Message{Topic: "a", Payload: make([]byte, size), Source: message.Source{Protocol: message.MQTT, Client: "dev"}})
		refused = refused || err != nil
	}
	if !refused {
		t.Error("a full buffer that is to refuse now takes everything")
	}
	left := buffered()
	bounds(config.Buffer{MaxBytes: 64 << 20, MaxAge: config.Age(time.Nanosecond)})
	eventually(t, "everything has expired", func() bool { return buffered() == 0 })
	r.eventuallyBalanced()
	if e := r.entry("all", "cloud"); e.Places["evicted"] == 0 || e.Places["expired"] == 0 || e.Places["refused"] == 0 {
		t.Errorf("ledger: %v, %d were left", e, left)
	}
	if cloud.links > 1 {
		t.Errorf("%d connections", cloud.links)
	}
}
