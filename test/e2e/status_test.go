package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
)

// uplinkStatus is one entry of `status --json`.
type uplinkStatus struct {
	Name      string  `json:"name"`
	Connected bool    `json:"connected"`
	Server    string  `json:"server"`
	InFlight  int     `json:"in_flight"`
	Window    int     `json:"window"`
	Granted   int     `json:"granted"`
	Records   int64   `json:"records"`
	Bytes     int64   `json:"bytes"`
	Oldest    float64 `json:"oldest_s"`
	Delivered int64   `json:"delivered"`
	Evicted   int64   `json:"evicted"`
	Dead      int64   `json:"dead"`
	LastError string  `json:"last_error"`
}

// gatewayStatus is the answer of `status --json`.
type gatewayStatus struct {
	Gateway  string         `json:"gateway"`
	Version  string         `json:"version"`
	Ready    bool           `json:"ready"`
	Uptime   float64        `json:"uptime_s"`
	Uplinks  []uplinkStatus `json:"uplinks"`
	Clients  int            `json:"clients"`
	Sessions int            `json:"sessions"`
}

// status runs `status --json` and fails on anything but exit code 0 and that shape.
func (g *gateway) status() gatewayStatus {
	g.t.Helper()
	r := g.run("status", "--json")
	if r.code != 0 {
		g.t.Fatalf("status --json: %v", r)
	}
	var s gatewayStatus
	if err := json.Unmarshal([]byte(r.out), &s); err != nil {
		g.t.Fatalf("status --json: %v\n%s", err, r.out)
	}
	return s
}

// uplink returns the status of one uplink.
func (g *gateway) uplink(name string) uplinkStatus {
	g.t.Helper()
	for _, u := range g.status().Uplinks {
		if u.Name == name {
			return u
		}
	}
	g.t.Fatalf("status --json has no uplink %s", name)
	return uplinkStatus{}
}

// get fetches a page of the admin surface.
func (g *gateway) get(path string) (code int, body string) {
	g.t.Helper()
	c := http.Client{Timeout: 10 * time.Second}
	resp, err := c.Get("http://" + g.addr("admin") + path)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// samples are the series of one scrape.
type samples []sample

type sample struct {
	name   string
	labels map[string]string
	value  float64
}

// metrics scrapes /metrics.
func (g *gateway) metrics() samples {
	g.t.Helper()
	code, body := g.get("/metrics")
	if code != http.StatusOK {
		g.t.Fatalf("/metrics answers %d: %s", code, body)
	}
	list, err := parseSamples(body)
	if err != nil {
		g.t.Fatalf("/metrics: %v", err)
	}
	return list
}

func parseSamples(body string) (samples, error) {
	var list samples
	for _, line := range strings.Split(body, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		cut := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[cut+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		s := sample{name: line[:cut], labels: map[string]string{}, value: value}
		if name, rest, ok := strings.Cut(s.name, "{"); ok {
			s.name = name
			for _, pair := range strings.Split(strings.TrimSuffix(rest, "}"), `",`) {
				if k, v, ok := strings.Cut(pair, `="`); ok {
					s.labels[k] = strings.TrimSuffix(v, `"`)
				}
			}
		}
		list = append(list, s)
	}
	return list, nil
}

// sum adds up the series of a name that have all the given labels, written key=value.
func (s samples) sum(name string, labels ...string) float64 {
	total := 0.0
next:
	for _, x := range s {
		if x.name != name {
			continue
		}
		for _, l := range labels {
			k, v, _ := strings.Cut(l, "=")
			if x.labels[k] != v {
				continue next
			}
		}
		total += x.value
	}
	return total
}

// has reports whether a series of that name exists.
func (s samples) has(name string) bool {
	for _, x := range s {
		if x.name == name {
			return true
		}
	}
	return false
}

// places returns the ledger of one uplink, all routes together.
func (s samples) places(uplink string) map[string]float64 {
	m := map[string]float64{}
	for _, x := range s {
		if x.name == "tidegate_ledger_total" && x.labels["uplink"] == uplink && x.value != 0 {
			m[x.labels["place"]] += x.value
		}
	}
	return m
}

func ledgerText(m map[string]float64) string {
	var words []string
	for k, v := range m {
		words = append(words, k+"="+strconv.FormatFloat(v, 'f', -1, 64))
	}
	sort.Strings(words)
	return strings.Join(words, " ")
}

// requireLedger wants the places of an uplink to add up to exactly copies.
func (g *gateway) requireLedger(uplink string, copies int) {
	g.t.Helper()
	var m map[string]float64
	var total float64
	// The scrape is no snapshot: a record may move from one place to another while it is read.
	waitFor(g.t, soon, "the ledger of "+uplink+" to add up to "+strconv.Itoa(copies), func() bool {
		m, total = g.metrics().places(uplink), 0
		for _, v := range m {
			total += v
		}
		return int(total) == copies
	}, func() string { return ledgerText(m) + " = " + strconv.FormatFloat(total, 'f', -1, 64) })
	g.t.Logf("ledger of %s: %s = %d copies", uplink, ledgerText(m), copies)
}

// requireDrained waits until an uplink has nothing left to send.
func (g *gateway) requireDrained(uplink string, limit time.Duration) {
	g.t.Helper()
	var u uplinkStatus
	waitFor(g.t, limit, "uplink "+uplink+" to drain", func() bool {
		u = g.uplink(uplink)
		return u.Records == 0 && u.InFlight == 0
	}, func() string { text, _ := json.Marshal(u); return string(text) })
}

// requireConnected waits until an uplink is connected.
func (g *gateway) requireConnected(uplink string) {
	g.t.Helper()
	waitFor(g.t, 60*time.Second, "uplink "+uplink+" to connect", func() bool { return g.uplink(uplink).Connected })
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return portOf(l.Addr())
}
