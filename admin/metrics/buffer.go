package metrics

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/buffer"
)

// Buffer turns what the buffer tells of itself into metrics: its Stats when somebody scrapes, and the time of every fsync
// as it happens. It is made before the log is opened, as the log reports from the beginning.
type Buffer struct {
	log   atomic.Pointer[buffer.Log]
	fsync prometheus.Histogram

	records, bytes, oldest, dead, damaged *prometheus.Desc
	written, payload, relocated, disk     *prometheus.Desc
	writable, noSpace                     *prometheus.Desc
}

// NewBuffer registers the buffer's metrics.
func NewBuffer(reg prometheus.Registerer) *Buffer {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tidegate_buffer_"+name, help, labels, nil)
	}
	b := &Buffer{
		fsync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidegate_buffer_fsync_seconds", Help: "Duration of each fsync of the log.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 17), // 0.1 ms to 6.6 s
		}),
		records:   desc("records", "Records stored for an uplink.", "uplink", "lane"),
		bytes:     desc("bytes", "Bytes that the stored records count for against max_bytes.", "uplink", "lane"),
		oldest:    desc("oldest_seconds", "Age of the oldest stored record; 0 when there is none.", "uplink"),
		dead:      desc("dead_letters", "Dead letters kept for an uplink.", "uplink"),
		damaged:   desc("damaged_records_total", "Records lost to damage on disk.", "uplink"),
		written:   desc("written_bytes_total", "Bytes given to the disk for the log, in whole pages, the zeros of new segments included."),
		payload:   desc("payload_bytes_total", "Bytes of the records written; written_bytes / payload_bytes is the wear of the disk."),
		relocated: desc("relocated_bytes_total", "Bytes of them that only moved old records."),
		disk:      desc("disk_bytes", "Size of the log's files."),
		writable:  desc("writable", "1 while the disk takes records, 0 while it fails."),
		noSpace:   desc("no_space", "1 while the disk is full: old records are evicted or new ones refused."),
	}
	reg.MustRegister(b.fsync, b)
	return b
}

// OnSync is buffer.Options.OnSync.
func (b *Buffer) OnSync(d time.Duration) { b.fsync.Observe(d.Seconds()) }

// Watch makes l the log that is collected from.
func (b *Buffer) Watch(l *buffer.Log) { b.log.Store(l) }

// Describe implements prometheus.Collector.
func (b *Buffer) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		b.records, b.bytes, b.oldest, b.dead, b.damaged, b.written, b.payload, b.relocated, b.disk, b.writable, b.noSpace,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (b *Buffer) Collect(ch chan<- prometheus.Metric) {
	l := b.log.Load()
	if l == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	s := l.Stats()
	counter(b.written, float64(s.WrittenBytes))
	counter(b.payload, float64(s.PayloadBytes))
	counter(b.relocated, float64(s.RelocatedBytes))
	gauge(b.disk, float64(s.Bytes))
	writable := 1.0
	if s.LastError != nil {
		writable = 0
	}
	gauge(b.writable, writable)
	noSpace := 0.0
	if s.NoSpace {
		noSpace = 1
	}
	gauge(b.noSpace, noSpace)

	oldest := map[string]float64{}
	damaged := map[string]uint64{}
	for _, q := range l.Queues() {
		uplink, lane, kind := SplitQueue(q.Name)
		if kind == Other || kind == Identities {
			continue
		}
		damaged[uplink] += q.Damaged
		if kind == DeadLetters {
			gauge(b.dead, float64(q.Records), uplink)
			continue
		}
		gauge(b.records, float64(q.Records), uplink, lane)
		gauge(b.bytes, float64(q.Bytes), uplink, lane)
		age := 0.0
		if !q.Oldest.IsZero() {
			age = max(time.Since(q.Oldest).Seconds(), 0)
		}
		oldest[uplink] = max(oldest[uplink], age)
	}
	for uplink, age := range oldest {
		gauge(b.oldest, age, uplink)
	}
	for uplink, n := range damaged {
		counter(b.damaged, float64(n), uplink)
	}
}

// Kind says what a queue of the log is for.
type Kind int

const (
	// Other queues belong to no uplink.
	Other Kind = iota
	// Lane is one lane of an uplink: uplink/NAME/LANE.
	Lane
	// DeadLetters are those of an uplink: dead/NAME.
	DeadLetters
	// Identities are those of an uplink's commands that were delivered: commands/NAME.
	Identities
)

// SplitQueue reads the name of a queue.
func SplitQueue(name string) (uplink, lane string, kind Kind) {
	if rest, ok := strings.CutPrefix(name, "uplink/"); ok {
		if i := strings.LastIndexByte(rest, '/'); i > 0 {
			return rest[:i], rest[i+1:], Lane
		}
	}
	if rest, ok := strings.CutPrefix(name, "dead/"); ok && rest != "" {
		return rest, "", DeadLetters
	}
	if rest, ok := strings.CutPrefix(name, "commands/"); ok && rest != "" {
		return rest, "", Identities
	}
	return "", "", Other
}
