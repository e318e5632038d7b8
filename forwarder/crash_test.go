package forwarder

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"testing"

	"tidegate/buffer"
	"tidegate/message"
)

// TestCrashLosesNothing takes a copy of the folder in mid-stream, as a crash would leave it, and goes on with that: every
// message that was durable before arrives, in order, and what comes twice has the same identity.
func TestCrashLosesNothing(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(nil, "cloud")
	var got []arrivalAt
	sent := map[string]int{} // what a device knows to be durable
	total := map[string]int{}
	for round := range 6 {
		n := 0
		cloud := newFakeCloud(func(*fakeCloud, int, message.Message, Identity) act {
			n++
			return act{take: true, silent: n%500 > 460, cut: n%500 == 499}
		})
		disk := &badDisk{}
		r := openWith(t, dir, cfg, map[string]*fakeCloud{"cloud": cloud}, buffer.Options{FS: disk}).start()
		var devices sync.WaitGroup
		var mu sync.Mutex
		stop := make(chan struct{})
		for d := range 3 {
			name := fmt.Sprintf("dev%d", d)
			devices.Go(func() {
				for i := total[name] + 1; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					tk, err := r.f.Ingest(message.Message{Topic: "a", Payload: []byte(strconv.Itoa(i)), Source: message.Source{Client: name}})
					if err != nil || tk.Wait(context.Background()) != nil {
						t.Errorf("ingest: %v", err)
						return
					}
					mu.Lock()
					sent[name] = i
					mu.Unlock()
				}
			})
		}
		eventually(t, "some arrive", func() bool { return len(cloud.records()) >= 300*(round+1)/2 })
		cloud.setOffline(true)
		mu.Lock()
		durable := maps.Clone(sent)
		mu.Unlock()
		crashed := t.TempDir()
		disk.snapshot(t, dir, crashed)
		arrived := cloud.records() // after the copy: whatever is acknowledged in it has arrived
		close(stop)
		devices.Wait()
		r.close()

		got = append(got, arrived...)
		dir = crashed
		// The device goes on behind what the crashed folder has of it, which may be more than it knew to be durable.
		total = countStored(t, dir, got)
		for name, i := range durable {
			if total[name] < i {
				t.Fatalf("round %d: %s knew %d to be durable, %d survived", round, name, i, total[name])
			}
		}
		sent = maps.Clone(total) // what was durable after the copy never happened
	}
	cloud := newFakeCloud(takeAll)
	r := open(t, dir, cfg, map[string]*fakeCloud{"cloud": cloud}).start()
	eventually(t, "the rest arrives", func() bool { return r.queued() == 0 })
	r.close()
	want := map[string]int{}
	for name, i := range total {
		want[name+" a"] = i
	}
	got = append(got, cloud.records()...)
	t.Logf("%d arrivals, %d of them again, %v", len(got), checkOrder(t, got, want), total)
}

// countStored returns the last message of each device that arrived or is in the folder.
func countStored(t *testing.T, dir string, got []arrivalAt) map[string]int {
	t.Helper()
	last := map[string]int{}
	note := func(client, payload string) {
		n, err := strconv.Atoi(payload)
		if err != nil {
			t.Fatal(err)
		}
		last[client] = max(last[client], n)
	}
	for _, a := range got {
		note(a.id.Source, a.payload)
	}
	inspect(t, dir, func(s Stored) { note(s.Message.Source.Client, string(s.Message.Payload)) })
	return last
}
