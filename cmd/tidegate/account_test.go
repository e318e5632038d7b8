package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// come has one message arrive; when it was made does not count.
func come(a *account, gateway, uplink, seq, source, topic string) bool {
	return a.record(sighting{gateway: gateway, uplink: uplink, seq: seq, source: source, topic: topic})
}

// TestAccount has a stream of arrivals for every finding. An arrival is LANE+N, of device d on topic t; d2:normal5 is of another
// device, gap:normal5-7 an announcement, and e2: in front of a lane says that it is of a later epoch.
func TestAccount(t *testing.T) {
	for _, c := range []struct {
		name, arrivals string
		// The line is RECEIVED missing RANGES announced RANGES duplicates N reordered N, for each lane and epoch, with earlier N at
		// its end where there are some.
		want string
	}{
		{"nothing", "", ""},
		{"one", "normal5", "1 missing [] announced [] duplicates 0 reordered 0"},
		{"in order", "normal5 normal6 normal7", "3 missing [] announced [] duplicates 0 reordered 0"},
		{"lost", "normal5 normal7 normal10", "3 missing [[6 6] [8 9]] announced [] duplicates 0 reordered 0"},
		{"again", "normal5 normal6 normal5 normal6 normal7", "3 missing [] announced [] duplicates 2 reordered 0"},
		{"reordered", "normal5 normal7 normal6 normal8", "4 missing [] announced [] duplicates 0 reordered 1"},
		{"again is not reordered", "normal5 normal6 normal7 normal5", "3 missing [] announced [] duplicates 1 reordered 0"},
		{"others overtake", "normal5 d2:normal7 normal6 d2:normal8", "4 missing [] announced [] duplicates 0 reordered 0"},
		{"another topic overtakes", "normal5 t2:normal7 normal6", "3 missing [] announced [] duplicates 0 reordered 0"},
		{"announced", "normal5 gap:normal6-8 normal9", "2 missing [] announced [[6 8]] duplicates 0 reordered 0"},
		{"announced later", "normal5 normal9 gap:normal6-8", "2 missing [] announced [[6 8]] duplicates 0 reordered 0"},
		{"announced in part", "normal5 normal9 gap:normal7-7", "2 missing [[6 6] [8 8]] announced [[7 7]] duplicates 0 reordered 0"},
		{"announced in pieces", "normal5 gap:normal6-7 normal10 gap:normal8-9 gap:normal6-9", "2 missing [] announced [[6 9]] duplicates 0 reordered 0"},
		{"announced and come", "normal5 normal6 gap:normal6-6 normal7", "3 missing [] announced [] duplicates 0 reordered 0"},
		{"announced before the first", "gap:normal1-4 normal5 normal6", "2 missing [] announced [] duplicates 0 reordered 0"},
		{"announced only", "gap:normal1-4", "0 missing [] announced [[1 4]] duplicates 0 reordered 0"},
		{"announced behind the last", "normal5 gap:normal6-9", "1 missing [] announced [] duplicates 0 reordered 0"},
		{
			"lanes are apart", "normal5 urgent1 normal6 urgent3",
			"2 missing [] announced [] duplicates 0 reordered 0; 2 missing [[2 2]] announced [] duplicates 0 reordered 0",
		},
		{"the first comes late", "normal7 normal5", "2 missing [] announced [] duplicates 0 reordered 1 earlier 1"},
		{"an old one is sent again", "normal100 normal101 d2:normal90 normal102 normal104", "5 missing [[103 103]] announced [] duplicates 0 reordered 0 earlier 9"},
		{"what is in front fills up", "normal7 d2:normal4 d2:normal6 d2:normal5", "4 missing [] announced [] duplicates 0 reordered 1"},
		{"announced and come late", "normal5 gap:normal6-8 normal9 normal7", "3 missing [] announced [[6 6] [8 8]] duplicates 0 reordered 1"},
		{"to the end of numbers", "normal5 normal9 gap:normal6-18446744073709551615", "2 missing [] announced [[6 8]] duplicates 0 reordered 0"},
		{"from the end of numbers", "normal5 normal9007199254740991 gap:normal6-9007199254740990 gap:normal18446744073709551615-18446744073709551615", "2 missing [] announced [[6 9007199254740990]] duplicates 0 reordered 0"},
		{
			"an epoch goes on", "normal5 normal6 e2:normal7 e2:normal8",
			"2 missing [] announced [] duplicates 0 reordered 0; 2 missing [] announced [] duplicates 0 reordered 0",
		},
		{
			"lost between epochs", "normal5 normal6 e2:normal9 gap:normal7-7",
			"2 missing [] announced [] duplicates 0 reordered 0; 1 missing [[8 8]] announced [[7 7]] duplicates 0 reordered 0",
		},
		{
			"an epoch in the middle is announced", "normal5 e2:gap:normal6-8 e3:normal9",
			"1 missing [] announced [] duplicates 0 reordered 0; 1 missing [] announced [[6 8]] duplicates 0 reordered 0",
		},
		{
			"lost in the middle", "normal5 e2:normal7 e3:normal9 e2:gap:normal8-8",
			"1 missing [] announced [] duplicates 0 reordered 0; 1 missing [[6 6]] announced [] duplicates 0 reordered 0; 1 missing [] announced [[8 8]] duplicates 0 reordered 0",
		},
		{
			"a later epoch announces damage", "normal5 normal7 e2:gap:normal6-6 e2:normal8",
			"2 missing [] announced [[6 6]] duplicates 0 reordered 0; 1 missing [] announced [] duplicates 0 reordered 0",
		},
		{
			"an epoch takes numbers again", "normal5 normal6 normal7 e2:normal7 e2:normal8",
			"3 missing [] announced [] duplicates 0 reordered 0; 2 missing [] announced [] duplicates 0 reordered 0",
		},
	} {
		a := newAccount(false, time.Now())
		for word := range strings.FieldsSeq(c.arrivals) {
			device, topic, epoch, gap := "d", "t", "9z", false
			for {
				front, rest, ok := strings.Cut(word, ":")
				if !ok {
					break
				}
				switch word = rest; front {
				case "gap":
					gap = true
				case "e2":
					epoch = "100" // longer, so later than 9z
				case "e3":
					epoch = "101"
				case "t2":
					topic = front
				default:
					device = front
				}
			}
			lane := strings.TrimRight(word, "0123456789-")
			number := strings.TrimPrefix(word, lane)
			if gap {
				from, to, _ := strings.Cut(number, "-")
				f, _ := strconv.ParseUint(from, 10, 64)
				l, _ := strconv.ParseUint(to, 10, 64)
				a.announce(laneKey{"gw", "up", lane}, epoch, f, l)
				continue
			}
			come(a, "gw", "up", epoch+"-"+lane+"-"+number, device, topic)
		}
		var got []string
		r := a.report()
		for _, l := range r.Lanes {
			got = append(got, fmt.Sprintf("%d missing %v announced %v duplicates %d reordered %d", l.Received, l.MissingRanges, l.AnnouncedRanges, l.Duplicates, l.Reordered))
			if l.Earlier > 0 {
				got[len(got)-1] += fmt.Sprint(" earlier ", l.Earlier)
			}
		}
		if text := strings.Join(got, "; "); text != c.want {
			t.Errorf("%s: %s\ngot  %s\nwant %s", c.name, c.arrivals, text, c.want)
		}
	}
}

// TestAccountSums: totals and devices; what has no identity is counted apart.
func TestAccountSums(t *testing.T) {
	a := newAccount(false, time.Now())
	for _, up := range []string{"one", "two"} { // the same sequences of two uplinks
		for n := range 10 {
			come(a, "gw", up, fmt.Sprintf("e-normal-%d", n+1), fmt.Sprintf("d%d", n%2), "t")
		}
	}
	come(a, "gw", "one", "e-normal-12", "d0", "t")
	come(a, "gw", "one", "e-normal-3", "d0", "t")
	for _, bad := range []string{"", "x", "e-normal", "e-normal-", "e-normal-x", "e-normal-0", "-normal-1", "e--1", "e!-normal-1", "e-normal-99999999999999999999", "e-normal-18446744073709551615", "e-normal-9007199254740992"} {
		come(a, "gw", "one", bad, "d0", "t")
	}
	r := a.report()
	if r.Messages != 34 || r.Received != 21 || r.Missing != 1 || r.Duplicates != 1 || r.Reordered != 0 || r.Unidentified != 12 || len(r.Lanes) != 2 {
		t.Errorf("%+v", r)
	}
	one := r.Lanes[0]
	if len(one.Devices) != 2 || *one.Devices[0] != (deviceAccount{Source: "d0", First: 1, Last: 12, Received: 6, Duplicates: 1}) ||
		*one.Devices[1] != (deviceAccount{Source: "d1", First: 2, Last: 10, Received: 5}) {
		t.Errorf("devices %+v %+v", one.Devices[0], one.Devices[1])
	}
}

// TestAccountIsBounded: whatever is published, ever new gateways, devices, gaps and announcements, the memory is bounded; what is
// missing is still counted.
func TestAccountIsBounded(t *testing.T) {
	a := newAccount(false, time.Now())
	const n = 250_000
	key := laneKey{"gw", "up", "normal"}
	for i := range n {
		come(a, "gw", "up", fmt.Sprintf("e-normal-%d", 2*i+1), fmt.Sprint("d", i%(2*maxDevices)), fmt.Sprint(i))
		if i%3 == 0 {
			a.announce(key, "e", uint64(2*i+2), uint64(2*i+2))
		}
	}
	for i := range 1000 {
		come(a, "gw", "up", fmt.Sprint("e-normal-", 2*n-1), fmt.Sprint("again", i), "t")
	}
	for i := range maxLanes / 2 {
		come(a, fmt.Sprint("gw", i), "up", "e-normal-1", "d", "t")
		come(a, "gw", "up", fmt.Sprintf("%s-urgent-1", strconv.FormatInt(int64(i), 36)), "d", "t")
		a.announce(laneKey{fmt.Sprint("said", i), "up", "normal"}, "e", 1, maxSequence)
	}
	come(a, strings.Repeat("x", 10_000), "up", "e-normal-1", "d", "t")
	come(a, "gw", "up", fmt.Sprint("e-normal-", 2*n-1), strings.Repeat("x", 10_000), "t")
	ranges, entries, devices, streams := 0, 0, 0, 0
	for _, l := range a.lanes {
		entries++
		ranges = max(ranges, len(l.missing.list), len(l.excused.list), len(l.announced.list))
		for _, e := range l.epochs {
			entries++
			devices += len(e.devices)
			streams += len(e.newest)
		}
	}
	if ranges > maxRangesKept || entries > maxLanes || devices > maxDevices+maxLanes || streams > maxStreams || a.beyond == 0 {
		t.Errorf("%d ranges, %d lanes and epochs, %d devices, %d streams, %d beyond", ranges, entries, devices, streams, a.beyond)
	}
	r := a.report()
	e := r.Lanes[slices.IndexFunc(r.Lanes, func(l laneReport) bool { return l.Gateway == "gw" && l.Lane == "normal" })]
	const holes, announced = n - 1, (n - 1 + 2) / 3
	if e.Received != n || e.Announced != announced || e.Missing != holes-announced || e.Duplicates != 1001 || e.Unsure != 0 || len(e.MissingRanges) > maxRangesListed {
		t.Errorf("received %d, missing %d, announced %d, duplicates %d, unsure %d", e.Received, e.Missing, e.Announced, e.Duplicates, e.Unsure)
	}
}

// TestAccountOfManyAnnouncements: nothing that a gateway announced is taken for a loss, however many ranges there are, and in
// whatever order they and the messages come.
func TestAccountOfManyAnnouncements(t *testing.T) {
	const block, blocks = 512, 200 // more ranges than are kept
	key := laneKey{"gw", "up", "normal"}
	say := func(a *account, from uint64) {
		for i := range uint64(block) {
			a.announce(key, "1", from+2*i+1, from+2*i+1)
		}
	}
	send := func(a *account, from uint64) {
		for i := range uint64(block) {
			come(a, "gw", "up", fmt.Sprintf("1-normal-%d", from+2*i), "d", "t")
		}
	}
	for name, play := range map[string]func(a *account, from uint64){
		"in front": func(a *account, from uint64) { say(a, from); send(a, from) },
		"behind":   func(a *account, from uint64) { send(a, from); say(a, from) },
		"far in front": func(a *account, from uint64) {
			if from == 1 {
				for i := range uint64(maxRangesKept / block) {
					say(a, from+2*block*i)
				}
			}
			if n := from + 2*maxRangesKept; n < 2*block*blocks {
				say(a, n)
			}
			send(a, from)
		},
		"twice": func(a *account, from uint64) { say(a, from); send(a, from); say(a, from) },
	} {
		a := newAccount(false, time.Now())
		for b := range uint64(blocks) {
			play(a, b*2*block+1)
		}
		r := a.report()
		if want := uint64(block*blocks - 1); r.Missing != 0 || r.Received != block*blocks || r.Announced+r.Unsure != want || name != "far in front" && r.Unsure != 0 {
			t.Errorf("%s: received %d, missing %d, announced %d of %d, unsure %d", name, r.Received, r.Missing, r.Announced, want, r.Unsure)
		}
	}
}

// TestAccountBeyondTheBounds: where more is announced, or missing, than is kept, what cannot be told any more is not said to be lost.
func TestAccountBeyondTheBounds(t *testing.T) {
	const n = 3 * maxRangesKept
	key := laneKey{"gw", "up", "normal"}
	for name, order := range map[string][2]bool{"announced long before": {true, false}, "announced long after": {false, true}} {
		a := newAccount(false, time.Now())
		come(a, "gw", "up", "1-normal-1", "d", "t")
		say := func() {
			for i := uint64(2); i < 2*n; i += 2 {
				a.announce(key, "1", i, i)
			}
		}
		if order[0] {
			say()
		}
		for i := uint64(3); i < 2*n; i += 2 {
			come(a, "gw", "up", fmt.Sprintf("1-normal-%d", i), "d", "t")
		}
		if order[1] {
			say()
		}
		r := a.report()
		if r.Missing != 0 || r.Announced+r.Unsure != n-1 || r.Announced < maxRangesKept/4 || r.Unsure == 0 {
			t.Errorf("%s: missing %d, announced %d, unsure %d of %d", name, r.Missing, r.Announced, r.Unsure, n-1)
		}
	}
}

// TestAccountOfALiveFirstDrain: verify comes when a gateway with live_first drains. What had left as fresh records before that is
// not missing; what is lost of the rest is, however far the clock of the gateway is off.
func TestAccountOfALiveFirstDrain(t *testing.T) {
	for _, off := range []time.Duration{0, -40 * 365 * 24 * time.Hour, 3 * time.Hour} {
		begun := time.Now()
		a := newAccount(true, begun)
		// The outage lasted an hour, with a record each second; then they came faster.
		made := func(n int) time.Time {
			if n <= 5000 {
				return begun.Add(off - 20*time.Second - time.Duration(5000-n)*time.Second)
			}
			return begun.Add(off + time.Duration(n-6000)*20*time.Millisecond)
		}
		now := begun
		see := func(n int) {
			if n == 4000 || n == 6500 || n == 8000 {
				return // lost
			}
			a.record(sighting{gateway: "gw", uplink: "up", seq: fmt.Sprintf("1-normal-%d", n), source: "d", topic: "t", made: made(n), arrived: now})
		}
		live := 6001
		for back := 3001; back <= 5000; back++ { // 5001 to 6000 left as fresh ones before
			see(back)
			now = now.Add(2 * time.Millisecond)
			for ; made(live).Add(-off).Add(10 * time.Millisecond).Before(now); live++ {
				see(live)
			}
		}
		// Another outage, of which verify saw the beginning: what is lost in it is missing.
		from := live
		now = now.Add(time.Minute)
		for n := live + 1000; n < live+3000; n++ {
			see(n)
			see(from)
			from++
		}
		r := a.report()
		if got := fmt.Sprint(r.Lanes[0].MissingRanges); got != "[[6500 6500] [8000 8000]]" || r.Missing != 2 || r.Earlier != 1001 {
			t.Errorf("off by %v: missing %d %s, earlier %d", off, r.Missing, got, r.Earlier)
		}
	}
}

// TestAges: marks stay few and good, and times that are none are passed over.
func TestAges(t *testing.T) {
	begun := time.Now()
	var a ages
	for _, far := range []time.Time{{}, time.UnixMilli(1<<48 - 1), time.UnixMilli(0).Add(-maxOff)} {
		a.note(1, far, begun)
	}
	if got := a.since(begun); got != math.MaxUint64 {
		t.Errorf("since %d without a time", got)
	}
	for n := range uint64(300_000) { // a hundred each second, and one in ten comes late
		at := begun.Add(time.Duration(n) * 10 * time.Millisecond)
		if n%10 == 3 {
			at = at.Add(time.Minute)
		}
		a.note(n+1, begun.Add(time.Duration(n)*10*time.Millisecond-time.Hour), at)
	}
	if got := a.since(begun); len(a.marks) > maxMarks || got < 200 || got > 202 {
		t.Errorf("%d marks, since %d", len(a.marks), got)
	}
	a.note(1_000_000, begun, begun.Add(time.Second)) // the first fresh one: all others are old
	if got := a.since(begun); got != math.MaxUint64 {
		t.Errorf("since %d, and all are old", got)
	}
}

// TestRanges holds the set against a map.
func TestRanges(t *testing.T) {
	for range 300 {
		var r ranges
		in := map[uint64]bool{}
		for range rand.IntN(60) {
			from := 1 + rand.Uint64N(90)
			to := from + rand.Uint64N(4)
			switch rand.IntN(6) {
			case 0:
				if got := r.remove(from); got != in[from] {
					t.Fatalf("remove(%d) is %t: %v", from, got, r.list)
				}
				delete(in, from)
			case 1:
				out := ranges{r.cut(from, to)}
				for n := from; n <= to; n++ {
					if i := out.at(n); (i < len(out.list) && out.list[i].from <= n) != in[n] {
						t.Fatalf("cut(%d, %d) is %v", from, to, out.list)
					}
					delete(in, n)
				}
			default:
				r.add(from, to)
				for n := from; n <= to; n++ {
					in[n] = true
				}
			}
		}
		for i, x := range r.list {
			if x.from > x.to || i > 0 && r.list[i-1].to+1 >= x.from {
				t.Fatalf("not in order, or touching: %v", r.list)
			}
		}
		first, last := 1+rand.Uint64N(50), 51+rand.Uint64N(60)
		inside := ranges{r.within(first, last)}
		outside := ranges{without(first, last, inside.list)}
		for n := uint64(1); n < 110; n++ {
			has := func(r ranges) bool { i := r.at(n); return i < len(r.list) && r.list[i].from <= n }
			within := n >= first && n <= last
			if has(r) != in[n] || has(inside) != (within && in[n]) || has(outside) != (within && !in[n]) {
				t.Fatalf("%d: %v; of %d to %d inside %v, outside %v", n, r.list, first, last, inside.list, outside.list)
			}
		}
		if got := countOf(r.list); got != uint64(len(in)) {
			t.Fatalf("count %d, want %d", got, len(in))
		}
	}
}
