package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestFootprint: resident memory when idle, before and after a load, and the time until the gateway is ready with an empty buffer. After
// the load, pages of the program's file that the load was the first to use are not counted: they are the system's to take back.
func TestFootprint(t *testing.T) {
	const memory = 20 * 1000 * 1000 / 1024 // KiB
	sections := []string{"[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", "mqtt://127.0.0.1:9", "5")}
	var times []time.Duration
	for range 5 {
		g := newGateway(t, sections...)
		g.start()
		times = append(times, g.ready)
		g.stop()
	}
	slices.Sort(times)
	t.Logf("ready after %v (best %v, worst %v of %d starts); the bound is 100 ms on an idle machine",
		times[2].Round(time.Millisecond), times[0].Round(time.Millisecond), times[4].Round(time.Millisecond), len(times))
	if times[0] > time.Second {
		t.Errorf("ready after %v at best", times[0])
	}

	g := newGateway(t, sections...)
	g.start()
	var best int
	begin := time.Now()
	waitFor(t, soon, "the gateway to be idle for two seconds", func() bool { return time.Since(begin) > 2*time.Second })
	best = residentKiB(t, g)
	t.Logf("idle resident memory: %.1f MiB; the bound is 20 MB", float64(best)/1024)
	if best > memory {
		t.Errorf("idle resident memory is %d KiB, at most 20 MB", best)
	}
	file := fileKiB(t, g)
	d := &device{name: "dev", topic: "plant/dev", version: "5", qos: 1, window: 100, pad: 200, addr: g.here}
	d.start(t).finish(t, 50_000, 60*time.Second)
	busy := residentKiB(t, g)
	begin = time.Now()
	waitFor(t, 60*time.Second, "memory to go back after the load", func() bool {
		return residentKiB(t, g)-max(0, fileKiB(t, g)-file) <= memory
	})
	t.Logf("resident memory after 50,000 messages: %.1f MiB, below the bound again %v later", float64(busy)/1024, time.Since(begin).Round(time.Second))
	g.stop()
}

// fileKiB is what of the resident memory are pages of files, which is the program itself.
func fileKiB(t testing.TB, g *gateway) int {
	t.Helper()
	n, err := memoryOf(g.pid(), "RssFile")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func residentKiB(t testing.TB, g *gateway) int {
	t.Helper()
	n, err := residentOf(g.pid())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// residentOf is the resident memory of a process, in KiB.
func residentOf(pid int) (int, error) { return memoryOf(pid, "VmRSS") }

// memoryOf is one of the sizes in /proc/PID/status, in KiB.
func memoryOf(pid int, what string) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, what+":"); ok {
			return strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return 0, errors.New("no " + what)
}
