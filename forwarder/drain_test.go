package forwarder

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/config"
	"tidegate/message"
)

func TestDelivers(t *testing.T) {
	cloud := newFakeCloud(takeAll)
	r := open(t, t.TempDir(), testConfig(nil, "cloud"), map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	for i := range 100 {
		r.send("a/b", strconv.Itoa(i+1))
	}
	eventually(t, "all arrive", func() bool { return len(cloud.records()) == 100 })
	eventually(t, "the queues are empty", func() bool { return r.queued() == 0 })
	eventually(t, "the ledger shows them", func() bool { return r.entry("all", "cloud").Places["delivered"] == 100 })
	if d := checkOrder(t, cloud.records(), map[string]int{"dev a/b": 100}); d != 0 {
		t.Errorf("%d duplicates on a good line", d)
	}
	r.balance()
}

// TestAtLeastOnceInOrder sends from three devices on two lanes while the line is cut at random, before and after the cloud
// got a message, acknowledgements are lost or late, and the cloud asks for pauses.
func TestAtLeastOnceInOrder(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { atLeastOnce(t, seed) })
		})
	}
}

func atLeastOnce(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	cloud := newFakeCloud(func(*fakeCloud, int, message.Message, Identity) act {
		switch rnd.IntN(200) {
		case 0:
			return act{cut: true}
		case 1:
			return act{take: true, cut: true, byPeer: rnd.IntN(2) == 0}
		case 2:
			return act{take: true, silent: true}
		case 3:
			return act{take: true, cut: true}
		}
		return act{take: true, delay: time.Duration(rnd.IntN(50)) * time.Millisecond}
	})
	cfg := testConfig(map[string]config.Route{
		"normal": {From: []string{"n/#"}}, "urgent": {From: []string{"u/#"}, Lane: "urgent"},
	}, "cloud")
	r := open(t, t.TempDir(), cfg, map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	const each = 150
	want := map[string]int{}
	for i := range each {
		for _, dev := range []string{"d1", "d2", "d3"} {
			for _, topic := range []string{"n/x", "u/x"} {
				r.sendFrom(dev, topic, strconv.Itoa(i+1))
				want[dev+" "+topic] = each
			}
		}
		if i%20 == 0 {
			time.Sleep(100 * time.Millisecond)
			cloud.drop(i%40 == 0)
		}
		if i == each/2 {
			cloud.setOffline(true)
			time.Sleep(time.Second)
			cloud.setOffline(false)
		}
	}
	for i := 0; r.queued() > 0; i++ {
		time.Sleep(time.Second)
		cloud.drop(i%2 == 0) // what stays unanswered is what the uplink's timer for the oldest one would find
		if i > 10000 {
			t.Fatal("the queues do not become empty")
		}
	}
	synctest.Wait()
	dup := checkOrder(t, cloud.records(), want)
	t.Logf("%d connections, %d messages, %d duplicates", cloud.links, each*6, dup)
	if d := r.entry("normal", "cloud").Places["dead"] + r.entry("urgent", "cloud").Places["dead"]; d != 0 {
		t.Errorf("%d records became dead letters on a bad line", d)
	}
	r.balance()
}
