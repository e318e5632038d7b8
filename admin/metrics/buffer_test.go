package metrics

import (
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/buffer"
)

// gather returns every sample as "name{label=value,...}" with its value, and the names.
func gather(t *testing.T, reg *prometheus.Registry) (samples map[string]float64, names map[string]bool) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	samples, names = map[string]float64{}, map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			key := f.GetName() + "{" + strings.Join(labels, ",") + "}"
			switch {
			case m.GetGauge() != nil:
				samples[key] = m.GetGauge().GetValue()
			case m.GetCounter() != nil:
				samples[key] = m.GetCounter().GetValue()
			case m.GetHistogram() != nil:
				samples[key] = float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return samples, names
}

func TestBufferMetrics(t *testing.T) {
	reg := NewRegistry()
	b := NewBuffer(reg)
	if _, names := gather(t, reg); !names["tidegate_buffer_fsync_seconds"] {
		t.Error("no metrics before the log is open")
	}
	var asked atomic.Int64 // the machine ages by a second whenever it is asked
	clock := func() (uint64, time.Duration) { return 1, time.Duration(asked.Add(1)) * time.Second }
	l, err := buffer.Open(t.TempDir(), buffer.Options{OnSync: b.OnSync, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b.Watch(l)
	for name, n := range map[string]int{"uplink/cloud/normal": 3, "uplink/cloud/urgent": 0, "dead/cloud": 1, "commands/cloud": 2, "session/x": 5} {
		q, err := l.Queue(name, buffer.QueueOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			pos, err := l.Append(buffer.Record{Queue: q, Data: []byte("payload")})
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Wait(t.Context(), pos); err != nil {
				t.Fatal(err)
			}
		}
	}
	samples, names := gather(t, reg)
	for key, want := range map[string]float64{
		"tidegate_buffer_records{lane=normal,uplink=cloud}":   3,
		"tidegate_buffer_records{lane=urgent,uplink=cloud}":   0,
		"tidegate_buffer_bytes{lane=urgent,uplink=cloud}":     0,
		"tidegate_buffer_dead_letters{uplink=cloud}":          1,
		"tidegate_buffer_damaged_records_total{uplink=cloud}": 0,
		"tidegate_buffer_writable{}":                          1,
	} {
		if samples[key] != want {
			t.Errorf("%s is %v, want %v", key, samples[key], want)
		}
	}
	for _, key := range []string{
		"tidegate_buffer_bytes{lane=normal,uplink=cloud}", "tidegate_buffer_written_bytes_total{}",
		"tidegate_buffer_disk_bytes{}", "tidegate_buffer_fsync_seconds{}", "tidegate_buffer_oldest_seconds{uplink=cloud}",
	} {
		if samples[key] <= 0 {
			t.Errorf("%s is %v", key, samples[key])
		}
	}
	good := regexp.MustCompile(`^(tidegate|go|process)_[a-z0-9_]+$`)
	for name := range names {
		if !good.MatchString(name) {
			t.Errorf("metric %s", name)
		}
	}
}

func TestSplitQueue(t *testing.T) {
	for name, want := range map[string]struct {
		uplink, lane string
		kind         Kind
	}{
		"uplink/cloud/normal": {"cloud", "normal", Lane},
		"dead/cloud":          {"cloud", "", DeadLetters},
		"commands/cloud":      {"cloud", "", Identities},
		"commands/":           {"", "", Other},
		"session/x":           {"", "", Other},
		"uplink/cloud":        {"", "", Other},
		"dead/":               {"", "", Other},
		"":                    {"", "", Other},
	} {
		uplink, lane, kind := SplitQueue(name)
		if uplink != want.uplink || lane != want.lane || kind != want.kind {
			t.Errorf("%q: %q %q %v", name, uplink, lane, kind)
		}
	}
}
