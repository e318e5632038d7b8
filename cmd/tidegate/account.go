package main

import (
	"hash/maphash"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// This file is the arithmetic of `verify`: which sequences came, which are missing, which the gateway announced. It knows no
// MQTT. Whatever is published, its memory is bounded, and what the bounds leave out is told apart from what is missing.

// Bounds of an account.
const (
	maxSequence     = 1<<53 - 1 // what JSON carries exactly; a gateway with a million records a second gets there in 285 years
	maxLanes        = 10000     // lanes of uplinks and their epochs
	maxRanges       = 1 << 20   // of one kind in all lanes; a range is 16 bytes
	maxRangesKept   = 1 << 16   // of one kind in one lane
	minRangesKept   = 64
	maxRangesListed = 1000    // of one lane in a report
	maxStreams      = 200_000 // pairs of device and topic, whose order is watched
	maxDevices      = 50_000
	maxName         = 512 // bytes of the names of gateway and uplink together, and of a device
	maxLaneName     = 32
	maxReport       = 1 << 20 // bytes of a gap report
)

// laneKey names the sequences of one lane of one uplink. They go on from one epoch to the next.
type laneKey struct{ gateway, uplink, lane string }

// account is what a consumer saw of any number of gateways.
type account struct {
	// unordered: messages may overtake each other, so one that came before others says nothing of what came before it.
	unordered bool
	begun     time.Time
	// closed: nothing new is taken in any more, only what fills a gap.
	closed bool

	lanes                                       map[laneKey]*laneAccount
	entries, streams, devices                   int // lanes and epochs; what is in them
	seed                                        maphash.Seed
	messages, batches, unidentified, unreadable uint64
	beyond                                      uint64 // messages and announcements of lanes beyond the bound
}

func newAccount(unordered bool, begun time.Time) *account {
	return &account{unordered: unordered, begun: begun, lanes: map[laneKey]*laneAccount{}, seed: maphash.MakeSeed()}
}

// laneAccount is the account of one lane.
type laneAccount struct {
	laneKey
	sequences
	origin uint64 // the first that came
	ages   ages
	epochs map[string]*epochAccount
	said   string // the latest epoch of an announcement
}

// epochAccount is the part of one epoch in a lane.
type epochAccount struct {
	name                 string
	first, last          uint64
	received, duplicates uint64
	devices              map[string]*deviceAccount
	newest               map[uint64]uint64 // by the hash of device and topic
}

// deviceAccount is the part of one device in that. Which device a missing sequence was of nobody knows.
type deviceAccount struct {
	Source     string `json:"source"`
	First      uint64 `json:"first"`
	Last       uint64 `json:"last"`
	Received   uint64 `json:"received"` // without duplicates
	Duplicates uint64 `json:"duplicates"`
	Reordered  uint64 `json:"reordered"` // first arrivals behind a later one of the same device and topic
}

// sighting is a message with an identity.
type sighting struct {
	gateway, uplink, seq, source, topic string

	made    time.Time // by the gateway's clock; zero: not known
	arrived time.Time // by this machine's
}

// splitSequence reads a tg-seq: EPOCH-LANE-N.
func splitSequence(s string) (epoch, lane string, n uint64, ok bool) {
	epoch, rest, _ := strings.Cut(s, "-")
	lane, number, _ := strings.Cut(rest, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	return epoch, lane, n, err == nil && isEpoch(epoch) && isLane(lane) && n > 0 && n <= maxSequence
}

// isEpoch reports whether s is a number as gateways write it.
func isEpoch(s string) bool {
	n, err := strconv.ParseUint(s, 36, 64)
	return err == nil && strconv.FormatUint(n, 36) == s
}

func isLane(s string) bool { return s != "" && len(s) <= maxLaneName }

// lane returns the account of a lane; nil when there are too many, or its name is none that a gateway has.
func (a *account) lane(k laneKey) *laneAccount {
	l := a.lanes[k]
	if l != nil {
		return l
	}
	if a.entries >= maxLanes || a.closed || len(k.gateway)+len(k.uplink) > maxName {
		return nil
	}
	// A key may be a part of a large payload.
	k = laneKey{strings.Clone(k.gateway), strings.Clone(k.uplink), strings.Clone(k.lane)}
	l = &laneAccount{laneKey: k, epochs: map[string]*epochAccount{}}
	a.lanes[k] = l
	a.entries++
	if n := len(a.lanes); n&(n-1) == 0 { // the share of each is less from here on
		for _, other := range a.lanes {
			a.trim(other)
		}
	}
	return l
}

// trim keeps a lane within its share of what may be kept.
func (a *account) trim(l *laneAccount) {
	if limit := min(max(maxRanges>>bits.Len(uint(len(a.lanes))), minRangesKept), maxRangesKept); l.large(limit) {
		l.trim(limit, a.since(l))
	}
}

// since is from which sequence on it is known that what is missing did not come before the watch began.
func (a *account) since(l *laneAccount) uint64 {
	if a.unordered {
		return l.ages.since(a.begun)
	}
	return l.origin
}

// record notes the arrival of one message and reports whether it is the first of its sequence.
func (a *account) record(m sighting) (first bool) {
	epoch, lane, n, ok := splitSequence(m.seq)
	if !ok {
		a.messages++
		a.unidentified++
		return false
	}
	l := a.lane(laneKey{m.gateway, m.uplink, lane})
	if a.closed && (l == nil || n > l.high) {
		return false // it came behind the end
	}
	a.messages++
	if l == nil {
		a.beyond++
		return false
	}
	e := l.epochs[epoch]
	if e == nil {
		if a.entries >= maxLanes {
			a.beyond++
			return false
		}
		e = &epochAccount{name: strings.Clone(epoch), devices: map[string]*deviceAccount{}, newest: map[uint64]uint64{}}
		l.epochs[e.name] = e
		a.entries++
	}
	if l.origin == 0 {
		l.origin = n
	}
	if !m.made.IsZero() {
		l.ages.note(n, m.made, m.arrived)
	}
	first = l.arrive(n)
	if !first && (e.received == 0 || n < e.first || n > e.last) {
		first = true // a crash may have an epoch give a number that an earlier one has given
	}
	a.see(e, n, m, first)
	a.trim(l)
	return first
}

// see notes an arrival in its epoch.
func (a *account) see(e *epochAccount, n uint64, m sighting, first bool) {
	d := a.device(e, m.source)
	if !first {
		e.duplicates++
		d.Duplicates++
		return
	}
	e.received++
	d.Received++
	if e.first == 0 || n < e.first {
		e.first = n
	}
	if d.First == 0 || n < d.First {
		d.First = n
	}
	e.last, d.Last = max(e.last, n), max(d.Last, n)
	stream := a.stream(m.source, m.topic)
	newest, watched := e.newest[stream]
	switch {
	case n < newest:
		d.Reordered++
	case watched:
		e.newest[stream] = n
	case a.streams < maxStreams:
		a.streams++
		e.newest[stream] = n
	}
}

// stream names the pair of a device and a topic. That two of them have the same name is as good as impossible.
func (a *account) stream(source, topic string) uint64 {
	var h maphash.Hash
	h.SetSeed(a.seed)
	_, _ = h.WriteString(source)
	_ = h.WriteByte(0)
	_, _ = h.WriteString(topic)
	return h.Sum64()
}

// device returns the account of a device; those beyond the bounds share one.
func (a *account) device(e *epochAccount, source string) *deviceAccount {
	d := e.devices[source]
	if d == nil && (a.devices >= maxDevices || len(source) > maxName) {
		source = "(others)"
		d = e.devices[source]
	}
	if d == nil {
		a.devices++
		d = &deviceAccount{Source: strings.Clone(source)}
		e.devices[d.Source] = d
	}
	return d
}

// announce notes that the gateway said that sequences will not come.
func (a *account) announce(k laneKey, epoch string, from, to uint64) {
	to = min(to, maxSequence)
	if from == 0 || from > to {
		return
	}
	l := a.lane(k)
	if l == nil {
		a.beyond++
		return
	}
	if laterEpoch(epoch, l.said) {
		l.said = strings.Clone(epoch)
	}
	l.announce(from, to)
	a.trim(l)
}

// laterEpoch compares epochs, which rise as numbers do.
func laterEpoch(a, b string) bool { return len(a) > len(b) || len(a) == len(b) && a > b }

// missing counts what is missing and was not announced.
func (a *account) missing() (n uint64) {
	for _, l := range a.lanes {
		n += l.lost(a.since(l))
	}
	return n
}
