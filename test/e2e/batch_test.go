package e2e

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const plantUp = "[route.up]\n  from = [\"plant/#\"]\n"

// TestBatches: an uplink with batches keeps what one without promises, over both protocol versions, while the gateway is
// killed in mid-stream and the cloud comes and goes: nothing lost, nothing out of order, every identity sound, and a ledger
// that adds up.
func TestBatches(t *testing.T) {
	for _, v := range []struct{ protocol, compress string }{{"5", "zstd"}, {"3.1.1", "gzip"}} {
		t.Run(v.protocol, func(t *testing.T) { batches(t, v.protocol, v.compress) })
	}
}

func batches(t *testing.T, protocol, compress string) {
	c := startCloud(t)
	g := newGateway(t, plantUp, uplinkTo("cloud", c.url(), protocol,
		fmt.Sprintf(`  batch = { max_messages = 25, max_delay = "50ms", compress = %q }`, compress)))
	far := consume(t, c.addr(), "application", "tidegate/+/uplink/+/batch", "plant/#")
	var fleet []*device
	for i, version := range []string{"3.1.1", "5", "5"} {
		name := fmt.Sprintf("dev%d", i)
		fleet = append(fleet, &device{
			name: name, topic: "plant/" + name, version: version, qos: byte(1 + i/2), window: 40, addr: g.here, pause: time.Millisecond,
		})
	}
	g.start()
	for _, d := range fleet {
		d.start(t)
	}
	total := func() int {
		n := 0
		for _, d := range fleet {
			n += d.ackedCount()
		}
		return n
	}
	for i := range 8 {
		switch i % 4 {
		case 1:
			c.stop()
		case 3:
			c.start()
		}
		begin, more := total(), 30+rand.IntN(200)
		waitFor(t, 60*time.Second, "the stream to go on", func() bool { return total() >= begin+more }, func() string { return fmt.Sprint(fleet) })
		g.kill()
		g.start()
	}
	halt(fleet)
	sent, lost, duplicates, disorder := 0, 0, 0, 0
	for _, d := range fleet {
		n := d.finish(t, 0, 60*time.Second)
		v := far.requireAll(t, d.topic, n, 90*time.Second)
		sent += n
		lost, duplicates, disorder = lost+len(v.lost), duplicates+v.duplicates, disorder+len(v.disorder)
	}
	far.requireSound(t)
	g.requireDrained("cloud", soon)
	if b := far.batches.Load(); b == 0 || int(b) > sent {
		t.Errorf("%d batches for %d messages", b, sent)
	}
	t.Logf("8 kills: %d messages acknowledged in %d batches: lost %d, duplicates %d, reordered %d", sent, far.batches.Load(), lost, duplicates, disorder)

	// After a restart in order the ledger holds exactly what comes now.
	g.stop()
	g.start()
	const more = 500
	publishLines(t, g.addr(devices), "5", "last", "plant/last", 1, 1, more)
	far.requireAll(t, "plant/last", more, 60*time.Second)
	g.requireDrained("cloud", soon)
	g.requireLedger("cloud", more)
	requireDelivered(t, g, "cloud", more)
	g.stop()
}

// TestBatchOutage: what gathered while the line was down leaves in few, full batches.
func TestBatchOutage(t *testing.T) {
	const n = 2000
	c := startCloud(t)
	line := newProxy(t, c.addr())
	line.cut()
	g := newGateway(t, plantUp, uplinkTo("cloud", line.url(), "5", "  batch = {}"))
	far := consume(t, c.addr(), "application", "tidegate/+/uplink/+/batch")
	g.start()
	publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1, n)
	line.mend()
	g.requireConnected("cloud")
	far.requireAll(t, "plant/dev", n, 60*time.Second)
	g.requireDrained("cloud", soon)
	requireDelivered(t, g, "cloud", n)
	far.requireSound(t)
	if b := far.batches.Load(); b != n/100 {
		t.Errorf("%d batches for a backlog of %d", b, n)
	}
	if m := g.metrics(); m.sum("tidegate_uplink_batches_total", "uplink=cloud") != n/100 || m.sum("tidegate_uplink_batch_bytes_total") == 0 {
		t.Errorf("the metrics count %v batches", m.sum("tidegate_uplink_batches_total"))
	}
	g.stop()
}

// TestBatchDecoders: what Mosquitto hands out is read by decode and by the Python script.
func TestBatchDecoders(t *testing.T) {
	const n = 300
	c := startCloud(t, "log_type all")
	g := newGateway(t, plantUp, uplinkTo("cloud", c.url(), "5", `  batch = { compress = "gzip", max_delay = "1h" }`))
	host, port := hostPort(c.addr())
	raw := filepath.Join(g.dir, "batches.bin")
	sub := subscribe(t, c.addr(), "%l", "-q", "1", "-t", "tidegate/+/uplink/+/batch")
	file := exec.Command("sh", "-c", fmt.Sprintf("exec mosquitto_sub -h %s -p %s -q 1 -t 'tidegate/+/uplink/+/batch' -N -C 3 -W 50 > %s", host, port, raw))
	ended := make(chan result, 1)
	go func() { ended <- runLimited(t, file) }() // ends with the process
	waitFor(t, soon, "both consumers to be there", func() bool { return strings.Count(c.log.tail(1<<20), "Sending SUBACK") >= 2 })
	g.start()
	publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1, n)
	if r := <-ended; r.code != 0 {
		t.Fatalf("mosquitto_sub: %v", r)
	}
	byGo := runCommand(t, g.dir, "", "decode", raw)
	script, err := filepath.Abs(filepath.Join("..", "..", "scripts", "decode_batch.py"))
	if err != nil {
		t.Fatal(err)
	}
	byPython := runLimited(t, exec.Command("python3", script, raw))
	if byGo.code != 0 || byPython.code != 0 || byGo.out != byPython.out || strings.Count(byGo.out, "\n") != n {
		t.Errorf("decode: %v\ndecode_batch.py: %v", byGo, byPython)
	}
	for i, line := range strings.Split(strings.TrimSpace(byGo.out), "\n") {
		if !strings.Contains(line, fmt.Sprintf(`"payload":"dev %d"`, i+1)) {
			t.Fatalf("line %d: %s", i+1, line)
		}
	}
	t.Logf("%d messages in payloads of %v bytes", n, sub.got())
	g.requireDrained("cloud", soon)
	requireDelivered(t, g, "cloud", n)
	g.stop()
}

// TestBatchMemory: the gateway stays small while a backlog drains in batches as fast as the cloud takes them.
func TestBatchMemory(t *testing.T) {
	const n, bound = 60_000, 64 * 1000 * 1000 / 1024 // KiB; 60 MB are wanted
	c := startCloud(t, "max_inflight_messages 0")
	line := newProxy(t, c.addr())
	line.cut()
	g := newGateway(t, plantUp, uplinkTo("cloud", line.url(), "5", "  batch = {}"))
	far := consume(t, c.addr(), "application", "tidegate/+/uplink/+/batch")
	g.start()
	d := &device{name: "dev", topic: "plant/dev", version: "5", qos: 1, window: 200, pad: 300, addr: g.here}
	d.start(t).finish(t, n, 120*time.Second)
	taking := residentKiB(t, g)
	most := 0
	watch := func() bool {
		most = max(most, residentKiB(t, g))
		return g.uplink("cloud").Records == 0
	}
	line.mend()
	g.requireConnected("cloud")
	begin := time.Now()
	waitFor(t, 120*time.Second, "the backlog to drain", watch)
	took := time.Since(begin)
	far.requireAll(t, d.topic, n, 60*time.Second)
	g.requireDrained("cloud", soon)
	t.Logf("%d messages in %d batches, drained in %v; resident memory %.1f MiB when they were taken in, %.1f MiB at most while they drained; wanted: 60 MB",
		n, far.batches.Load(), took.Round(10*time.Millisecond), float64(taking)/1024, float64(most)/1024)
	if most > bound {
		t.Errorf("resident memory reached %d KiB", most)
	}
	g.stop()
}

// TestBatchTooLargeForMosquitto: a broker that takes less than a batch tells over MQTT 5, and closes the connection over 3.1.1.
// Batches become smaller, everything arrives in order, and the one message that is too large itself is a dead letter; over
// 3.1.1 finding that one takes a while and is left out.
func TestBatchTooLargeForMosquitto(t *testing.T) {
	for _, protocol := range []string{"5", "3.1.1"} {
		t.Run(protocol, func(t *testing.T) {
			const n = 400
			c := startCloud(t, "max_packet_size 12000")
			line := newProxy(t, c.addr())
			line.cut()
			g := newGateway(t, plantUp, uplinkTo("cloud", line.url(), protocol, `  batch = { compress = "none" }`))
			far := consume(t, c.addr(), "application", "tidegate/+/uplink/+/batch")
			g.start()
			publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1, n/2)
			dead := 0.0
			if protocol == "5" {
				publish(t, g.addr(devices), "-q", "1", "-t", "plant/large", "-m", strings.Repeat("x", 15000))
				dead = 1
			}
			publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1+n/2, n/2)
			line.mend()
			far.requireAll(t, "plant/dev", n, 120*time.Second)
			g.requireDrained("cloud", 120*time.Second)
			if places := g.metrics().places("cloud"); places["delivered"] != n || places["dead"] != dead {
				t.Errorf("ledger: %s", ledgerText(places))
			}
			t.Logf("%d batches over %d connections", far.batches.Load(), line.connections())
			g.stop()
		})
	}
}
