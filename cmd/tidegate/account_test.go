package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestAccount has a stream of arrivals for every finding. An arrival is LANE+N, of device d on topic t; d2:normal5 is of another
// device, gap:normal5-7 an announcement, and e2: in front of a lane says that it is of a later epoch.
func TestAccount(t *testing.T) {
	for _, c := range []struct {
		name, arrivals string
		// The line is RECEIVED missing RANGES announced RANGES duplicates N reordered N, for each lane.
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
		{"the first comes late", "normal7 normal5", "2 missing [[6 6]] announced [] duplicates 0 reordered 1"},
		{
			"an epoch goes on", "normal5 normal6 e2:normal7 e2:normal8",
			"2 missing [] announced [] duplicates 0 reordered 0; 2 missing [] announced [] duplicates 0 reordered 0",
		},
		{
			"lost between epochs", "normal5 normal6 e2:normal9 gap:normal7-7",
			"2 missing [] announced [] duplicates 0 reordered 0; 1 missing [[8 8]] announced [[7 7]] duplicates 0 reordered 0",
		},
		{
			"an epoch takes numbers again", "normal5 normal6 normal7 e2:normal7 e2:normal8",
			"3 missing [] announced [] duplicates 0 reordered 0; 2 missing [] announced [] duplicates 0 reordered 0",
		},
	} {
		a := newAccount()
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
				a.announce(laneKey{"gw", "up", epoch, lane}, f, l)
				continue
			}
			a.record("gw", "up", epoch+"-"+lane+"-"+number, device, topic)
		}
		var got []string
		r := a.report()
		for _, l := range r.Lanes {
			got = append(got, fmt.Sprintf("%d missing %v announced %v duplicates %d reordered %d", l.Received, l.MissingRanges, l.AnnouncedRanges, l.Duplicates, l.Reordered))
		}
		if text := strings.Join(got, "; "); text != c.want {
			t.Errorf("%s: %s\ngot  %s\nwant %s", c.name, c.arrivals, text, c.want)
		}
	}
}

// TestAccountSums: totals and devices; what has no identity is counted apart.
func TestAccountSums(t *testing.T) {
	a := newAccount()
	for _, up := range []string{"one", "two"} { // the same sequences of two uplinks
		for n := range 10 {
			a.record("gw", up, fmt.Sprintf("e-normal-%d", n+1), fmt.Sprintf("d%d", n%2), "t")
		}
	}
	a.record("gw", "one", "e-normal-12", "d0", "t")
	a.record("gw", "one", "e-normal-3", "d0", "t")
	for _, bad := range []string{"", "x", "e-normal", "e-normal-", "e-normal-x", "e-normal-0", "-normal-1", "e--1", "e!-normal-1", "e-normal-99999999999999999999"} {
		a.record("gw", "one", bad, "d0", "t")
	}
	r := a.report()
	if r.Messages != 32 || r.Received != 21 || r.Missing != 1 || r.Duplicates != 1 || r.Reordered != 0 || r.Unidentified != 10 || len(r.Lanes) != 2 {
		t.Errorf("%+v", r)
	}
	one := r.Lanes[0]
	if len(one.Devices) != 2 || *one.Devices[0] != (deviceAccount{Source: "d0", First: 1, Last: 12, Received: 6, Duplicates: 1}) ||
		*one.Devices[1] != (deviceAccount{Source: "d1", First: 2, Last: 10, Received: 5}) {
		t.Errorf("devices %+v %+v", one.Devices[0], one.Devices[1])
	}
}

// TestAccountIsBounded: a stream of which every other message is missing, out of order, from ever new devices and gateways,
// does not fill the memory, and what is missing is still counted.
func TestAccountIsBounded(t *testing.T) {
	a := newAccount()
	const n = 400_000
	for i := range n {
		a.record("gw", "up", fmt.Sprintf("e-normal-%d", 2*i+1), fmt.Sprint("d", i%50_000), "t")
		if i%3 == 0 {
			a.announce(laneKey{"gw", "up", "e", "normal"}, uint64(2*i+2), uint64(2*i+2))
		}
	}
	for i := range 2 * maxLanes {
		a.record(fmt.Sprint("gw", i), "up", "e-normal-1", "d", "t")
	}
	l := a.lanes[laneKey{"gw", "up", "e", "normal"}]
	if len(l.got.list) > maxRangesKept || len(l.announced.list) > maxRangesKept || len(l.settled.list) > maxRangesKept ||
		len(l.devices) > maxStreams+1 || len(l.newest) > maxStreams || len(a.lanes) > maxLanes {
		t.Errorf("%d, %d, %d ranges, %d devices, %d streams, %d lanes", len(l.got.list), len(l.announced.list), len(l.settled.list),
			len(l.devices), len(l.newest), len(a.lanes))
	}
	r := a.report()
	e := r.Lanes[0]
	const holes, announced = n - 1, (n - 1 + 2) / 3
	if e.Received != n || e.Announced != announced || e.Missing != holes-announced || e.Duplicates != 0 || len(e.MissingRanges) > maxRangesListed {
		t.Errorf("received %d, missing %d, announced %d, duplicates %d", e.Received, e.Missing, e.Announced, e.Duplicates)
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
			r.add(from, to)
			for n := from; n <= to; n++ {
				in[n] = true
			}
		}
		for i, x := range r.list {
			if x.from > x.to || i > 0 && r.list[i-1].to+1 >= x.from {
				t.Fatalf("not in order, or touching: %v", r.list)
			}
		}
		first, last := 1+rand.Uint64N(50), 40+rand.Uint64N(60)
		holes := ranges{r.holes(first, last)}
		for n := uint64(1); n < 110; n++ {
			if r.has(n) != in[n] {
				t.Fatalf("has(%d) is %t: %v", n, r.has(n), r.list)
			}
			if want := n >= first && n <= last && !in[n]; holes.has(n) != want {
				t.Fatalf("hole of %d to %d at %d is %t: %v in %v", first, last, n, holes.has(n), holes.list, r.list)
			}
		}
		if got := r.count(); got != uint64(len(in)) {
			t.Fatalf("count %d, want %d", got, len(in))
		}
		all := ranges{[]numbers{{1, 200}}}
		rest := all.without(r)
		for _, x := range r.list {
			rest.add(x.from, x.to)
		}
		if !slices.Equal(rest.list, all.list) {
			t.Fatalf("without: %v", rest.list)
		}
	}
}
