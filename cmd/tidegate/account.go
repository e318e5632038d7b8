package main

import (
	"cmp"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// This file is the arithmetic of `verify`: which sequences came, which are missing, which the gateway announced. It knows no
// MQTT. Its memory is bounded: sequences are kept as ranges, and where there are too many of these, the oldest ones are
// settled for good.

// Bounds of an account. What is beyond them is counted and not looked at any closer.
const (
	maxRangesKept   = 1 << 16 // of one lane; a range is 16 bytes
	maxRangesListed = 1000    // of one lane in a report
	maxLanes        = 1000
	maxStreams      = 20000 // pairs of device and topic of one lane, whose order is watched
)

// laneKey names the sequences of one lane: N of a tg-seq has its meaning within it.
type laneKey struct{ gateway, uplink, epoch, lane string }

// account is what a consumer saw of any number of gateways.
type account struct {
	lanes                                       map[laneKey]*laneAccount
	messages, batches, unidentified, unreadable uint64
}

func newAccount() *account { return &account{lanes: map[laneKey]*laneAccount{}} }

// laneAccount is the account of one lane.
type laneAccount struct {
	laneKey
	first, last          uint64 // received; 0: none yet
	got, announced       ranges
	settled              ranges // missing for good, see settle
	forgotten            uint64 // of these, those whose numbers are not kept
	excused              uint64 // announced, where that is settled too
	received, duplicates uint64
	devices              map[string]*deviceAccount
	newest               map[string]uint64 // by device and topic
}

// deviceAccount is the part of one device in a lane. Which device a missing sequence was of nobody knows.
type deviceAccount struct {
	Source     string `json:"source"`
	First      uint64 `json:"first"`
	Last       uint64 `json:"last"`
	Received   uint64 `json:"received"` // without duplicates
	Duplicates uint64 `json:"duplicates"`
	Reordered  uint64 `json:"reordered"` // first arrivals behind a later one of the same device and topic
}

// splitSequence reads a tg-seq: EPOCH-LANE-N.
func splitSequence(s string) (epoch, lane string, n uint64, ok bool) {
	epoch, rest, _ := strings.Cut(s, "-")
	lane, number, _ := strings.Cut(rest, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	if _, notBase36 := strconv.ParseUint(epoch, 36, 64); notBase36 != nil {
		return "", "", 0, false
	}
	return epoch, lane, n, err == nil && lane != "" && n > 0 && n < 1<<63
}

// lane returns the account of a lane; nil when there are too many.
func (a *account) lane(k laneKey) *laneAccount {
	l := a.lanes[k]
	if l == nil && len(a.lanes) < maxLanes {
		l = &laneAccount{laneKey: k, devices: map[string]*deviceAccount{}, newest: map[string]uint64{}}
		a.lanes[k] = l
	}
	return l
}

// record notes the arrival of one message and reports whether it is the first of its sequence.
func (a *account) record(gateway, uplink, seq, source, topic string) (first bool) {
	a.messages++
	epoch, lane, n, ok := splitSequence(seq)
	var l *laneAccount
	if ok {
		l = a.lane(laneKey{gateway, uplink, epoch, lane})
	}
	if l == nil {
		a.unidentified++
		return true
	}
	return l.record(n, source, topic)
}

func (l *laneAccount) record(n uint64, source, topic string) (first bool) {
	stream := source + "\x00" + topic
	newest, watched := l.newest[stream]
	d := l.device(source, watched || len(l.newest) < maxStreams)
	if l.got.has(n) {
		l.duplicates++
		d.Duplicates++
		return false
	}
	l.got.add(n, n)
	l.received++
	d.Received++
	if l.first == 0 || n < l.first {
		l.first = n
	}
	if d.First == 0 || n < d.First {
		d.First = n
	}
	l.last, d.Last = max(l.last, n), max(d.Last, n)
	switch {
	case n < newest:
		d.Reordered++
	case watched || len(l.newest) < maxStreams:
		l.newest[stream] = n
	}
	l.settle()
	return true
}

// device returns the account of a device; those beyond the bound share one.
func (l *laneAccount) device(source string, room bool) *deviceAccount {
	d := l.devices[source]
	if d == nil {
		if !room {
			source = "(others)"
			if d = l.devices[source]; d != nil {
				return d
			}
		}
		d = &deviceAccount{Source: source}
		l.devices[source] = d
	}
	return d
}

// announce notes that the gateway said that sequences will not come.
func (a *account) announce(k laneKey, from, to uint64) {
	if l := a.lane(k); l != nil && from > 0 && from <= to {
		l.announced.add(from, to)
		l.settle()
	}
}

// settle makes room where the ranges have become too many: what is missing between the oldest ones is missing for good, and
// what comes of it after all counts as a duplicate.
func (l *laneAccount) settle() {
	if len(l.got.list) > maxRangesKept {
		horizon := l.got.list[len(l.got.list)/2].from
		var holes ranges
		holes.list = l.got.holes(l.got.list[0].from, horizon-1)
		missing := holes.without(l.announced)
		l.excused += holes.count() - missing.count()
		for _, h := range missing.list {
			l.settled.add(h.from, h.to)
		}
		l.got.add(l.got.list[0].from, horizon)
	}
	if n := len(l.announced.list); n > maxRangesKept {
		l.announced.list = slices.Delete(l.announced.list, 0, n/2) // settled long since, or counted as missing
	}
	if n := len(l.settled.list); n > maxRangesKept {
		oldest := ranges{l.settled.list[:n/2]}
		l.forgotten += oldest.count()
		l.settled.list = slices.Delete(l.settled.list, 0, n/2)
	}
}

// laneReport is what an account says of one lane.
type laneReport struct {
	Gateway string `json:"gateway"` // empty: the messages do not tell
	Uplink  string `json:"uplink"`
	Epoch   string `json:"epoch"`
	Lane    string `json:"lane"`
	First   uint64 `json:"first"` // received; what came before is not known
	Last    uint64 `json:"last"`
	// Received are without duplicates. Missing and Announced did not come; Announced will not, as the gateway said.
	Received        uint64           `json:"received"`
	Missing         uint64           `json:"missing"`
	MissingRanges   [][2]uint64      `json:"missing_ranges"` // the first thousand
	Announced       uint64           `json:"announced"`
	AnnouncedRanges [][2]uint64      `json:"announced_ranges"`
	Duplicates      uint64           `json:"duplicates"`
	Reordered       uint64           `json:"reordered"`
	Devices         []*deviceAccount `json:"devices"`
}

// accountReport is all of an account.
type accountReport struct {
	Messages     uint64       `json:"messages"` // with duplicates
	Batches      uint64       `json:"batches"`
	Received     uint64       `json:"received"`
	Missing      uint64       `json:"missing"`
	Announced    uint64       `json:"announced"`
	Duplicates   uint64       `json:"duplicates"`
	Reordered    uint64       `json:"reordered"`
	Unidentified uint64       `json:"unidentified"` // messages without an identity: nothing is known of them
	Unreadable   uint64       `json:"unreadable"`   // batches and gap reports
	Lanes        []laneReport `json:"lanes"`
}

// report sums up. Lanes are in order of gateway, uplink, lane and epoch, in which a gateway's epochs rise.
func (a *account) report() accountReport {
	r := accountReport{Messages: a.messages, Batches: a.batches, Unidentified: a.unidentified, Unreadable: a.unreadable, Lanes: []laneReport{}}
	var lanes []*laneAccount
	for _, l := range a.lanes {
		lanes = append(lanes, l)
	}
	slices.SortFunc(lanes, func(x, y *laneAccount) int {
		return cmp.Or(cmp.Compare(x.gateway, y.gateway), cmp.Compare(x.uplink, y.uplink), cmp.Compare(x.lane, y.lane),
			cmp.Compare(len(x.epoch), len(y.epoch)), cmp.Compare(x.epoch, y.epoch))
	})
	var before *laneAccount
	for _, l := range lanes {
		if before != nil && (before.gateway != l.gateway || before.uplink != l.uplink || before.lane != l.lane) {
			before = nil
		}
		e := l.report(before)
		r.Received += e.Received
		r.Missing += e.Missing
		r.Announced += e.Announced
		r.Duplicates += e.Duplicates
		r.Reordered += e.Reordered
		r.Lanes = append(r.Lanes, e)
		if l.received > 0 {
			before = l
		}
	}
	return r
}

// report sums up one lane. before is the same lane in the epoch before, if it was seen: sequences go on from one epoch to
// the next, so what is missing between the two is missing here.
func (l *laneAccount) report(before *laneAccount) laneReport {
	r := laneReport{
		Gateway: l.gateway, Uplink: l.uplink, Epoch: l.epoch, Lane: l.lane, First: l.first, Last: l.last,
		Received: l.received, Duplicates: l.duplicates, Devices: []*deviceAccount{},
	}
	said, from := l.announced, l.first
	if before != nil && l.received > 0 && l.first > before.last+1 {
		from = before.last + 1
		said = ranges{slices.Clone(said.list)}
		for _, x := range before.announced.list {
			said.add(x.from, x.to)
		}
	}
	holes := said // nothing came, so all that is known is what was announced
	if l.received > 0 {
		holes = ranges{l.got.holes(from, l.last)}
	}
	missing := holes.without(said)
	r.Announced = holes.count() - missing.count() + l.excused
	announced := holes.without(missing)
	r.AnnouncedRanges = announced.pairs()
	for _, x := range l.settled.without(said).list {
		missing.add(x.from, x.to)
	}
	r.Missing, r.MissingRanges = missing.count()+l.forgotten, missing.pairs()
	for _, d := range l.devices {
		r.Reordered += d.Reordered
		r.Devices = append(r.Devices, d)
	}
	slices.SortFunc(r.Devices, func(x, y *deviceAccount) int { return cmp.Compare(x.Source, y.Source) })
	return r
}

// ranges is a set of numbers as ascending ranges that do not touch.
type ranges struct{ list []numbers }

type numbers struct{ from, to uint64 }

// at is the index of the first range that ends at n or behind it.
func (r *ranges) at(n uint64) int {
	if k := len(r.list); k == 0 || r.list[k-1].to < n {
		return k
	}
	return sort.Search(len(r.list), func(i int) bool { return r.list[i].to >= n })
}

func (r *ranges) has(n uint64) bool {
	i := r.at(n)
	return i < len(r.list) && r.list[i].from <= n
}

// add adds the numbers from to to, both included.
func (r *ranges) add(from, to uint64) {
	i := r.at(from)
	if i > 0 && r.list[i-1].to+1 == from {
		i--
	}
	j := i
	for j < len(r.list) && r.list[j].from <= to+1 {
		from, to = min(from, r.list[j].from), max(to, r.list[j].to)
		j++
	}
	if i == j {
		r.list = slices.Insert(r.list, i, numbers{from, to})
		return
	}
	r.list[i] = numbers{from, to}
	r.list = slices.Delete(r.list, i+1, j)
}

// holes are the numbers from first to last that are not in r.
func (r *ranges) holes(first, last uint64) []numbers {
	var out []numbers
	next := first
	for i := r.at(first); i < len(r.list) && next <= last; i++ {
		if x := r.list[i]; x.from > next {
			out = append(out, numbers{next, min(x.from-1, last)})
		}
		next = max(next, r.list[i].to+1)
	}
	if next <= last {
		out = append(out, numbers{next, last})
	}
	return out
}

// without are the numbers of r that are not in o.
func (r *ranges) without(o ranges) ranges {
	var out ranges
	for _, x := range r.list {
		out.list = append(out.list, o.holes(x.from, x.to)...)
	}
	return out
}

func (r *ranges) count() uint64 {
	var n uint64
	for _, x := range r.list {
		n += x.to - x.from + 1
	}
	return n
}

// pairs are the ranges as a report lists them.
func (r *ranges) pairs() [][2]uint64 {
	out := [][2]uint64{}
	for _, x := range r.list[:min(len(r.list), maxRangesListed)] {
		out = append(out, [2]uint64{x.from, x.to})
	}
	return out
}
