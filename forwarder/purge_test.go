package forwarder

import (
	"context"
	"testing"

	"tidegate/buffer"
)

// TestPurgeOfAStoppedGateway: what is purged while no gateway runs is announced and in the ledger of the next one.
func TestPurgeOfAStoppedGateway(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(nil, "cloud")
	cloud := newFakeCloud(takeAll)
	cloud.setOffline(true)
	clouds := map[string]*fakeCloud{"cloud": cloud}
	r := open(t, dir, cfg, clouds).start()
	for range 20 {
		r.send("a", "x")
	}
	r.close()

	log, err := buffer.Open(dir, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := Purge(context.Background(), log, log.Lookup("uplink/cloud/normal"))
	if err != nil || n != 20 {
		t.Errorf("purged %d: %v", n, err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}

	r = open(t, dir, cfg, clouds)
	r.balance()
	if e := r.entry("", "cloud"); e.Recovered != 20 || e.Places["purged"] != 20 || e.Places["buffered"] != 0 {
		t.Errorf("ledger: %+v", e)
	}
	r.start()
	r.send("a", "21")
	cloud.setOffline(false)
	eventually(t, "both have arrived", func() bool { return len(cloud.arrivals()) == 2 })
	requireGaps(t, cloud, gap(1, 20, "purged"))
	r.close()

	r = open(t, dir, cfg, clouds)
	if e := r.entry("", "cloud"); e.Recovered != 0 {
		t.Errorf("it is counted by the gateway after that one too: %+v", e)
	}
	r.close()
}
