package main

import (
	"cmp"
	"slices"
)

// laneReport is what an account says of one lane in one epoch. Sequences go on from one epoch to the next; what is missing between
// two is missing in the later one.
type laneReport struct {
	Gateway string `json:"gateway"` // empty: the messages do not tell
	Uplink  string `json:"uplink"`
	Epoch   string `json:"epoch"`
	Lane    string `json:"lane"`
	First   uint64 `json:"first"` // received
	Last    uint64 `json:"last"`
	// Received are without duplicates. Missing and Announced did not come; Announced will not, as the gateway said.
	Received        uint64      `json:"received"`
	Missing         uint64      `json:"missing"`
	MissingRanges   [][2]uint64 `json:"missing_ranges"` // the first thousand
	Announced       uint64      `json:"announced"`
	AnnouncedRanges [][2]uint64 `json:"announced_ranges"`
	// Earlier did not come and may have come before the watch began.
	Earlier uint64 `json:"earlier"`
	// Unsure did not come, and there were more gaps than are kept: whether they were announced is not known.
	Unsure     uint64           `json:"unsure"`
	Duplicates uint64           `json:"duplicates"`
	Reordered  uint64           `json:"reordered"`
	Devices    []*deviceAccount `json:"devices"`
}

// accountReport is all of an account.
type accountReport struct {
	Messages     uint64       `json:"messages"` // with duplicates
	Batches      uint64       `json:"batches"`
	Received     uint64       `json:"received"`
	Missing      uint64       `json:"missing"`
	Announced    uint64       `json:"announced"`
	Earlier      uint64       `json:"earlier"`
	Unsure       uint64       `json:"unsure"`
	Duplicates   uint64       `json:"duplicates"`
	Reordered    uint64       `json:"reordered"`
	Unidentified uint64       `json:"unidentified"` // messages without an identity: nothing is known of them
	Unreadable   uint64       `json:"unreadable"`   // batches and gap reports
	Beyond       uint64       `json:"beyond"`       // messages and announcements of more lanes and epochs than are watched
	Lanes        []laneReport `json:"lanes"`
}

// report sums up. Lanes are in order of gateway, uplink, lane and epoch, in which a gateway's epochs rise.
func (a *account) report() accountReport {
	r := accountReport{
		Messages: a.messages, Batches: a.batches, Unidentified: a.unidentified, Unreadable: a.unreadable, Beyond: a.beyond, Lanes: []laneReport{},
	}
	lanes := make([]*laneAccount, 0, len(a.lanes))
	for _, l := range a.lanes {
		lanes = append(lanes, l)
	}
	slices.SortFunc(lanes, func(x, y *laneAccount) int {
		return cmp.Or(cmp.Compare(x.gateway, y.gateway), cmp.Compare(x.uplink, y.uplink), cmp.Compare(x.lane, y.lane))
	})
	for _, l := range lanes {
		for _, e := range l.report(a.since(l)) {
			r.Received += e.Received
			r.Missing += e.Missing
			r.Announced += e.Announced
			r.Earlier += e.Earlier
			r.Unsure += e.Unsure
			r.Duplicates += e.Duplicates
			r.Reordered += e.Reordered
			r.Lanes = append(r.Lanes, e)
		}
	}
	return r
}

// report sums up the epochs of one lane.
func (l *laneAccount) report(since uint64) []laneReport {
	if len(l.epochs) == 0 {
		// Nothing came, so all that is known is what was announced.
		r := l.row(l.said)
		r.Announced, r.AnnouncedRanges = countOf(l.announced.list), pairs(l.announced.list)
		return []laneReport{r}
	}
	epochs := make([]*epochAccount, 0, len(l.epochs))
	for _, e := range l.epochs {
		epochs = append(epochs, e)
	}
	slices.SortFunc(epochs, func(x, y *epochAccount) int {
		return cmp.Or(cmp.Compare(len(x.name), len(y.name)), cmp.Compare(x.name, y.name))
	})
	var rows []laneReport
	from := l.low
	for i, e := range epochs {
		r := l.row(e.name)
		e.fill(&r)
		if i == 0 { // where in the lane they were is not known
			r.Missing, r.Unsure, r.Announced = l.lost(since)-countOf(l.missing.within(since, maxSequence)), l.unsure(), l.unlisted
		}
		if e.last >= from {
			missing := l.missing.within(max(from, since), e.last)
			excused := l.excused.within(from, e.last)
			r.Missing += countOf(missing)
			r.MissingRanges = pairs(missing)
			r.Announced += countOf(excused)
			r.AnnouncedRanges = pairs(excused)
			if since > from {
				r.Earlier = countOf(l.missing.within(from, min(e.last, since-1)))
			}
			from = e.last + 1
		}
		rows = append(rows, r)
	}
	return rows
}

func (l *laneAccount) row(epoch string) laneReport {
	return laneReport{
		Gateway: l.gateway, Uplink: l.uplink, Epoch: epoch, Lane: l.lane, Devices: []*deviceAccount{},
		MissingRanges: [][2]uint64{}, AnnouncedRanges: [][2]uint64{},
	}
}

// fill writes what an epoch knows of itself.
func (e *epochAccount) fill(r *laneReport) {
	r.First, r.Last, r.Received, r.Duplicates = e.first, e.last, e.received, e.duplicates
	for _, d := range e.devices {
		r.Reordered += d.Reordered
		r.Devices = append(r.Devices, d)
	}
	slices.SortFunc(r.Devices, func(x, y *deviceAccount) int { return cmp.Compare(x.Source, y.Source) })
}
