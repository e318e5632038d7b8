package forwarder

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/config"
	"tidegate/message"
	"tidegate/message/envelope"
)

const batchTopic = "tidegate/gw/uplink/cloud/batch"

// batchConfig is testConfig with one uplink, cloud, that has batches.
func batchConfig(routes map[string]config.Route, change func(*config.Batch)) *config.Config {
	b := &config.Batch{MaxMessages: 100, MaxDelay: config.Duration(time.Second), MaxBytes: 128 << 10, Compress: "zstd", Topic: batchTopic}
	if change != nil {
		change(b)
	}
	c := testConfig(routes, "cloud")
	u := c.Uplinks["cloud"]
	u.Batch = b
	c.Uplinks["cloud"] = u
	return c
}

// unpack takes the batches apart that a cloud got.
func unpack(t testing.TB, got []arrivalAt) (records []arrivalAt, sizes []int) {
	t.Helper()
	for _, a := range got {
		if a.topic != batchTopic {
			continue
		}
		b := unpackOne(t, whole(a))
		sizes = append(sizes, b.N)
		for _, r := range b.Records {
			records = append(records, arrivalAt{
				topic: r.Topic, payload: string(r.Payload), id: Identity{ID: r.ID, Seq: r.Seq, Source: r.Source}, link: a.link,
			})
		}
	}
	return records, sizes
}

// whole is the message as it arrived: what its payload pointed to may be used again since.
func whole(a arrivalAt) message.Message {
	m := a.msg
	m.Payload = []byte(a.payload)
	return m
}

func unpackOne(t testing.TB, m message.Message) *envelope.Batch {
	t.Helper()
	b, err := envelope.Open(m.Payload)
	if err != nil {
		t.Fatal(err)
	}
	if m.Topic != batchTopic || m.Retain || m.QoS < 1 || m.ContentType != b.Compression.ContentType() || b.Gateway != "gw" || b.Uplink != "cloud" {
		t.Errorf("a batch as %s, QoS %d, retain %t, %s: %+v", m.Topic, m.QoS, m.Retain, m.ContentType, b.Header)
	}
	return b
}

// isBatch reports whether m is a batch with a record whose topic begins with prefix.
func hasMember(t testing.TB, m message.Message, prefix string) (has bool, n int) {
	if m.Topic != batchTopic {
		return false, 0
	}
	b := unpackOne(t, m)
	for _, r := range b.Records {
		has = has || strings.HasPrefix(r.Topic, prefix)
	}
	return has, b.N
}

// TestBatchesAreGathered: full ones leave at once, the rest when its oldest member has waited; each record keeps its own
// identity and its own place in the ledger.
func TestBatchesAreGathered(t *testing.T) {
	for _, how := range []string{"zstd", "gzip", "none"} {
		t.Run(how, func(t *testing.T) {
			inBubble(t, batchConfig(nil, func(b *config.Batch) { b.Compress = how }), takeAll, func(r *rig, c *fakeCloud) {
				c.setOffline(true)
				for i := range 250 {
					r.send("a", strconv.Itoa(i+1))
				}
				begin := time.Now()
				c.setOffline(false)
				synctest.Wait()
				_, first := unpack(t, c.arrivals())
				if fmt.Sprint(first) != "[100 100]" || time.Since(begin) != 0 {
					t.Errorf("at once came batches of %v", first)
				}
				time.Sleep(999 * time.Millisecond)
				synctest.Wait()
				if _, first = unpack(t, c.arrivals()); len(first) != 2 {
					t.Errorf("before the delay came batches of %v", first)
				}
				time.Sleep(2 * time.Millisecond)
				synctest.Wait()
				got, sizes := unpack(t, c.arrivals())
				if fmt.Sprint(sizes) != "[100 100 50]" {
					t.Errorf("batches of %v", sizes)
				}
				if d := checkOrder(t, got, map[string]int{"dev a": 250}); d != 0 {
					t.Errorf("%d duplicates", d)
				}
				for i, a := range got {
					if !strings.HasSuffix(a.id.Seq, fmt.Sprintf("-normal-%d", i+1)) {
						t.Errorf("record %d has sequence %s", i, a.id.Seq)
					}
				}
				waitEmpty(r, time.Second)
				if e := r.entry("all", "cloud"); e.Places["delivered"] != 250 {
					t.Errorf("ledger: %v", e.Places)
				}
			})
		})
	}
}

// TestBatchKeepsWhatTravels: the line has what a PUBLISH of its own would have.
func TestBatchKeepsWhatTravels(t *testing.T) {
	inBubble(t, batchConfig(map[string]config.Route{"all": {From: []string{"#"}, QoS: 2}}, nil), takeAll, func(r *rig, c *fakeCloud) {
		now := time.Now()
		in := message.Message{
			Topic: "a", Payload: []byte{0xff}, QoS: 1, Retain: true, ContentType: "x/y", ResponseTopic: "r", CorrelationData: []byte("c"),
			PayloadUTF8: false, Properties: []message.Property{{Key: "k", Value: "v"}}, Received: now, SourceTime: now.Add(-time.Hour),
			Expires: now.Add(time.Minute), Source: message.Source{Protocol: message.MQTT, User: "u"},
		}
		tk, err := r.f.Ingest(in)
		if err == nil {
			err = tk.Wait(context.Background())
		}
		if err != nil {
			t.Fatal(err)
		}
		waitEmpty(r, 5*time.Second)
		all := c.arrivals()
		if len(all) != 1 || all[0].msg.QoS != 2 {
			t.Fatalf("%d arrivals: %+v", len(all), all)
		}
		got := unpackOne(t, whole(all[0])).Records[0]
		if string(got.Payload) != "\xff" || got.QoS != 2 || !got.Retain || got.ContentType != "x/y" || got.ResponseTopic != "r" ||
			string(got.CorrelationData) != "c" || len(got.Properties) != 1 || got.Source != "u" || !got.SourceTime.Equal(in.SourceTime) ||
			!got.Received.Equal(now) {
			t.Errorf("got %+v", got)
		}
		if got.Expiry != 59 { // it waited a second
			t.Errorf("expiry %d s, want 59", got.Expiry)
		}
	})
}

// TestBatchBytes: no batch is larger than max_bytes, except for a single record that is.
func TestBatchBytes(t *testing.T) {
	const most = 4 << 10
	set := func(b *config.Batch) { b.MaxBytes, b.Compress = most, "none" }
	inBubble(t, batchConfig(nil, set), takeAll, func(r *rig, c *fakeCloud) {
		for i := range 300 {
			r.send("a", strconv.Itoa(i+1)+" "+strings.Repeat("x", rand.IntN(700)))
			if i == 100 {
				r.send("big", strings.Repeat("x", 10000))
			}
		}
		waitEmpty(r, time.Minute)
		alone := 0
		for _, a := range c.arrivals() {
			n := unpackOne(t, whole(a)).N
			if len(a.payload) > most {
				alone++
				if n != 1 {
					t.Errorf("%d bytes with %d records", len(a.payload), n)
				}
			}
		}
		got, sizes := unpack(t, c.arrivals())
		if alone != 1 || len(sizes) > 60 {
			t.Errorf("%d batches over the bound, %d in all", alone, len(sizes))
		}
		var rest []arrivalAt
		for _, a := range got {
			if a.topic == "a" {
				rest = append(rest, a)
			}
		}
		checkOrder(t, rest, map[string]int{"dev a": 300})
	})
}

// TestUrgentIsNotHeldBack: an urgent record leaves at once, in a batch of its own lane, while others are gathered.
func TestUrgentIsNotHeldBack(t *testing.T) {
	routes := map[string]config.Route{"all": {From: []string{"a"}}, "alarm": {From: []string{"alarm"}, Lane: "urgent"}}
	set := func(b *config.Batch) { b.MaxDelay = config.Duration(time.Hour) }
	inBubble(t, batchConfig(routes, set), takeAll, func(r *rig, c *fakeCloud) {
		for i := range 30 {
			r.send("a", strconv.Itoa(i+1))
			if i%10 == 5 {
				begin := time.Now()
				r.send("alarm", strconv.Itoa(i/10+1))
				synctest.Wait()
				if got, _ := unpack(t, c.arrivals()); len(got) != i/10+1 || time.Since(begin) > 10*time.Millisecond {
					t.Errorf("%v after alarm %d: %d records", time.Since(begin), i/10+1, len(got))
				}
			}
		}
		time.Sleep(time.Hour)
		waitEmpty(r, time.Minute)
		for _, a := range c.arrivals() {
			b := unpackOne(t, whole(a))
			for _, m := range b.Records {
				if m.Topic != b.Records[0].Topic {
					t.Errorf("a batch mixes %s and %s", m.Seq, b.Records[0].Seq)
				}
			}
		}
		got, sizes := unpack(t, c.arrivals())
		checkOrder(t, got, map[string]int{"dev a": 30, "dev alarm": 3})
		if fmt.Sprint(sizes) != "[1 1 1 30]" {
			t.Errorf("batches of %v", sizes)
		}
	})
}

// TestBatchesOverLostLinks: what was not acknowledged is sent again with the same identities, however it is cut.
func TestBatchesOverLostLinks(t *testing.T) {
	var n atomic.Int64
	decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		switch k := n.Add(1); {
		case k%7 == 3:
			return act{cut: true, take: true, byPeer: true} // it came, its acknowledgement did not
		case k%7 == 5:
			return act{cut: true}
		case k%4 == 0:
			return act{take: true, delay: 30 * time.Millisecond}
		}
		return ack
	}
	inBubble(t, batchConfig(nil, func(b *config.Batch) { b.MaxMessages = 7 }), decide, func(r *rig, c *fakeCloud) {
		for i := range 500 {
			r.send("a", strconv.Itoa(i+1))
		}
		took := waitEmpty(r, 10*time.Minute)
		got, _ := unpack(t, c.arrivals())
		d := checkOrder(t, got, map[string]int{"dev a": 500})
		if e := r.entry("all", "cloud"); d == 0 || e.Places["delivered"] != 500 {
			t.Errorf("%d duplicates; ledger: %v", d, e.Places)
		}
		t.Logf("%d connections, %d duplicates, %v", c.links, d, took)
	})
}

// TestBatchRefusedForNow: refusals about the moment, the account or the topic of the uplink lose nothing and make no dead letters.
func TestBatchRefusedForNow(t *testing.T) {
	for _, code := range []byte{0x97, 0x87, 0x90, 0x80} {
		var opens time.Time
		tries := 0
		decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
			if time.Now().Before(opens) {
				tries++
				return act{err: refusedError(code)}
			}
			return ack
		}
		inBubble(t, batchConfig(nil, nil), decide, func(r *rig, c *fakeCloud) {
			opens = time.Now().Add(10 * time.Minute)
			for i := range 300 {
				r.send("a", strconv.Itoa(i+1))
			}
			time.Sleep(5 * time.Minute)
			if s := r.f.Status()[0]; !strings.Contains(s.LastError, "pauses") || s.InFlight != 0 || s.Records != 300 {
				t.Errorf("%#x: %+v", code, s)
			}
			waitEmpty(r, 30*time.Minute)
			got, _ := unpack(t, c.arrivals())
			checkOrder(t, got, map[string]int{"dev a": 300})
			if e := r.entry("all", "cloud"); e.Places["delivered"] != 300 || c.links != 1 || tries > 100 {
				t.Errorf("%#x: %v, %d connections, %d tries", code, e.Places, c.links, tries)
			}
		})
	}
}

// TestBatchWithBadRecords: a refused batch is cut down to the records that are to blame, which become dead letters; all others arrive.
func TestBatchWithBadRecords(t *testing.T) {
	for _, code := range []byte{0x95, 0x99} {
		tries := 0
		decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
			tries++
			if bad, _ := hasMember(t, m, "bad"); bad {
				return act{err: refusedError(code), delay: 20 * time.Millisecond}
			}
			return act{take: true, delay: 20 * time.Millisecond}
		}
		inBubble(t, batchConfig(nil, nil), decide, func(r *rig, c *fakeCloud) {
			for i := range 300 {
				r.send("a", strconv.Itoa(i+1))
				if i%100 == 42 {
					r.send("bad/"+strconv.Itoa(i), "the payload")
				}
				if i == 50 {
					// What is in flight behind the first refused batch arrives before its good records; from then on one is in flight.
					waitEmpty(r, 5*time.Minute)
				}
			}
			waitEmpty(r, 5*time.Minute)
			got, _ := unpack(t, c.arrivals())
			checkOrder(t, got, map[string]int{"dev a": 300})
			if e := r.entry("all", "cloud"); e.Places["dead"] != 3 || e.Places["delivered"] != 300 {
				t.Errorf("%#x: %v", code, e.Places)
			}
			letters, err := r.f.DeadLetters("cloud")
			if err != nil || len(letters) != 3 || letters[0].Message.Topic != "bad/42" || !strings.Contains(letters[0].Reason, "refused") {
				t.Errorf("dead letters: %+v, %v", letters, err)
			}
			t.Logf("%#x: %d tries, %d connections", code, tries, c.links)
		})
	}
}

// TestBatchTooLargeForTheBroker: a broker that takes less than max_bytes makes batches smaller.
func TestBatchTooLargeForTheBroker(t *testing.T) {
	const most = 3000
	refused := 0
	decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		if len(m.Payload) > most {
			refused++
			return act{err: refusedError(0x95)}
		}
		return ack
	}
	inBubble(t, batchConfig(nil, func(b *config.Batch) { b.Compress = "none" }), decide, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		for i := range 2000 {
			r.send("a", strconv.Itoa(i+1))
		}
		c.setOffline(false)
		waitEmpty(r, 5*time.Minute)
		got, sizes := unpack(t, c.arrivals())
		if d := checkOrder(t, got, map[string]int{"dev a": 2000}); d != 0 || refused > 20 {
			t.Errorf("%d duplicates, %d refused", d, refused)
		}
		if e := r.entry("all", "cloud"); e.Places["delivered"] != 2000 {
			t.Errorf("%v", e.Places)
		}
		t.Logf("%d batches, %d refused", len(sizes), refused)
	})
}

// TestBatchOfOneThatFits: a message that is no text and fits the cloud as a PUBLISH of its own fits in a batch, too, where that is packed.
// Where it is not, base64 makes it longer by a third; what becomes a dead letter for that says what to do.
func TestBatchOfOneThatFits(t *testing.T) {
	const most = 128 << 10
	for how, dead := range map[string]uint64{"zstd": 0, "gzip": 0, "none": 1} {
		t.Run(how, func(t *testing.T) {
			payload := make([]byte, most-3000)
			source := rand.NewChaCha8([32]byte{})
			_, _ = source.Read(payload)
			decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
				if len(m.Payload) > most {
					return act{err: refusedError(0x95)}
				}
				return ack
			}
			inBubble(t, batchConfig(nil, func(b *config.Batch) { b.Compress = how }), decide, func(r *rig, c *fakeCloud) {
				r.send("a", string(payload))
				waitEmpty(r, time.Minute)
				letters, err := r.f.DeadLetters("cloud")
				if err != nil || r.letters() != dead || dead > 0 && !strings.Contains(letters[0].Reason, `compress = "zstd"`) {
					t.Errorf("%d dead letters, %.200v, %v", r.letters(), letters, err)
				}
			})
		})
	}
}

// TestLineThatNoDecoderTakes: a message whose line would be larger than decoders take, which only properties of control characters can
// make, becomes a dead letter, and what is around it arrives.
func TestLineThatNoDecoderTakes(t *testing.T) {
	inBubble(t, batchConfig(nil, nil), takeAll, func(r *rig, c *fakeCloud) {
		for i := range 3 {
			r.send("a", strconv.Itoa(2*i+1))
			m := message.Message{Topic: "bad", QoS: 1, Received: time.Now(), Source: message.Source{Client: "dev"}}
			for range 90 {
				m.Properties = append(m.Properties, message.Property{Key: "k", Value: strings.Repeat("\x01", 65535)})
			}
			tk, err := r.f.Ingest(m)
			if err == nil {
				err = tk.Wait(context.Background())
			}
			if err != nil {
				t.Fatal(err)
			}
			if i == 1 {
				waitEmpty(r, time.Minute)
			}
			r.send("a", strconv.Itoa(2*i+2))
		}
		waitEmpty(r, time.Minute)
		got, _ := unpack(t, c.arrivals())
		checkOrder(t, got, map[string]int{"dev a": 6})
		letters, err := r.f.DeadLetters("cloud")
		if err != nil || len(got) != 6 || len(letters) == 0 || !strings.Contains(letters[0].Reason, "decoders take") {
			t.Errorf("%d arrived, %d dead letters, %v", len(got), len(letters), err)
		}
	})
}

// TestBatchesGrowAgain: after a refusal for their size batches grow steadily, on a connection that lasts and on others; a broker that
// still takes no more refuses few.
func TestBatchesGrowAgain(t *testing.T) {
	for name, no := range map[string]act{"with words": {err: refusedError(0x95)}, "without": {cut: true, byPeer: true}} {
		t.Run(name, func(t *testing.T) {
			var most, refused atomic.Int64
			most.Store(9000)
			decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
				if int64(len(m.Payload)) > most.Load() {
					refused.Add(1)
					return no
				}
				return ack
			}
			inBubble(t, batchConfig(nil, func(b *config.Batch) { b.Compress = "none" }), decide, func(r *rig, c *fakeCloud) {
				n := 0
				// largest is the largest batch of a backlog that is sent now.
				largest := func() int {
					before := len(c.arrivals())
					for range 300 {
						n++
						r.send("a", strconv.Itoa(n))
					}
					waitEmpty(r, time.Hour)
					_, sizes := unpack(t, c.arrivals()[before:])
					return slices.Max(sizes)
				}
				c.setOffline(true)
				for range 1000 {
					n++
					r.send("a", strconv.Itoa(n))
				}
				c.setOffline(false)
				waitEmpty(r, time.Hour)
				first := refused.Load()
				for range 8 {
					time.Sleep(time.Hour)
					largest()
				}
				// One that is too large is divided, or taken for the line three times.
				if again := refused.Load() - first; again > 8*6 {
					t.Errorf("%d refused at the start, %d in eight hours after that, %d connections", first, again, c.links)
				}
				most.Store(1 << 20)
				links := c.links
				small := largest()
				time.Sleep(25 * time.Minute)
				between := largest()
				time.Sleep(2 * time.Hour)
				if all := largest(); small > between || all < 100 || c.links != links {
					t.Errorf("batches of %d, after 25 minutes of %d, after two hours of %d; %d connections more", small, between, all, c.links-links)
				}
				got, _ := unpack(t, c.arrivals())
				checkOrder(t, got, map[string]int{"dev a": n})
			})
		})
	}
}

// TestBatchTooLargeForABrokerWithoutWords: over 3.1.1 it closes the connection over a batch that is too large. Batches become
// smaller, and nothing becomes a dead letter.
func TestBatchTooLargeForABrokerWithoutWords(t *testing.T) {
	const most = 9000
	decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		if len(m.Payload) > most {
			return act{cut: true, byPeer: true}
		}
		return ack
	}
	inBubble(t, batchConfig(nil, func(b *config.Batch) { b.Compress = "none" }), decide, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		for i := range 2000 {
			r.send("a", strconv.Itoa(i+1))
		}
		c.setOffline(false)
		waitEmpty(r, time.Hour)
		got, sizes := unpack(t, c.arrivals())
		checkOrder(t, got, map[string]int{"dev a": 2000})
		if e := r.entry("all", "cloud"); e.Places["delivered"] != 2000 {
			t.Errorf("ledger: %v", e.Places)
		}
		if c.links > 20 {
			t.Errorf("%d connections", c.links)
		}
		t.Logf("%d batches over %d connections", len(sizes), c.links)
	})
}

// TestBatchThatClosesTheConnection: over 3.1.1 the record that is to blame is found by sending records alone.
func TestBatchThatClosesTheConnection(t *testing.T) {
	alone := 0
	decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		if bad, n := hasMember(t, m, "bad"); bad {
			if n == 1 {
				alone++
			}
			return act{cut: true, byPeer: true}
		}
		return ack
	}
	inBubble(t, batchConfig(nil, nil), decide, func(r *rig, c *fakeCloud) {
		for i := range 150 {
			r.send("a", strconv.Itoa(i+1))
			if i == 77 {
				r.send("bad", "x")
			}
		}
		took := waitEmpty(r, 30*time.Minute)
		got, _ := unpack(t, c.arrivals())
		checkOrder(t, got, map[string]int{"dev a": 150})
		if e := r.entry("all", "cloud"); e.Places["dead"] != 1 || e.Places["delivered"] != 150 {
			t.Errorf("ledger: %v", e.Places)
		}
		if c.links > 12 {
			t.Errorf("%d connections", c.links)
		}
		t.Logf("given up after %v, %d connections, sent alone %d times", took, c.links, alone)
	})
}

// TestBatchesCondemnNoGoodRecord: a line that closes every connection after a while makes no dead letters, and a broker that
// closes it over everything makes few, as without batches.
func TestBatchesCondemnNoGoodRecord(t *testing.T) {
	for _, life := range []time.Duration{5 * time.Millisecond, time.Second, 1500 * time.Millisecond, 4 * time.Second, 14 * time.Second} {
		var good atomic.Bool
		decide := func(c *fakeCloud, link int, m message.Message, _ Identity) act {
			return act{take: true, silent: !good.Load()}
		}
		inBubble(t, batchConfig(nil, func(b *config.Batch) { b.MaxDelay = 0 }), decide, func(r *rig, c *fakeCloud) {
			for i := range 10 {
				r.send("a", strconv.Itoa(i+1))
			}
			for range 300 {
				time.Sleep(life)
				c.drop(true)
			}
			if e := r.entry("all", "cloud"); e.Places["dead"] != 0 {
				t.Errorf("life %v: %d good records became dead letters", life, e.Places["dead"])
			}
			good.Store(true)
			c.drop(true)
			waitEmpty(r, 10*time.Minute)
			got, _ := unpack(t, c.arrivals())
			checkOrder(t, got, map[string]int{"dev a": 10})
		})
	}
	decide := func(*fakeCloud, int, message.Message, Identity) act { return act{cut: true, byPeer: true} }
	inBubble(t, batchConfig(nil, nil), decide, func(r *rig, c *fakeCloud) {
		for i := range 300 {
			r.send("a", strconv.Itoa(i+1))
		}
		time.Sleep(time.Hour)
		if e := r.entry("all", "cloud"); e.Places["dead"] > 20 {
			t.Errorf("%d records became dead letters in an hour", e.Places["dead"])
		}
	})
}

// TestBatchRate: max_rate counts the messages in batches, and the bytes as they are sent.
func TestBatchRate(t *testing.T) {
	cfg := batchConfig(nil, nil)
	u := cfg.Uplinks["cloud"]
	u.MaxRate.Messages = 50 * 1000 // thousandths
	cfg.Uplinks["cloud"] = u
	inBubble(t, cfg, takeAll, func(r *rig, c *fakeCloud) {
		for i := range 1000 {
			r.send("a", strconv.Itoa(i+1))
		}
		took := waitEmpty(r, 5*time.Minute)
		if took < 17*time.Second || took > 22*time.Second {
			t.Errorf("1000 messages at 50/s took %v", took)
		}
		got, _ := unpack(t, c.arrivals())
		checkOrder(t, got, map[string]int{"dev a": 1000})
	})
	cfg = batchConfig(nil, func(b *config.Batch) { b.Compress = "none" })
	u = cfg.Uplinks["cloud"]
	u.MaxRate.Bytes = 10000 * 1000
	cfg.Uplinks["cloud"] = u
	inBubble(t, cfg, takeAll, func(r *rig, c *fakeCloud) {
		for i := range 1000 {
			r.send("a", strconv.Itoa(i+1))
		}
		took := waitEmpty(r, 5*time.Minute)
		total := 0
		for _, a := range c.arrivals() {
			total += len(a.payload)
		}
		if want := time.Duration(total/10000) * time.Second; took < want-4*time.Second || took > want+4*time.Second {
			t.Errorf("%d bytes at 10000/s took %v", total, took)
		}
	})
}

// TestBatchesOfABoundedConnection: where a cloud takes so many packets a second, that is no bound for what is in them.
func TestBatchesOfABoundedConnection(t *testing.T) {
	for most, want := range map[int]time.Duration{100: 500 * time.Millisecond, 1: 50 * time.Second} {
		cfg := batchConfig(nil, func(b *config.Batch) { b.MaxMessages = most })
		u := cfg.Uplinks["cloud"]
		u.Limits.MaxPublishes = 100 * 1000 // thousandths
		cfg.Uplinks["cloud"] = u
		inBubble(t, cfg, takeAll, func(r *rig, c *fakeCloud) {
			c.setOffline(true)
			for i := range 5000 {
				r.send("a", strconv.Itoa(i+1))
			}
			c.setOffline(false)
			if took := waitEmpty(r, 5*time.Minute); took < want*7/10 || took > want*2 {
				t.Errorf("5000 messages in batches of %d, 100 packets a second, took %v", most, took)
			}
		})
	}
}

// TestBatchTellsItsQoS: how many of its records want QoS 2 is known where it is lowered.
func TestBatchTellsItsQoS(t *testing.T) {
	cfg := batchConfig(map[string]config.Route{"one": {From: []string{"a"}, QoS: 1}, "two": {From: []string{"b"}, QoS: 2}}, nil)
	inBubble(t, cfg, takeAll, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		for range 5 {
			r.send("a", "x")
			r.send("b", "x")
		}
		c.setOffline(false)
		waitEmpty(r, time.Minute)
		exactly := 0
		for _, a := range c.arrivals() {
			exactly += a.id.Exactly
		}
		if exactly != 5 {
			t.Errorf("%d records want QoS 2", exactly)
		}
	})
}

// TestBatchMembersExpire: what is not worth sending any more when its batch leaves is left out, counted and announced.
func TestBatchMembersExpire(t *testing.T) {
	set := func(b *config.Batch) { b.MaxDelay = config.Duration(10 * time.Second) }
	inBubble(t, batchConfig(nil, set), takeAll, func(r *rig, c *fakeCloud) {
		for i := range 10 {
			now := time.Now()
			m := message.Message{
				Topic: "a", Payload: []byte(strconv.Itoa(i + 1)), Source: message.Source{Client: "dev"}, Received: now,
				Expires: now.Add(time.Duration(1+i) * 2 * time.Second),
			}
			tk, err := r.f.Ingest(m)
			if err == nil {
				err = tk.Wait(context.Background())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		waitEmpty(r, time.Minute)
		time.Sleep(5 * time.Second)
		e := r.entry("all", "cloud")
		if e.Places["expired"] != 5 || e.Places["delivered"] != 5 {
			t.Errorf("ledger: %v", e.Places)
		}
		reported := 0
		for _, a := range c.arrivals() {
			if strings.HasSuffix(a.topic, "/gaps") {
				reported++
				if !strings.Contains(a.payload, `"reason":"expired"`) {
					t.Errorf("reported %s", a.payload)
				}
				continue
			}
			for _, rec := range unpackOne(t, whole(a)).Records {
				if n, _ := strconv.Atoi(string(rec.Payload)); n < 6 || rec.Expiry != uint32(2*n-10) {
					t.Errorf("message %d with %d s left", n, rec.Expiry)
				}
			}
		}
		if reported == 0 {
			t.Error("nothing was announced")
		}
	})
}

// TestBatchAtTheStop: what is only gathered when the gateway stops stays in the buffer.
func TestBatchAtTheStop(t *testing.T) {
	set := func(b *config.Batch) { b.MaxDelay = config.Duration(time.Hour) }
	dir, cfg := t.TempDir(), batchConfig(nil, set)
	synctest.Test(t, func(t *testing.T) {
		cloud := newFakeCloud(takeAll)
		r := open(t, dir, cfg, map[string]*fakeCloud{"cloud": cloud}).start()
		for i := range 130 {
			r.send("a", strconv.Itoa(i+1))
		}
		synctest.Wait()
		r.close()
		if got, sizes := unpack(t, cloud.arrivals()); len(got) != 100 {
			t.Errorf("batches of %v before the stop", sizes)
		}
		r = open(t, dir, cfg, map[string]*fakeCloud{"cloud": cloud}).start()
		defer r.close()
		time.Sleep(time.Hour)
		waitEmpty(r, time.Minute)
		got, _ := unpack(t, cloud.arrivals())
		if d := checkOrder(t, got, map[string]int{"dev a": 130}); d != 0 {
			t.Errorf("%d duplicates", d)
		}
		r.balance()
	})
}

// TestBatchesInFlightAreBounded: a cloud that does not answer does not fill the memory.
func TestBatchesInFlightAreBounded(t *testing.T) {
	var answers atomic.Bool
	decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		return act{take: true, silent: !answers.Load()}
	}
	inBubble(t, batchConfig(nil, func(b *config.Batch) { b.Compress = "none" }), decide, func(r *rig, c *fakeCloud) {
		for i := range 1000 {
			r.send("a", strconv.Itoa(i+1)+" "+strings.Repeat("x", 3000))
		}
		time.Sleep(10 * time.Second)
		total := 0
		for _, a := range c.arrivals() {
			total += 2 * len(a.payload)
		}
		if total > maxFlying+512<<10 || total < maxFlying/2 {
			t.Errorf("%d bytes in flight", total)
		}
		answers.Store(true)
		c.drop(false)
		waitEmpty(r, time.Minute)
		got, _ := unpack(t, c.arrivals())
		checkOrder(t, got, map[string]int{"dev a": 1000})
	})
}
