package link

import (
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopcua/opcua/ua"
)

// TestNodesThatCannotBeDescribedAfterARestart: the server still watches them for the process before, but this one does not
// know where their values belong.
func TestNodesThatCannotBeDescribedAfterARestart(t *testing.T) {
	const node = "ns=2;s=n1"
	for _, c := range []struct {
		what        string
		spoil, mend func(*fakeServer, *fakeSink)
		created     int // monitored items of the node, after it has come back
	}{
		{
			"the node is missing",
			func(f *fakeServer, _ *fakeSink) { f.unknown[node] = true },
			func(f *fakeServer, _ *fakeSink) { delete(f.unknown, node) },
			1,
		},
		{
			"its name may not be read",
			func(f *fakeServer, _ *fakeSink) { f.denied[node] = true },
			func(f *fakeServer, _ *fakeSink) { delete(f.denied, node) },
			0,
		},
		{
			"its topic is taken",
			func(_ *fakeServer, s *fakeSink) { s.refuse[1] = errors.New("its topic is taken") },
			func(_ *fakeServer, s *fakeSink) { delete(s.refuse, 1) },
			0,
		},
	} {
		state := filepath.Join(t.TempDir(), "x.session")
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				keep := func(o *Options) {
					o.State = state
					for i := range o.Items {
						o.Items[i].Describe = true
					}
				}
				newWorld(t, f, 2, keep).stop()
				created := 0
				f.mu.Lock()
				f.onRequest = func(req ua.Request) (ua.Response, error) {
					if q, ok := req.(*ua.CreateMonitoredItemsRequest); ok && !f.unknown[node] {
						created += len(q.ItemsToCreate)
					}
					return nil, nil
				}
				f.mu.Unlock()
				w := newWorld(t, f, 2, func(o *Options) {
					keep(o)
					f.mu.Lock()
					defer f.mu.Unlock()
					c.spoil(f, o.Sink.(*fakeSink))
				})
				defer w.stop()
				w.change(num(1, 10), num(2, 20))
				w.change(num(2, 21))
				time.Sleep(time.Minute)
				w.want(t, "0=10")
				if s := w.Stats(); s.Watched != 1 || s.Failed != 1 || s.Homeless != 2 {
					t.Errorf("counted %+v", s)
				}
				f.mu.Lock()
				w.sink.mu.Lock()
				c.mend(f, w.sink)
				w.sink.mu.Unlock()
				f.mu.Unlock()
				time.Sleep(10 * time.Second)
				w.change(num(2, 22))
				time.Sleep(time.Second)
				w.want(t, "0=10", "1=21", "1=22") // the last of the lost ones was kept
				if s := w.Stats(); s.Watched != 2 || s.Failed != 0 || s.Homeless != 2 {
					t.Errorf("counted %+v after the node has come back", s)
				}
				w.change(num(1, 11)) // takes the acknowledgements along
				time.Sleep(time.Second)
				if n := w.unacked(); n > 1 {
					t.Errorf("%d notifications are not acknowledged", n)
				}
				f.mu.Lock()
				defer f.mu.Unlock()
				if created != c.created {
					t.Errorf("asked to watch %d nodes anew, want %d", created, c.created)
				}
			})
		})
	}
}

// TestAVanishedNodeKeepsWhatItSent: values from before it went away are handed over, though they come a second time only
// after an attempt at it has failed.
func TestAVanishedNodeKeepsWhatItSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, f, 1, func(o *Options) { o.Sink.(*fakeSink).manual = true; o.Items[0].Describe = true })
		defer w.stop()
		w.change(num(1, 1))
		f.mu.Lock()
		f.unknown["ns=2;s=n0"] = true
		f.mu.Unlock()
		w.change(&ua.MonitoredItemNotification{ClientHandle: 1, Value: &ua.DataValue{
			EncodingMask: ua.DataValueStatusCode, Status: ua.StatusBadNodeIDUnknown,
		}})
		time.Sleep(10 * time.Second)
		w.want(t, "0=1", "0=<nil>")
		w.sink.settle(errors.New("the disk failed"))
		time.Sleep(10 * time.Second)
		w.want(t, "0=1", "0=<nil>", "0=1", "0=<nil>")
	})
}
