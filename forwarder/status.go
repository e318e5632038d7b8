package forwarder

import (
	"time"

	"tidegate/forwarder/pipeline"
)

// UplinkStatus is what `tidegate status` shows of an uplink.
type UplinkStatus struct {
	Name      string  `json:"name"`
	Connected bool    `json:"connected"`
	Server    string  `json:"server"`
	InFlight  int64   `json:"in_flight"`
	Window    int     `json:"window"`  // how many messages may be in flight; 0: not known
	Granted   int     `json:"granted"` // what the broker announced of it; 0: nothing
	Records   uint64  `json:"records"`
	Bytes     int64   `json:"bytes"`
	OldestS   float64 `json:"oldest_s"` // age of the oldest record in the buffer
	Delivered uint64  `json:"delivered"`
	Evicted   uint64  `json:"evicted"`
	Dead      uint64  `json:"dead"` // dead letters kept
	// LastError is the alarm while sending pauses, else the connection's last error.
	LastError string `json:"last_error"`
	Note      string `json:"note,omitempty"` // how it stands with the servers in front of the one in use
}

// Status returns a look at every uplink, in name order.
func (f *Forwarder) Status() []UplinkStatus {
	outs := f.outputs()
	out := make([]UplinkStatus, 0, len(outs))
	for _, o := range outs {
		out = append(out, o.status(f.ledger, time.Now()))
	}
	return out
}

func (o *output) status(l *ledger, now time.Time) UplinkStatus {
	link := o.uplink.Status()
	s := UplinkStatus{
		Name: o.name, Connected: link.Connected, Server: link.Server, Window: link.Window, Granted: link.Granted, LastError: link.LastError,
		Note:      link.Note,
		InFlight:  o.drain.inFlight.Load(),
		Delivered: l.total(o.index, placeDelivered),
		Evicted:   l.total(o.index, placeEvicted),
		Dead:      o.dead.queue.Stats().Records,
	}
	if alarm := o.drain.alarmText(); alarm != "" {
		s.LastError = alarm
	}
	for lane := range pipeline.Lanes {
		st := o.queues[lane].Stats()
		s.Records += st.Records
		s.Bytes += st.Bytes
		if !st.Oldest.IsZero() {
			s.OldestS = max(s.OldestS, now.Sub(st.Oldest).Seconds())
		}
	}
	return s
}
