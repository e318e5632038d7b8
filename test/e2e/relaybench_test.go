package e2e

import (
	"fmt"
	"testing"
	"time"
)

// relay is what carries messages from devices to a cloud: this gateway, or Mosquitto with a bridge.
type relay interface {
	start()
	kill()
	here() string
	pid() int
}

// bridge is a Mosquitto that hands everything on to a sink.
type bridge struct{ *cloud }

func (m bridge) here() string { return m.addr() }
func (m bridge) pid() int     { return m.cmd.Process.Pid }

// newBridge prepares a Mosquitto with persistence, queues without limit and no bound on what is in flight.
func newBridge(t testing.TB, to *sink) bridge {
	return bridge{newCloud(t, "max_inflight_messages 0", "connection cloud", "address "+to.addr, "topic plant/# out 1",
		"cleansession false", "try_private false", "notifications false", "bridge_protocol_version mqttv311",
		"start_type automatic", "restart_timeout 1", "autosave_interval 1800")}
}

// relayAccount is what a relay did, in the medians of several rounds.
type relayAccount struct {
	rate, work, drain, memory []float64 // messages/s, processor seconds per 100,000, messages/s, MB
	acked, lost               int       // over kill -9
}

// BenchmarkRelay compares the whole relay with Mosquitto's bridge: ten devices, QoS 1, 256 bytes, the same sink as cloud, runs in turns.
// Tidegate stores every message before it acknowledges it (sync = "always"); Mosquitto keeps its queue in memory and writes it down when it
// ends. Wanted: rate at least 1.2, processor time at most 1.2, drain at least 1.5.
func BenchmarkRelay(b *testing.B) {
	for b.Loop() {
		compareRelays(b)
	}
}

func compareRelays(b *testing.B) {
	const rounds = 5
	names := []string{"tidegate", "mosquitto"}
	accounts := map[string]*relayAccount{"tidegate": {}, "mosquitto": {}}
	for range rounds {
		for _, name := range names {
			accounts[name].round(b, name)
		}
		names[0], names[1] = names[1], names[0]
	}
	text := ""
	for _, name := range []string{"tidegate", "mosquitto"} {
		a := accounts[name]
		a.powerLoss(b, name)
		text += fmt.Sprintf("\n%-10s %8.0f messages/s end to end, %.2f s of processor per 100,000, backlog drained at %.0f/s, %.1f MB at most, "+
			"%d of %d acknowledged lost over kill -9", name, median(a.rate), median(a.work), median(a.drain), median(a.memory), a.lost, a.acked)
	}
	ours, theirs := accounts["tidegate"], accounts["mosquitto"]
	rate, work := median(ours.rate)/median(theirs.rate), median(ours.work)/median(theirs.work)
	drain := median(ours.drain) / median(theirs.drain)
	b.ReportMetric(rate, "rate-ratio")
	b.ReportMetric(work, "processor-ratio")
	b.ReportMetric(drain, "drain-ratio")
	b.ReportMetric(0, "ns/op")
	b.Logf("medians of %d rounds:%s\nratios: rate %.2f (wanted: 1.2 at least), processor %.2f (1.2 at most), drain %.2f (1.5 at least)",
		rounds, text, rate, work, drain)
}

// newRelay makes one with an empty buffer.
func newRelay(b *testing.B, name string, to *sink) relay {
	if name == "mosquitto" {
		return newBridge(b, to)
	}
	return newGateway(b, "[route.up]\n  from = [\"plant/#\"]\n",
		uplinkTo("cloud", to.url(), "3.1.1", "[uplink.cloud.buffer]\n  max_bytes = \"2GiB\"\n  sync = \"always\""))
}

func relayLoad() load {
	l := load{size: 256, window: 100}
	for i := range 10 {
		l.names = append(l.names, fmt.Sprint("dev", i))
	}
	return l
}

const (
	relayMessages = 200_000
	relayBacklog  = 200_000
)

// round measures one relay: live, then with a backlog.
func (a *relayAccount) round(b *testing.B, name string) {
	b.Helper()
	to := newSink(b)
	r := newRelay(b, name, to)
	r.start()
	l := relayLoad()
	l.run(b, r.here(), 0, 10_000) // warms up, and shows that the cloud is connected
	waitFor(b, time.Minute, "the first messages to arrive", func() bool { return to.arrived() == 10_000 })
	to.reset()
	before := processorTimeOf(b, r.pid())
	begin := time.Now()
	l.run(b, r.here(), 1000, relayMessages)
	waitFor(b, 5*time.Minute, "the messages to arrive", func() bool { return to.arrived() == relayMessages })
	a.rate = append(a.rate, relayMessages/to.latest.Sub(begin).Seconds())
	a.work = append(a.work, (processorTimeOf(b, r.pid())-before)/(relayMessages/100_000))

	to.down()
	to.reset()
	l.run(b, r.here(), 1000+relayMessages/10, relayBacklog)
	to.up()
	waitFor(b, 5*time.Minute, "the backlog to arrive", func() bool { return to.arrived() == relayBacklog })
	a.drain = append(a.drain, to.rate())
	most, err := memoryOf(r.pid(), "VmHWM")
	if err != nil {
		b.Fatal(err)
	}
	a.memory = append(a.memory, float64(most)*1024/1e6)
	for _, name := range l.names {
		to.requireAll(b, "plant/"+name, 1000+(relayMessages+relayBacklog)/10)
	}
	r.kill()
	to.down()
}

// powerLoss kills a relay that has a backlog, starts it again, and counts what of the acknowledged never arrives.
func (a *relayAccount) powerLoss(b *testing.B, name string) {
	b.Helper()
	to := newSink(b)
	r := newRelay(b, name, to)
	r.start()
	l := relayLoad()
	l.run(b, r.here(), 0, 1000)
	waitFor(b, time.Minute, "the first messages to arrive", func() bool { return to.arrived() == 1000 })
	to.down()
	a.acked = 50_000
	l.run(b, r.here(), 100, a.acked)
	r.kill()
	r.start()
	to.reset()
	to.up()
	limit := time.Now().Add(30 * time.Second)
	for to.arrived() < a.acked && time.Now().Before(limit) {
		time.Sleep(50 * time.Millisecond)
	}
	a.lost = a.acked - to.arrived()
	r.kill()
	to.down()
}
