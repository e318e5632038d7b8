package forwarder

import (
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/message"
)

func urgentRoutes() map[string]config.Route {
	return map[string]config.Route{"all": {From: []string{"a", "bad/#"}}, "alarm": {From: []string{"alarm"}, Lane: "urgent"}}
}

// everything is what a cloud got, in batches and alone.
func everything(t *testing.T, got []arrivalAt) (records []arrivalAt) {
	t.Helper()
	for _, a := range got {
		if a.topic == batchTopic {
			in, _ := unpack(t, []arrivalAt{a})
			records = append(records, in...)
			continue
		}
		records = append(records, a)
	}
	return records
}

// watchAlarms notes when urgent records arrive, each with a number as its payload.
type watchAlarms struct {
	mu    sync.Mutex
	at    map[string]time.Time
	all   int // messages
	bytes int // of payloads
}

func (w *watchAlarms) counts() (messages, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all, w.bytes
}

func (w *watchAlarms) takes(t *testing.T, m message.Message) {
	records := everything(t, []arrivalAt{{topic: m.Topic, payload: string(m.Payload), msg: m}})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bytes += len(m.Payload)
	for _, a := range records {
		w.all++
		if a.topic == "alarm" {
			w.at[a.payload] = time.Now()
		}
	}
}

// sendOne sends an urgent record and returns how long it took to arrive, a minute at most.
func (w *watchAlarms) sendOne(r *rig, n int) time.Duration {
	begun := time.Now()
	r.send("alarm", strconv.Itoa(n))
	for range 600 {
		time.Sleep(100 * time.Millisecond)
		w.mu.Lock()
		at, came := w.at[strconv.Itoa(n)]
		w.mu.Unlock()
		if came {
			return at.Sub(begun)
		}
	}
	return time.Since(begun)
}

// TestUrgentWithinTheRate: a batch, or a large record, of the normal lane waits until max_rate has allowed all of it, and meanwhile an
// urgent record takes of that what it needs: it never waits for what others have used up in advance. The rate is kept all the same.
func TestUrgentWithinTheRate(t *testing.T) {
	for _, c := range []struct {
		name            string
		batch           bool
		messages, bytes string
		payload, n      int
		most            time.Duration // until an urgent record arrives
	}{
		{"batches by messages", true, "1/s", "", 1, 210, 2 * time.Second},
		{"single by messages", false, "1/s", "", 1, 210, 2 * time.Second},
		{"batches by bytes", true, "", "1KiB/s", 1000, 200, 3 * time.Second}, // a batch is packed as well as the last one about
		{"large records", false, "", "1KiB/s", 60_000, 8, 2 * time.Second},
		{"large records in batches", true, "", "1KiB/s", 60_000, 8, 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := batchConfig(urgentRoutes(), func(b *config.Batch) { b.Compress = "none" })
			u := cfg.Uplinks["cloud"]
			if !c.batch {
				u.Batch = nil
			}
			var err error
			if c.messages != "" {
				u.MaxRate.Messages, err = config.ParseMessageRate(c.messages)
			} else {
				u.MaxRate.Bytes, err = config.ParseByteRate(c.bytes)
			}
			if err != nil {
				t.Fatal(err)
			}
			cfg.Uplinks["cloud"] = u
			w := &watchAlarms{at: map[string]time.Time{}}
			decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
				w.takes(t, m)
				return ack
			}
			inBubble(t, cfg, decide, func(r *rig, cl *fakeCloud) {
				cl.setOffline(true)
				for i := range c.n {
					r.send("a", strconv.Itoa(i+1)+" "+strings.Repeat("x", c.payload))
				}
				cl.setOffline(false)
				begun := time.Now()
				for i := range 5 {
					time.Sleep(17 * time.Second)
					if d := w.sendOne(r, i+1); d > c.most {
						t.Errorf("urgent record %d arrived after %v", i+1, d)
					}
					took := time.Since(begun).Seconds()
					messages, used := w.counts()
					if c.bytes == "" && float64(messages) > took+2 {
						t.Errorf("%d messages in %.0f s", messages, took)
					}
					if c.bytes != "" && float64(used) > 1024*(took+2) {
						t.Errorf("%d bytes in %.0f s", used, took)
					}
				}
				for range 60 {
					time.Sleep(time.Minute)
				}
				if all, _ := w.counts(); all != c.n+5 {
					t.Errorf("%d of %d records arrived", all, c.n+5)
				}
			})
		})
	}
}

// TestUrgentBesideWhatIsInFlight: on a slow line batches of the normal lane that fill what may be in flight hold up no urgent record.
func TestUrgentBesideWhatIsInFlight(t *testing.T) {
	w := &watchAlarms{at: map[string]time.Time{}}
	decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		w.takes(t, m)
		return act{take: true, delay: 10 * time.Second}
	}
	inBubble(t, batchConfig(urgentRoutes(), func(b *config.Batch) { b.Compress = "none" }), decide, func(r *rig, c *fakeCloud) {
		for i := range 1000 {
			r.send("a", strconv.Itoa(i+1)+" "+strings.Repeat("x", 3000))
		}
		for i := range 10 {
			time.Sleep(time.Second)
			if d := w.sendOne(r, i+1); d > 100*time.Millisecond {
				t.Errorf("urgent record %d left after %v", i+1, d)
			}
		}
		waitEmpty(r, time.Hour)
	})
}

// TestUrgentBesideARefusedBatch: while a batch is divided after a refusal, urgent records leave all the same, and in their order.
func TestUrgentBesideARefusedBatch(t *testing.T) {
	w := &watchAlarms{at: map[string]time.Time{}}
	decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		if bad, _ := hasMember(t, m, "bad"); bad {
			return act{err: refusedError(0x99), delay: 10 * time.Second}
		}
		w.takes(t, m)
		return act{take: true, delay: 10 * time.Second}
	}
	inBubble(t, batchConfig(urgentRoutes(), nil), decide, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		for i := range 200 {
			r.send("a", strconv.Itoa(i+1))
			if i == 50 {
				r.send("bad/x", "1")
			}
		}
		c.setOffline(false)
		for i := range 10 {
			time.Sleep(6 * time.Second)
			if d := w.sendOne(r, i+1); d > time.Second {
				t.Errorf("urgent record %d arrived after %v", i+1, d)
			}
		}
		waitEmpty(r, time.Hour)
		var alarms []arrivalAt
		for _, a := range everything(t, c.arrivals()) {
			if a.topic == "alarm" {
				alarms = append(alarms, a)
			}
		}
		checkOrder(t, alarms, map[string]int{"dev alarm": 10})
		if e := r.entry("all", "cloud"); e.Places["dead"] != 1 || e.Places["delivered"] != 200 {
			t.Errorf("ledger: %v", e.Places)
		}
	})
}
