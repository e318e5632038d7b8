package main

import (
	"errors"
	"fmt"
	"io"

	"tidegate/admin/metrics"
	"tidegate/buffer"
)

// purgeLocked gives up, on a stopped gateway, the identities of commands whose key nobody has: the gateway would not start over them.
// Those that can be read are kept, whatever else is purged of the uplink: without them commands could be repeated. It says so on w.
func purgeLocked(w io.Writer, l *buffer.Log, s selection) error {
	if s.lane != "" {
		return nil
	}
	var errs []error
	for _, st := range l.Queues() {
		uplink, _, kind := metrics.SplitQueue(st.Name)
		q := l.Lookup(st.Name)
		if kind != metrics.Identities || s.uplink != "" && s.uplink != uplink || q == nil {
			continue
		}
		switch err := q.Scan(0, func(buffer.Rec) bool { return true }); {
		case errors.As(err, new(*buffer.KeyError)):
			fmt.Fprintf(w, "%s: %d identities of commands purged, their key is not configured: such commands can be repeated\n", uplink, q.Purge())
		case err != nil:
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
