package forwarder

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/config"
)

// TestMaxRate: a backlog leaves at the rate that is allowed, in messages or in bytes, whichever is less, and the urgent lane first.
func TestMaxRate(t *testing.T) {
	routes := map[string]config.Route{"all": {From: []string{"#"}}, "now": {From: []string{"u"}, Lane: "urgent"}}
	for _, c := range []struct {
		name            string
		messages, bytes string
		payload         int
		least, most     int // delivered after ten seconds
	}{
		{"messages", "20/s", "", 10, 195, 210},
		{"slow", "30/m", "", 10, 5, 8},
		{"bytes", "", "10KiB/s", 1000, 90, 105}, // a record is the payload and some forty bytes
		{"large records", "", "1KiB/s", 5000, 2, 4},
		{"both", "5/s", "1MiB/s", 1000, 48, 55},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(routes, "cloud")
			u := cfg.Uplinks["cloud"]
			var err error
			if c.messages != "" {
				if u.MaxRate.Messages, err = config.ParseMessageRate(c.messages); err != nil {
					t.Fatal(err)
				}
			}
			if c.bytes != "" {
				if u.MaxRate.Bytes, err = config.ParseByteRate(c.bytes); err != nil {
					t.Fatal(err)
				}
			}
			cfg.Uplinks["cloud"] = u
			inBubble(t, cfg, takeAll, func(r *rig, cloud *fakeCloud) {
				cloud.setOffline(true)
				text := strings.Repeat("x", c.payload)
				for i := range 250 {
					r.send("a", fmt.Sprint(i+1, text))
				}
				r.send("u", "1")
				cloud.setOffline(false)
				time.Sleep(10 * time.Second)
				got := cloud.arrivals()
				if len(got) < c.least || len(got) > c.most {
					t.Errorf("%d delivered in ten seconds, want %d to %d", len(got), c.least, c.most)
				}
				// What may leave at once may be on its way before the urgent lane was looked at.
				if n := slices.IndexFunc(got, func(a arrivalAt) bool { return a.topic == "u" }); n < 0 || n > 4 {
					t.Errorf("the urgent record came as number %d", n+1)
				}
			})
		})
	}
}
