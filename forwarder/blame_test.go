package forwarder

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/message"
)

// localError is a refusal by the link itself.
type localError struct{ refusedError }

func (localError) Local() bool { return true }

// sickUntil is a cloud that does no to everything until a time, and then takes all.
func sickUntil(healed *time.Time, no act) func(*fakeCloud, int, message.Message, Identity) act {
	return func(*fakeCloud, int, message.Message, Identity) act {
		if time.Now().Before(*healed) {
			return no
		}
		return ack
	}
}

// TestSickCloudMakesFewDeadLetters: a cloud that refuses everything, by code or by closing, is at fault and not the records. When it
// takes them again, all but the first few arrive, in order but for the one that shows that it does.
func TestSickCloudMakesFewDeadLetters(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  *config.Config
		no   act
		dead int
	}{
		"by code":              {testConfig(nil, "cloud"), act{err: refusedError(0x99)}, blameByCode},
		"by closing":           {testConfig(nil, "cloud"), act{cut: true, byPeer: true}, blameByClose},
		"batches, by code":     {batchConfig(nil, nil), act{err: refusedError(0x95)}, blameByCode},
		"batches, by closing ": {batchConfig(nil, nil), act{cut: true, byPeer: true}, blameByClose},
	} {
		t.Run(name, func(t *testing.T) {
			var healed time.Time
			inBubble(t, c.cfg, sickUntil(&healed, c.no), func(r *rig, cloud *fakeCloud) {
				healed = time.Now().Add(time.Hour)
				const n = 1200
				for i := range n {
					r.send("a", strconv.Itoa(i+1-c.dead))
				}
				time.Sleep(time.Until(healed) - time.Minute)
				if e := r.entry("all", "cloud"); int(e.Places["dead"]) != c.dead || int(e.Places["buffered"]) != n-c.dead {
					t.Errorf("after an hour: %v", e.Places)
				}
				if s := r.f.Status()[0].LastError; !strings.Contains(s, "are kept") {
					t.Errorf("status: %q", s)
				}
				waitEmpty(r, time.Hour)
				if c.cfg.Uplinks["cloud"].Batch == nil {
					early := 0
					for i, a := range cloud.records() {
						if m, err := strconv.Atoi(a.payload); err != nil || m < i || m > i+1 {
							early++
						}
					}
					if early > 1 || len(cloud.records()) != n-c.dead {
						t.Errorf("%d records arrived, %d of them early", len(cloud.records()), early)
					}
				}
				if s := r.f.Status()[0].LastError; s != "" {
					t.Errorf("the alarm stays: %q", s)
				}
			})
		})
	}
}

// TestRunOfBadRecords: many bad records in a row do not keep the good one behind them, and become dead letters when it was taken.
func TestRunOfBadRecords(t *testing.T) {
	for name, c := range map[string]struct {
		no   act
		n    int
		took time.Duration
	}{
		"by code":    {act{err: refusedError(0x90)}, 1200, time.Hour},
		"by closing": {act{cut: true, byPeer: true}, 5, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
				if m.Topic == "bad" {
					return c.no
				}
				return ack
			}
			inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, cloud *fakeCloud) {
				for range c.n {
					r.send("bad", "x")
				}
				for i := range 5 {
					r.send("a", strconv.Itoa(i+1))
				}
				took := waitEmpty(r, c.took)
				checkOrder(t, cloud.records(), map[string]int{"dev a": 5})
				if e := r.entry("all", "cloud"); int(e.Places["dead"]) != c.n || e.Places["delivered"] != 5 {
					t.Errorf("ledger: %v", e.Places)
				}
				t.Logf("%d bad records were passed in %v", c.n, took)
			})
		})
	}
}

// TestBadRecordsAlone: beyond the few that are believed they wait for another one to be taken, with an alarm, and hold up nothing.
func TestBadRecordsAlone(t *testing.T) {
	decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		if m.Topic == "bad" {
			return act{err: refusedError(0x99)}
		}
		return ack
	}
	inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, cloud *fakeCloud) {
		for range blameByCode + 3 {
			r.send("bad", "x")
		}
		time.Sleep(time.Hour)
		if e := r.entry("all", "cloud"); e.Places["dead"] != blameByCode || e.Places["buffered"] != 3 {
			t.Errorf("ledger: %v", e.Places)
		}
		if s := r.f.Status()[0].LastError; !strings.Contains(s, "the last records were refused, and none was taken; they are kept") {
			t.Errorf("status: %q", s)
		}
		r.send("a", "1")
		if took := waitEmpty(r, time.Minute); took > time.Second {
			t.Errorf("a good record waits %v for bad ones", took)
		}
		checkOrder(t, cloud.records(), map[string]int{"dev a": 1})
	})
}

// TestSickServerIsLeft: the uplink gets the chance to use another server, which takes what the first one refused.
func TestSickServerIsLeft(t *testing.T) {
	for name, cfg := range map[string]*config.Config{"single": testConfig(nil, "cloud"), "batches": batchConfig(nil, nil)} {
		t.Run(name, func(t *testing.T) {
			decide := func(_ *fakeCloud, link int, _ message.Message, _ Identity) act {
				if link == 1 {
					return act{err: refusedError(0x99)}
				}
				return ack
			}
			inBubble(t, cfg, decide, func(r *rig, cloud *fakeCloud) {
				for i := range 1200 {
					r.send("a", strconv.Itoa(i+1))
				}
				waitEmpty(r, 10*time.Minute)
				if e := r.entry("all", "cloud"); e.Places["dead"] != blameByCode || e.Places["delivered"] != 1200-blameByCode {
					t.Errorf("ledger: %v", e.Places)
				}
				if cloud.links != 2 {
					t.Errorf("%d connections", cloud.links)
				}
			})
		})
	}
}

// severalServers is cfg with two servers.
func severalServers(cfg *config.Config) *config.Config {
	u := cfg.Uplinks["cloud"]
	u.Servers = []string{"mqtt://a", "mqtt://b"}
	cfg.Uplinks["cloud"] = u
	return cfg
}

// TestOneSickServerOfSeveral condemns nothing, however few the records are: the other one takes them.
func TestOneSickServerOfSeveral(t *testing.T) {
	live := testConfig(nil, "cloud")
	u := live.Uplinks["cloud"]
	u.LiveFirst = true
	live.Uplinks["cloud"] = u
	for name, cfg := range map[string]*config.Config{"single": testConfig(nil, "cloud"), "live first": live, "batches": batchConfig(nil, nil)} {
		for way, no := range map[string]act{"by code": {err: refusedError(0x99)}, "by closing": {cut: true, byPeer: true}} {
			for _, n := range []int{1, 10, 300} {
				t.Run(name+" "+way+" "+strconv.Itoa(n), func(t *testing.T) {
					decide := func(_ *fakeCloud, link int, _ message.Message, _ Identity) act {
						if link%2 == 1 {
							return no
						}
						return ack
					}
					inBubble(t, severalServers(cfg), decide, func(r *rig, cloud *fakeCloud) {
						cloud.setServers(2)
						cloud.setOffline(true)
						for i := range n {
							r.send("a", strconv.Itoa(i+1))
						}
						cloud.setOffline(false)
						waitEmpty(r, 5*time.Minute)
						if e := r.entry("all", "cloud"); e.Places["dead"] != 0 || int(e.Places["delivered"]) != n {
							t.Errorf("ledger: %v", e.Places)
						}
					})
				})
			}
		}
	}
}

// TestAllServersSick: what one broken back end has all of them refuse is no more the records' fault.
func TestAllServersSick(t *testing.T) {
	for way, no := range map[string]act{"by code": {err: refusedError(0x99)}, "by closing": {cut: true, byPeer: true}} {
		t.Run(way, func(t *testing.T) {
			var healed time.Time
			inBubble(t, severalServers(testConfig(nil, "cloud")), sickUntil(&healed, no), func(r *rig, cloud *fakeCloud) {
				healed = time.Now().Add(time.Hour)
				cloud.setServers(2)
				for i := range 1200 {
					r.send("a", strconv.Itoa(i+1))
				}
				waitEmpty(r, 2*time.Hour)
				if e := r.entry("all", "cloud"); e.Places["dead"] > 1 {
					t.Errorf("ledger: %v", e.Places)
				}
			})
		})
	}
}

// TestBadRecordAtSeveralServers: it becomes a dead letter when a second server refuses it, or at once where the first has just
// taken others.
func TestBadRecordAtSeveralServers(t *testing.T) {
	for way, no := range map[string]act{"by code": {err: refusedError(0x99)}, "by closing": {cut: true, byPeer: true}} {
		for _, before := range []int{0, 5} {
			t.Run(way+" after "+strconv.Itoa(before), func(t *testing.T) {
				decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
					if m.Topic == "bad" {
						return no
					}
					return ack
				}
				inBubble(t, severalServers(testConfig(nil, "cloud")), decide, func(r *rig, cloud *fakeCloud) {
					cloud.setServers(2)
					for i := range before {
						r.send("a", strconv.Itoa(i+1))
					}
					time.Sleep(time.Second)
					r.send("bad", "x")
					took := waitEmpty(r, 30*time.Minute)
					if e := r.entry("all", "cloud"); e.Places["dead"] != 1 || int(e.Places["delivered"]) != before {
						t.Errorf("ledger: %v", e.Places)
					}
					if no.err != nil && before > 0 && (took > time.Second || cloud.links > 1) {
						t.Errorf("it took %v and %d connections", took, cloud.links)
					}
				})
			})
		}
	}
}

// TestLinkKnowsBetter: what the link refuses without sending it is the record's fault, however many there are.
func TestLinkKnowsBetter(t *testing.T) {
	decide := func(*fakeCloud, int, message.Message, Identity) act { return act{err: localError{0x95}} }
	inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, _ *fakeCloud) {
		for range 3 * blameByCode {
			r.send("a", "x")
		}
		waitEmpty(r, time.Minute)
		if e := r.entry("all", "cloud"); e.Places["dead"] != 3*blameByCode {
			t.Errorf("ledger: %v", e.Places)
		}
	})
	if local(refusedError(0x95)) || local(errors.New("x")) {
		t.Error("the cloud's word is taken for the link's")
	}
}
