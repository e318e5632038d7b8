package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"tidegate/message"
	"tidegate/message/envelope"
)

// gapPatience is how long verify goes on where something is missing at an end that was asked for. A gateway announces at most once
// a second what will not come, behind the messages that show the gap.
const gapPatience = 10 * time.Second

// watcher puts what comes into the account.
type watcher struct {
	want uint64        // different messages; 0: no end
	full chan struct{} // closed when they have come

	mu      sync.Mutex
	account *account
	decoder *envelope.Decoder
	seen    uint64 // different messages
}

func newWatcher(want uint64, unordered bool) *watcher {
	return &watcher{want: want, full: make(chan struct{}), account: newAccount(unordered, time.Now()), decoder: envelope.NewDecoder(0)}
}

// count returns how many different messages came, and whether that is as many as were wanted.
func (w *watcher) count() (n uint64, full bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen, w.want > 0 && w.seen >= w.want
}

// settle waits, at the end, as long as something is missing that may still come or be announced, and for gapPatience at most. What
// comes behind the end is passed over.
func (w *watcher) settle(ctx context.Context, lost <-chan struct{}) {
	w.mu.Lock()
	w.account.closed = true
	w.mu.Unlock()
	end := time.NewTimer(gapPatience)
	defer end.Stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		w.mu.Lock()
		missing := w.account.missing()
		w.mu.Unlock()
		if missing == 0 {
			return
		}
		select {
		case <-look.C:
		case <-end.C:
			return
		case <-lost:
			return
		case <-ctx.Done():
			return
		}
	}
}

// see takes one PUBLISH. What the broker had kept as a retained message is old news: it was sent at any time before.
func (w *watcher) see(m message.Message) {
	if m.Retain {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := identityOf(m)
	switch {
	case s.seq != "":
		w.record(s)
	case message.Match(gapsFilter, m.Topic):
		w.gap(m)
	case envelope.IsContentType(m.ContentType) || m.ContentType == "" && looksLikeBatch(m.Payload):
		w.batch(m)
	case !strings.HasPrefix(m.Topic, "tidegate/"): // a gateway's status has no sequence
		w.account.messages++
		w.account.unidentified++
	}
}

// identityOf returns what the user properties of a single message say. Devices cannot forge them.
func identityOf(m message.Message) sighting {
	s := sighting{topic: m.Topic}
	for _, p := range m.Properties {
		switch p.Key {
		case "tg-up":
			s.gateway, s.uplink, _ = strings.Cut(p.Value, "/")
		case "tg-seq":
			s.seq = p.Value
		case "tg-src":
			s.source = p.Value
		case "tg-id":
			s.made = madeAt(p.Value)
		}
	}
	return s
}

// madeAt is the time that a tg-id carries; zero: it is none.
func madeAt(text string) time.Time {
	id, err := message.ParseID(text)
	if err != nil {
		return time.Time{}
	}
	return id.Time()
}

func looksLikeBatch(payload []byte) bool {
	_, ok := envelope.Detect(payload)
	return ok
}

func (w *watcher) record(s sighting) {
	// By the clock that a step of the time of day does not change.
	s.arrived = w.account.begun.Add(time.Since(w.account.begun)).Round(0)
	if !w.account.record(s) {
		return
	}
	if w.seen++; w.seen == w.want {
		w.account.closed = true
		close(w.full)
	}
}

func (w *watcher) batch(m message.Message) {
	b, err := w.decoder.Decode(m.Payload)
	if err != nil {
		if m.ContentType != "" {
			w.account.unreadable++
		} else { // it only begins like a batch
			w.account.messages++
			w.account.unidentified++
		}
		return
	}
	w.account.batches++
	for i := range b.Records {
		r := &b.Records[i]
		w.record(sighting{gateway: b.Gateway, uplink: b.Uplink, seq: r.Seq, source: r.Source, topic: r.Topic, made: madeAt(r.ID)})
	}
}

// gap takes a report on tidegate/{gateway}/uplink/{name}/gaps.
func (w *watcher) gap(m message.Message) {
	var report struct {
		Epoch, Lane string
		Ranges      [][2]uint64
	}
	if len(m.Payload) > maxReport { // a gateway's have some 20 KiB
		w.account.unreadable++
		return
	}
	if err := json.Unmarshal(m.Payload, &report); err != nil || !isEpoch(report.Epoch) || !isLane(report.Lane) {
		w.account.unreadable++
		return
	}
	levels := strings.Split(m.Topic, "/")
	for _, r := range report.Ranges {
		w.account.announce(laneKey{levels[1], levels[3], report.Lane}, report.Epoch, r[0], r[1])
	}
}
