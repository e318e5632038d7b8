package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// smallDisk mounts an ext4 of so many MiB, in a file of its own, and returns the folder. It needs root or sudo, as scripts/test does.
func smallDisk(t testing.TB, mebibytes int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tgd") // short: a socket stands in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "m")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"truncate", "-s", fmt.Sprintf("%dM", mebibytes), image},
		{"mkfs.ext4", "-q", "-F", "-m", "0", "-E", fmt.Sprintf("root_owner=%d:%d", os.Getuid(), os.Getgid()), image},
		{"mount", "-o", "loop", image, mount}, // umount lets go of the loop device, too
	} {
		r := runLimited(t, asRoot(command[0], command[1:]...))
		if r.code != 0 && command[0] == "mount" {
			t.Logf("%s: %v; a file system in memory is as full", strings.Join(command, " "), r)
			r = runLimited(t, asRoot("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm,uid=%d,gid=%d", mebibytes, os.Getuid(), os.Getgid()), "tmpfs", mount))
		}
		if r.code != 0 {
			t.Fatalf("%s: %v", strings.Join(command, " "), r)
		}
		if command[0] == "mount" {
			t.Cleanup(func() {
				if r := runLimited(t, asRoot("umount", mount)); r.code != 0 {
					t.Errorf("umount: %v", r)
				}
			})
		}
	}
	return mount
}

// asRoot is a command as root: by itself, or by sudo.
func asRoot(name string, args ...string) *exec.Cmd {
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name
	}
	if os.Getuid() != 0 {
		return exec.Command("sudo", append([]string{"-n", path}, args...)...)
	}
	return exec.Command(path, args...)
}

// onFullDisk is a gateway on a small disk that devices of each protocol fill while the cloud is away.
type onFullDisk struct {
	*gateway
	cloud  *sink
	disk   string
	other  string // a file of somebody else's on the same disk
	fleet  []*device
	sensor *coapDevice
	// sections are those of the configuration.
	sections []string
}

// newOnFullDisk starts it; max_bytes of the uplink is more than the disk has.
func newOnFullDisk(t *testing.T, whenFull string) *onFullDisk {
	f := &onFullDisk{disk: smallDisk(t, 64), cloud: newSink(t)}
	f.cloud.down()
	f.other = filepath.Join(f.disk, "other")
	if err := os.WriteFile(f.other, make([]byte, 24<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f.gateway = newGateway(t)
	f.sections = []string{
		strings.Replace(head, `"data"`, fmt.Sprintf("%q", filepath.Join(f.disk, "data")), 1), "[coap]\n  listen = [\"coap://127.0.0.1:0\"]\n",
		"[route.up]\n  from = [\"plant/#\"]\n",
		uplinkTo("cloud", f.cloud.url(), "5", "[uplink.cloud.buffer]\n  max_bytes = \"1GiB\"\n  compress = \"off\"\n  when_full = \""+whenFull+"\""),
	}
	f.configure(f.sections...)
	f.start()
	for i, version := range []string{"3.1.1", "5"} {
		name := fmt.Sprintf("dev%d", i)
		d := &device{name: name, topic: "plant/" + name, version: version, qos: 1, window: 50, pad: 4000, addr: f.here}
		f.fleet = append(f.fleet, d.start(t))
	}
	f.sensor = &coapDevice{name: "sensor", topic: "plant/sensor", addr: func() string { return f.addr("coap") }}
	f.sensor.start(t)
	return f
}

func (f *onFullDisk) String() string {
	text := f.sensor.String()
	for _, d := range f.fleet {
		text += "\n" + d.String()
	}
	return text
}

// acked is how many messages were acknowledged to devices.
func (f *onFullDisk) acked() int {
	n := f.sensor.ackedCount()
	for _, d := range f.fleet {
		n += d.ackedCount()
	}
	return n
}

// refused tells whether each kind of device was refused since the counts that before returned.
func (f *onFullDisk) refusals() (connects, refused int, unavailable int) {
	f.fleet[0].mu.Lock()
	connects = f.fleet[0].connects
	f.fleet[0].mu.Unlock()
	f.fleet[1].mu.Lock()
	refused = f.fleet[1].refused
	f.fleet[1].mu.Unlock()
	f.sensor.mu.Lock()
	unavailable = f.sensor.refused[codes.ServiceUnavailable]
	f.sensor.mu.Unlock()
	return connects, refused, unavailable
}

// finish lets the devices end what they began and returns how many messages each of them had acknowledged, by topic.
func (f *onFullDisk) finish(t *testing.T) map[string]int {
	t.Helper()
	f.sensor.stop()
	halt(f.fleet)
	counts := map[string]int{"plant/sensor": f.sensor.ackedCount()}
	for _, d := range f.fleet {
		counts[d.topic] = d.finish(t, 0, 90*time.Second)
	}
	return counts
}

func (f *onFullDisk) removeOther(t *testing.T) {
	t.Helper()
	if err := os.Remove(f.other); err != nil {
		t.Fatal(err)
	}
}

// TestFullDiskRefuses: on a full disk devices are refused with the words of their protocols, and nothing else happens. When somebody makes
// room they are taken in again, and when the cloud is back the disk is emptied without needing room for it.
func TestFullDiskRefuses(t *testing.T) {
	f := newOnFullDisk(t, "refuse")
	fills := func() {
		t.Helper()
		connects, refused, unavailable := f.refusals()
		waitFor(t, 90*time.Second, "devices of every protocol to be refused", func() bool {
			c, r, u := f.refusals()
			return c > connects && r > refused && u > unavailable
		}, f.String)
		waitFor(t, 90*time.Second, "status to tell that the disk is full", func() bool {
			r := f.run("status")
			return r.code == 0 && strings.Contains(strings.ToLower(r.out), "no space left")
		}, f.String)
	}
	fills()
	first := f.acked()
	t.Logf("full after %d messages", first)
	f.removeOther(t)
	waitFor(t, 90*time.Second, "devices to be taken in again", func() bool { return f.acked() > first+2000 }, f.String)
	fills()
	t.Logf("full again after %d messages", f.acked())
	f.cloud.up()
	waitFor(t, 90*time.Second, "devices to be taken in again", func() bool { return f.cloud.arrived() > f.acked()/2 }, f.String)
	counts := f.finish(t)
	f.requireDrained("cloud", 90*time.Second)
	for topic, n := range counts {
		// A device that has many messages in flight and hears that one is refused sends it again behind those that were taken.
		if late := f.cloud.requireEach(t, topic, n); late > 0 && topic != f.fleet[1].topic {
			t.Errorf("%s: %d messages came after later ones", topic, late)
		}
	}
	f.requireAccounted(t, 0)
	if !f.running() {
		t.Error("the gateway ended")
	}
	f.stop()
}

// TestFullDiskDropsOldest: on a full disk the oldest records make room, are counted and announced, and everything else arrives in order.
func TestFullDiskDropsOldest(t *testing.T) {
	f := newOnFullDisk(t, "drop-oldest")
	evicted := func() int { return int(f.metrics().places("cloud")["evicted"]) }
	waitFor(t, 90*time.Second, "the oldest records to be evicted", func() bool { return evicted() > 5000 }, f.String)
	before, acked := evicted(), f.acked()
	waitFor(t, 90*time.Second, "devices to be acknowledged on the full disk", func() bool { return f.acked() > acked+1000 }, f.String)
	f.removeOther(t)
	waitFor(t, 90*time.Second, "the buffer to use the room", func() bool {
		return !strings.Contains(f.run("status").out, "NO SPACE LEFT")
	}, f.String)
	t.Logf("%d records were evicted before there was room, %d until it was noticed, of %d acknowledged", before, evicted(), f.acked())
	f.cloud.up()
	counts := f.finish(t)
	f.requireDrained("cloud", 90*time.Second)
	n, gaps := f.requireNewest(t, counts)
	// What a device sent twice, as its first acknowledgement was not sure, can be evicted without missing.
	if most := evicted(); gaps > most || f.cloud.arrived()+gaps != n {
		t.Errorf("%d arrived and %d are missing of %d; %d were counted as evicted", f.cloud.arrived(), gaps, n, most)
	}
	f.requireAccounted(t, evicted())
	waitFor(t, 90*time.Second, "every evicted record to be announced", func() bool { return f.announced() == evicted() }, func() string {
		return fmt.Sprintf("%d of %d", f.announced(), evicted())
	})
	f.stop()
}

// announced is how many records the cloud was told are evicted.
func (f *onFullDisk) announced() int {
	f.cloud.mu.Lock()
	defer f.cloud.mu.Unlock()
	return f.cloud.gone["evicted"]
}

// announcedInAll is how many records the cloud was told will not come.
func (f *onFullDisk) announcedInAll() (n int) {
	f.cloud.mu.Lock()
	defer f.cloud.mu.Unlock()
	for _, m := range f.cloud.gone {
		n += m
	}
	return n
}

// requireNewest wants the newest message of each topic that was acknowledged to have arrived; a kill may have cost the acknowledgement of one
// that is newer. It returns how many were sent up to the newest and how many of them are missing.
func (f *onFullDisk) requireNewest(t *testing.T, counts map[string]int) (n, gaps int) {
	t.Helper()
	f.cloud.mu.Lock()
	defer f.cloud.mu.Unlock()
	for topic, want := range counts {
		st := f.cloud.streams[topic]
		if st == nil || st.newest < want {
			t.Errorf("%s: want %d as the newest", topic, want)
			continue
		}
		n, gaps = n+st.newest, gaps+len(st.missing)
	}
	return n, gaps
}

// requireCounted wants the newest message of each topic to have arrived, and every one that was acknowledged to have arrived or to be missing
// among older ones, and each that is missing to be announced.
func (f *onFullDisk) requireCounted(t *testing.T, counts map[string]int) {
	t.Helper()
	n, gaps := f.requireNewest(t, counts)
	if f.cloud.arrived()+gaps != n {
		t.Errorf("%d arrived and %d are missing of %d", f.cloud.arrived(), gaps, n)
	}
	for topic, late := range f.cloud.late() {
		if late > 0 && topic != f.fleet[1].topic { // which sends what was refused behind what was taken
			t.Errorf("%s: %d messages came after later ones", topic, late)
		}
	}
	// What a device sent twice, as its first acknowledgement was not sure, can be evicted without missing.
	waitFor(t, 90*time.Second, "everything that is missing to be announced", func() bool { return f.announcedInAll() >= gaps }, func() string {
		return fmt.Sprintf("%d of %d", f.announcedInAll(), gaps)
	})
	t.Logf("%d sent: %d arrived, %d again, %d missing; %d are announced, of which %d as evicted", n, f.cloud.arrived(), f.cloud.repeated(),
		gaps, f.announcedInAll(), f.announced())
}

// TestFullDiskBesideSessions: retained messages and sessions, which nothing may evict, lie everywhere among the records on a full disk. The
// oldest records still make room, through a kill too, and what may not be evicted is all there in the end.
func TestFullDiskBesideSessions(t *testing.T) {
	f := newOnFullDisk(t, "drop-oldest")
	evicted := func() int { return int(f.metrics().places("cloud")["evicted"]) }
	kept := 0
	// untilEvicted keeps messages until so many more records were evicted.
	untilEvicted := func(n int) {
		t.Helper()
		begin, n := time.Now(), evicted()+n
		for evicted() < n {
			name := fmt.Sprint("kept/", kept+1)
			r := tryPublish(t, f.here(), "-V", "mqttv5", "-q", "1", "-r", "-t", name, "-m", name+strings.Repeat(".", 300))
			if r.code == 0 && !strings.Contains(r.err, "Warning") {
				kept++
			}
			if time.Since(begin) > 90*time.Second {
				t.Fatalf("%d of %d evicted; %d messages kept\n%s", evicted(), n, kept, f)
			}
		}
	}
	for range 3 {
		acked := f.acked()
		untilEvicted(6000) // counted since the start
		waitFor(t, 90*time.Second, "devices to be acknowledged on the full disk", func() bool { return f.acked() > acked+3000 }, f.String)
		f.kill()
		f.gateway.start()
	}
	f.removeOther(t)
	f.cloud.up()
	counts := f.finish(t)
	f.requireDrained("cloud", 90*time.Second)
	f.requireCounted(t, counts)
	s := subscribe(t, f.here(), "%t %p", "-q", "1", "-t", "kept/#")
	waitFor(t, soon, "every message that was kept", func() bool { return len(s.got()) >= kept })
	got := map[string]bool{}
	for _, line := range s.got() {
		topic, payload, _ := strings.Cut(line, " ")
		got[topic] = payload == topic+strings.Repeat(".", 300)
	}
	for i := range kept {
		if !got[fmt.Sprint("kept/", i+1)] {
			t.Errorf("kept/%d is lost", i+1)
		}
	}
	t.Logf("%d messages kept", kept)
	f.stop()
}

// TestReloadOnFullDisk: on a full disk an uplink comes and goes by a reload, and comes through a kill.
func TestReloadOnFullDisk(t *testing.T) {
	for _, whenFull := range []string{"refuse", "drop-oldest"} {
		t.Run(whenFull, func(t *testing.T) {
			f := newOnFullDisk(t, whenFull)
			connects, refused, _ := f.refusals()
			waitFor(t, 90*time.Second, "the disk to be full", func() bool {
				c, r, _ := f.refusals()
				return c > connects && r > refused || f.metrics().places("cloud")["evicted"] > 3000
			}, f.String)
			more := append(slices.Clone(f.sections), uplinkTo("second", "mqtt://127.0.0.1:9", "5"), "[route.other]\n  from = [\"plant/+\"]\n  to = [\"second\"]\n")
			for _, round := range [][][]string{{more, f.sections, more}, {f.sections}, {more, f.sections, more}} {
				for _, sections := range round {
					f.configure(sections...)
					if r := f.run("reload"); r.code != 0 || !strings.Contains(r.out, "uplink.second: ") {
						t.Fatalf("reload: %v", r)
					}
				}
				f.kill()
				f.gateway.start()
			}
			acked := f.acked()
			f.removeOther(t)
			waitFor(t, 90*time.Second, "devices to be taken in again", func() bool { return f.acked() > acked+1500 }, f.String)
			f.cloud.up()
			counts := f.finish(t)
			f.requireDrained("cloud", 90*time.Second)
			f.requireCounted(t, counts)
			f.stop()
		})
	}
}

// requireAccounted wants every copy to have been delivered, evicted or refused, and the sink to have seen each that was delivered.
func (f *onFullDisk) requireAccounted(t *testing.T, evicted int) {
	t.Helper()
	var places map[string]float64
	waitFor(t, soon, "the ledger to add up", func() bool {
		m := f.metrics()
		places = m.places("cloud")
		total := 0.0
		for _, n := range places {
			total += n
		}
		return int(places["delivered"]) == f.cloud.arrived()+f.cloud.repeated() && int(places["evicted"]) == evicted &&
			places["delivered"]+places["evicted"]+places["refused"] == total
	}, func() string {
		return fmt.Sprintf("%s; %d arrived, %d again", ledgerText(places), f.cloud.arrived(), f.cloud.repeated())
	})
	t.Logf("ledger: %s; %d arrived, %d again", ledgerText(places), f.cloud.arrived(), f.cloud.repeated())
}
