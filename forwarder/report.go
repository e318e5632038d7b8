package forwarder

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"tidegate/buffer"
	"tidegate/forwarder/pipeline"
	"tidegate/message"
)

// gapKey is what the sequences of a report have in common.
type gapKey struct {
	epoch  uint64
	lane   pipeline.Lane
	reason string
}

// gapReport tells sequences of one lane that will never come, all for one reason.
type gapReport struct {
	gapKey
	lost runs

	// What follows belongs to the gaps it is kept in.

	// uncounted of the sequences were given up while no gateway ran (purge.go), so no ledger has them.
	uncounted uint64

	stored  []buffer.Seq // where it is on disk, or a part of it
	unsaved bool         // not all of it is
	over    bool         // it is needed no more
}

// gapText is a report as it is sent and kept.
type gapText struct {
	Epoch  string `json:"epoch"`
	Lane   string `json:"lane"`
	Reason string `json:"reason"`
	// Count adds up Ranges, which hold the first and the last sequence of each, ascending.
	Count  uint64      `json:"count"`
	Ranges [][2]uint64 `json:"ranges"`
	// Uncounted is only kept, never sent.
	Uncounted uint64 `json:"uncounted,omitempty"`
}

// MarshalJSON writes the payload of a report.
func (g *gapReport) MarshalJSON() ([]byte, error) {
	t := gapText{Epoch: epochText(g.epoch), Lane: g.lane.String(), Reason: g.reason, Ranges: make([][2]uint64, 0, len(g.lost.list)), Uncounted: g.uncounted}
	for _, r := range g.lost.list {
		t.Count += uint64(r.to-r.from) + 1
		t.Ranges = append(t.Ranges, [2]uint64{uint64(r.from), uint64(r.to)})
	}
	return json.Marshal(t)
}

// readGapReport reads what MarshalJSON wrote.
func readGapReport(b []byte) (*gapReport, error) {
	var t gapText
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, fmt.Errorf("read gap report: %w", err)
	}
	epoch, err := strconv.ParseUint(t.Epoch, 36, 64)
	if err != nil || len(t.Ranges) == 0 {
		return nil, fmt.Errorf("read gap report: epoch %q with %d ranges", t.Epoch, len(t.Ranges))
	}
	g := &gapReport{gapKey: gapKey{epoch: epoch, reason: t.Reason}, uncounted: t.Uncounted}
	last := uint64(0)
	for _, r := range t.Ranges {
		if r[0] <= last || r[1] < r[0] || last > 0 && r[0] == last+1 {
			return nil, fmt.Errorf("read gap report: %d to %d is no range behind %d", r[0], r[1], last)
		}
		last = r[1]
		g.lost.list = append(g.lost.list, run{buffer.Seq(r[0]), buffer.Seq(r[1])})
	}
	for lane := range pipeline.Lanes {
		if lane.String() == t.Lane {
			g.lane = lane
			return g, nil
		}
	}
	return nil, fmt.Errorf("read gap report: there is no lane %q", t.Lane)
}

// reportMessage makes the message that announces a gap to the cloud.
func (d *drain) reportMessage(r *gapReport) (message.Message, error) {
	payload, err := r.MarshalJSON()
	if err != nil {
		return message.Message{}, fmt.Errorf("write gap report: %w", err)
	}
	return message.Message{
		ID: message.NewID(), Topic: "tidegate/" + d.gateway + "/uplink/" + d.out.name + "/gaps", Payload: payload, QoS: 1,
		ContentType: "application/json", PayloadUTF8: true, Received: time.Now(),
		Source: message.Source{Protocol: message.Self, Client: d.gateway},
	}, nil
}

// sendReport announces a gap. The report is no record: nothing is counted, and it has no sequence.
func (s *stream) sendReport(ctx context.Context, r *gapReport) bool {
	f := &flight{report: r}
	m, err := s.d.reportMessage(r)
	if err != nil {
		s.d.log.Error("writing a gap report failed", "err", err)
		return true
	}
	s.window.add(f)
	s.pending = true
	id := Identity{ID: m.ID.String(), Source: s.d.gateway}
	if err := s.link.Send(ctx, m, id, func(err error) { s.answers.put(f, err) }); err != nil {
		s.settleReport(f, err)
		return judge(err) != gone || s.unusable(ctx, err)
	}
	return true
}

// settleReport handles the answer to a gap report. A cloud that does not want it must not stop the records.
func (s *stream) settleReport(f *flight, err error) {
	v := judge(err)
	if v == gone {
		s.d.out.gaps.failed(f.report, 0) // pending stays: the report was in flight when the link was lost
		s.window.answer(f)
		return
	}
	s.window.answer(f)
	s.pending = false
	if v == accepted {
		s.d.out.gaps.arrived(f.report)
		return
	}
	s.d.log.Warn("the cloud refused a report of records that will not come", "err", err)
	s.d.out.gaps.failed(f.report, gapRetry)
}
