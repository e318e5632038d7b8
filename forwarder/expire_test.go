package forwarder

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/message"
)

// TestLifetimeOfACopy: the shorter one of what the sender and the route say.
func TestLifetimeOfACopy(t *testing.T) {
	now := time.Now()
	for _, c := range []struct{ own, route, want time.Duration }{
		{0, 0, 0},
		{0, time.Hour, time.Hour},
		{time.Minute, 0, time.Minute},
		{time.Minute, time.Hour, time.Minute},
		{time.Hour, time.Minute, time.Minute},
		{-time.Minute, 0, time.Millisecond},
	} {
		m := message.Message{Received: now}
		if c.own != 0 {
			m.Expires = now.Add(c.own)
		}
		if got := lifetime(&m, c.route); got != c.want {
			t.Errorf("expiry %v, route %v: %v, want %v", c.own, c.route, got, c.want)
		}
	}
}

// TestExpiryCountsDown: what is left of an expiry is sent on, counted by the machine's clock from the arrival on.
func TestExpiryCountsDown(t *testing.T) {
	inBubble(t, testConfig(nil, "cloud"), takeAll, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		// It came in while the wall clock was far from right; only the difference counts.
		wrong := time.Date(1970, 1, 1, 0, 5, 0, 0, time.UTC)
		for _, m := range []message.Message{
			{Topic: "a", Received: wrong, Expires: wrong.Add(time.Hour)},
			{Topic: "b", Received: time.Now(), Expires: time.Now().Add(time.Hour)},
			{Topic: "c"},
		} {
			if _, err := r.f.Ingest(m); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Minute)
		c.setOffline(false)
		time.Sleep(time.Second)
		left := map[string]time.Duration{}
		for _, a := range c.arrivals() {
			if !a.msg.Expires.IsZero() {
				left[a.topic] = time.Until(a.msg.Expires).Round(10 * time.Second)
			}
		}
		if len(left) != 2 || left["a"] != 40*time.Minute || left["b"] != 40*time.Minute {
			t.Errorf("left of an hour after 20 minutes: %v", left)
		}
	})
}

// TestRouteExpire: a route's copies are not sent after its time, those of another are.
func TestRouteExpire(t *testing.T) {
	routes := map[string]config.Route{
		"brief": {From: []string{"a"}, Topic: "brief/a", Expire: config.Age(time.Minute)},
		"long":  {From: []string{"a"}, Topic: "long/a"},
	}
	inBubble(t, testConfig(routes, "cloud"), takeAll, func(r *rig, c *fakeCloud) {
		r.send("a", "1")
		time.Sleep(time.Second)
		c.setOffline(true)
		r.send("a", "2")
		r.send("a", "3")
		time.Sleep(2 * time.Minute)
		c.setOffline(false)
		time.Sleep(3 * time.Second)
		checkOrder(t, c.records(), map[string]int{"dev brief/a": 1, "dev long/a": 3})
		if e := r.entry("brief", "cloud"); e.Places["expired"] != 2 || e.Places["delivered"] != 1 {
			t.Errorf("ledger: %v", e.Places)
		}
	})
}

// TestMaxAge: what an uplink held too long leaves its buffer though the cloud is away, and is counted and announced.
func TestMaxAge(t *testing.T) {
	cfg := testConfig(nil, "cloud")
	cfg.Uplinks["cloud"] = config.Uplink{Buffer: config.Buffer{MaxBytes: 64 << 20, MaxAge: config.Age(time.Hour)}}
	inBubble(t, cfg, takeAll, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		for i := range 6 {
			r.send("a", fmt.Sprint(i+1))
			time.Sleep(20 * time.Minute)
		}
		// The ages are 120, 100, 80, 60, 40 and 20 minutes.
		time.Sleep(5 * time.Second)
		if n := r.queued(); n != 2 {
			t.Errorf("%d records in the buffer, want 2", n)
		}
		if e := r.entry("all", "cloud"); e.Places["expired"] != 4 || e.Places["buffered"] != 2 {
			t.Errorf("ledger: %v", e.Places)
		}
		c.setOffline(false)
		time.Sleep(3 * time.Second)
		if e := r.entry("all", "cloud"); e.Places["expired"] != 4 || e.Places["delivered"] != 2 {
			t.Errorf("ledger: %v", e.Places)
		}
		requireGaps(t, c, gap(1, 4, "expired"))
	})
}

// TestExpiredWhileAway: what expired while no gateway ran is counted and announced by the next one.
func TestExpiredWhileAway(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		o := buffer.Options{Clock: func() (uint64, time.Duration) { return 1, time.Since(start) }}
		cfg := testConfig(map[string]config.Route{"all": {From: []string{"#"}, Expire: config.Age(time.Minute)}}, "cloud")
		c := newFakeCloud(takeAll)
		c.setOffline(true)
		r := openWith(t, dir, cfg, map[string]*fakeCloud{"cloud": c}, o).start()
		for i := range 5 {
			r.send("a", fmt.Sprint(i+1))
		}
		r.close()
		time.Sleep(time.Hour)
		r = openWith(t, dir, cfg, map[string]*fakeCloud{"cloud": c}, o).start()
		defer r.close()
		c.setOffline(false)
		time.Sleep(5 * time.Second)
		if e := r.entry("all", "cloud"); e.Recovered != 5 || e.Places["expired"] != 5 {
			t.Errorf("ledger: %+v", e)
		}
		requireGaps(t, c, gap(1, 5, "expired"))
		r.balance()
	})
}
