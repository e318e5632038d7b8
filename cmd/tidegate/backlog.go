package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"tidegate/admin/metrics"
	"tidegate/buffer"
	"tidegate/config"
	"tidegate/edge/session"
	"tidegate/forwarder"
	"tidegate/message/envelope"
)

// What the buffer commands show, made from an open log: that of the running gateway (behind the socket) or one that was
// opened on the files of a stopped one.

// queueRow is one line of `buffer ls`: one lane of one uplink.
type queueRow struct {
	Uplink   string `json:"uplink"`
	Lane     string `json:"lane"`
	Records  uint64 `json:"records"`
	Bytes    int64  `json:"bytes"`
	FirstSeq uint64 `json:"first_seq"` // 0: no record
	LastSeq  uint64 `json:"last_seq"`
	// Oldest and Newest are times of arrival; null without a record.
	Oldest   *time.Time `json:"oldest"`
	Newest   *time.Time `json:"newest"`
	Segments int        `json:"segments"`
	Damaged  uint64     `json:"damaged"` // records lost to damage
	// Keys counts the records by the name of the key they are encrypted with; absent if none is.
	Keys map[string]uint64 `json:"keys,omitempty"`
	// DeadKeys does so for the dead letters of the uplink, on its normal lane.
	DeadKeys map[string]uint64 `json:"dead_keys,omitempty"`
	// CommandKeys does so for the identities of its commands, likewise.
	CommandKeys map[string]uint64 `json:"command_keys,omitempty"`
	// Configured says that the configuration has the uplink; others were left by an earlier one.
	Configured bool `json:"configured"`
}

func listQueues(l *buffer.Log, uplinks map[string]config.Uplink) []queueRow {
	rows := []queueRow{}
	dead, commands := map[string]map[string]uint64{}, map[string]map[string]uint64{}
	queues := l.Queues()
	for _, q := range queues {
		switch uplink, _, kind := metrics.SplitQueue(q.Name); kind {
		case metrics.DeadLetters:
			dead[uplink] = q.Keys
		case metrics.Identities:
			commands[uplink] = q.Keys
		}
	}
	for _, q := range queues {
		uplink, lane, kind := metrics.SplitQueue(q.Name)
		if kind != metrics.Lane {
			continue
		}
		_, configured := uplinks[uplink]
		rows = append(rows, queueRow{
			Uplink: uplink, Lane: lane, Records: q.Records, Bytes: q.Bytes, FirstSeq: uint64(q.First), LastSeq: uint64(q.Last),
			Oldest: timeOrNull(q.Oldest), Newest: timeOrNull(q.Newest), Segments: q.Segments, Damaged: q.Damaged, Configured: configured, Keys: q.Keys,
		})
		if lane == "normal" {
			rows[len(rows)-1].DeadKeys, rows[len(rows)-1].CommandKeys = dead[uplink], commands[uplink]
		}
	}
	return rows
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// selection picks queues. Empty: all of them.
type selection struct {
	uplink, lane string
	dead         bool // the dead letters instead of the lanes
	sessions     bool // what is stored of sessions instead of the uplinks' records
	letters      forwarder.DeadSelection
}

// pick returns the selected queues by name. It is an error when uplink names none.
func (s selection) pick(l *buffer.Log) ([]*buffer.Queue, error) {
	var picked []*buffer.Queue
	if s.sessions {
		for _, name := range session.Queues() {
			if q := l.Lookup(name); q != nil {
				picked = append(picked, q)
			}
		}
		return picked, nil
	}
	var known []string
	for _, st := range l.Queues() {
		uplink, lane, kind := metrics.SplitQueue(st.Name)
		if kind == metrics.Other || kind == metrics.Identities || s.dead != (kind == metrics.DeadLetters) {
			continue
		}
		if !slices.Contains(known, uplink) {
			known = append(known, uplink)
		}
		if s.uplink != "" && s.uplink != uplink || s.lane != "" && s.lane != lane {
			continue
		}
		if q := l.Lookup(st.Name); q != nil {
			picked = append(picked, q)
		}
	}
	if s.uplink != "" && !slices.Contains(known, s.uplink) {
		return nil, fmt.Errorf("no uplink %q in the buffer, which has %q", s.uplink, known)
	}
	return picked, nil
}

// exportRecords writes the selected records as JSON lines, each queue in its order. A record that cannot be decoded is
// left out; the error says how many there were.
func exportRecords(l *buffer.Log, s selection, w io.Writer) error {
	queues, err := s.pick(l)
	if err != nil {
		return err
	}
	var line []byte
	var unread []error
	unreadable := 0
	for _, q := range queues {
		uplink, lane, _ := metrics.SplitQueue(q.Name())
		var failed error
		err := q.Scan(0, func(r buffer.Rec) bool {
			row, err := readRow(r, uplink, lane)
			if err != nil {
				unreadable++
				return true
			}
			line = row.Append(line[:0])
			_, failed = w.Write(line)
			return failed == nil
		})
		if failed != nil {
			return fmt.Errorf("export %s: %w", q.Name(), failed)
		}
		if err != nil { // the others can be read all the same
			unread = append(unread, fmt.Errorf("export %s: %w", q.Name(), err))
		}
	}
	if unreadable > 0 {
		unread = append(unread, fmt.Errorf("%d records could not be decoded and were left out", unreadable))
	}
	return errors.Join(unread...)
}

// readRow makes the line of one record, the same as in a batch; the lane of a dead letter is empty.
func readRow(r buffer.Rec, uplink, lane string) (envelope.Record, error) {
	read := forwarder.ReadRecord
	if lane == "" {
		read, lane = forwarder.ReadDeadLetter, "dead"
	}
	s, err := read(r.Data)
	if err != nil {
		return envelope.Record{}, err
	}
	row := envelope.Of(&s.Message, forwarder.SequenceText(r.Epoch, lane, r.Seq))
	row.Reason, row.Uplink, row.Route = s.Reason, uplink, s.Route
	return row, nil
}

// verifyReport is what `buffer verify` found.
type verifyReport struct {
	Segments uint64      `json:"segments"`
	Frames   uint64      `json:"frames"`
	Records  uint64      `json:"records"`
	Bytes    int64       `json:"bytes"`
	Locked   uint64      `json:"locked,omitempty"` // encrypted records of which only the checksums were checked
	Damage   []damageRow `json:"damage"`           // empty, never null
}

type damageRow struct {
	Segment string `json:"segment,omitempty"`
	Offset  int64  `json:"offset"`
	Bytes   int64  `json:"bytes"`
	Queue   string `json:"queue,omitempty"`
	Records uint64 `json:"records"` // lost ones, where known
	Error   string `json:"error"`
}

func verifyLog(l *buffer.Log) (verifyReport, error) {
	r, err := l.Verify()
	v := verifyReport{Segments: r.Segments, Frames: r.Frames, Records: r.Records, Bytes: r.Bytes, Locked: r.Locked, Damage: []damageRow{}}
	for _, d := range r.Damage {
		row := damageRow{Segment: d.Segment, Offset: d.Offset, Bytes: d.Bytes, Queue: d.Queue, Records: d.Records}
		if d.Err != nil {
			row.Error = d.Err.Error()
		}
		v.Damage = append(v.Damage, row)
	}
	return v, err
}

// purgedRow says how many records of a queue were given up.
type purgedRow struct {
	Uplink  string `json:"uplink"`
	Lane    string `json:"lane"`
	Records uint64 `json:"records"`
}

// purgeQueues gives up what is in the selected queues by giveUp: what runs a queue counts what it loses, on a stopped gateway
// somebody has to note it.
func purgeQueues(l *buffer.Log, s selection, giveUp func(*buffer.Queue) (uint64, error)) ([]purgedRow, error) {
	queues, err := s.pick(l)
	rows := []purgedRow{}
	for _, q := range queues {
		uplink, lane, kind := metrics.SplitQueue(q.Name())
		if kind == metrics.Other {
			uplink, lane, _ = strings.Cut(q.Name(), "/")
		}
		n, e := giveUp(q)
		rows = append(rows, purgedRow{uplink, lane, n})
		err = errors.Join(err, e)
	}
	return rows, err
}

// deadRow says what became of the dead letters of one uplink.
type deadRow struct {
	Uplink  string `json:"uplink"`
	Letters uint64 `json:"letters"`       // resent or discarded
	Kept    uint64 `json:"kept"`          // cannot be sent
	Why     string `json:"why,omitempty"` // of the first one that is kept
}

// eachDead does something with the selected dead letters of every uplink that has some. Rows tell what was done, also where an
// error ended it.
func eachDead(l *buffer.Log, s selection, do func(uplink string, q *buffer.Queue) (forwarder.DeadResult, error)) ([]deadRow, error) {
	queues, err := s.pick(l)
	rows := []deadRow{}
	if err == nil {
		err = s.oneUplink(queues)
	}
	if err != nil {
		return rows, err
	}
	var found uint64
	for _, q := range queues {
		uplink, _, _ := metrics.SplitQueue(q.Name())
		if q.Stats().Records == 0 {
			continue
		}
		r, e := do(uplink, q)
		rows = append(rows, deadRow{uplink, r.Done, r.Kept, r.Why})
		found += r.Done + r.Kept
		if e != nil {
			err = errors.Join(err, fmt.Errorf("uplink %s, behind %d dead letters: %w", uplink, r.Done, e))
		}
	}
	if err == nil && found == 0 && s.letters != (forwarder.DeadSelection{}) {
		err = errors.New("no dead letter is the one that was named; tidegate buffer dead ls lists them")
	}
	return rows, err
}

// oneUplink refuses a sequence that dead letters of several uplinks have: each uplink counts its own.
func (s selection) oneUplink(queues []*buffer.Queue) error {
	if s.letters.Seq == "" || s.uplink != "" {
		return nil
	}
	var have []string
	for _, q := range queues {
		// Of one that cannot be read nothing is resent or discarded by its sequence.
		if n, _ := forwarder.CountDead(q, s.letters); n > 0 {
			uplink, _, _ := metrics.SplitQueue(q.Name())
			have = append(have, uplink)
		}
	}
	if len(have) > 1 {
		return fmt.Errorf("dead letters of the uplinks %s have the sequence %s, and none was touched; say which with --uplink",
			strings.Join(have, ", "), s.letters.Seq)
	}
	return nil
}
