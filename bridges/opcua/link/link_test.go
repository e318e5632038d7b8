package link

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopcua/opcua/ua"
)

// fakeSink keeps what it is given. hold makes it wait, and commit is when values are on disk.
type fakeSink struct {
	mu     sync.Mutex
	values []string // ITEM=VALUE
	done   []func(error)
	manual bool // done is called by settle, not at once
	gate   chan struct{}
	refuse map[int]error
}

func (s *fakeSink) Resolve(item int, _ Description) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refuse[item]
}

func (s *fakeSink) Take(ctx context.Context, values []Value, done func(error)) {
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return
		}
	}
	s.mu.Lock()
	for _, v := range values {
		s.values = append(s.values, fmt.Sprintf("%d=%v", v.Item, v.Value.Value))
	}
	if s.manual {
		s.done = append(s.done, done)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	done(nil)
}

func (s *fakeSink) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.values)
}

// settle says of everything taken so far that it is on disk, or never will be.
func (s *fakeSink) settle(err error) {
	s.mu.Lock()
	done := s.done
	s.done = nil
	s.mu.Unlock()
	for _, f := range done {
		f(err)
	}
}

// world is a link, its server and its sink, in fake time.
type world struct {
	*fakeServer
	link *Link
	sink *fakeSink
	stop func()
}

func (w *world) Stats() Stats { return w.link.Stats() }

func newWorld(t *testing.T, f *fakeServer, items int, more func(*Options)) *world {
	t.Helper()
	sink := &fakeSink{refuse: map[int]error{}}
	none, err := ParseSecurity("None")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Name: "x", Endpoint: "opc.tcp://fake:4840", Security: none, Sink: sink, dial: f.dial,
		Publishing: 500 * time.Millisecond, Sampling: 100 * time.Millisecond, Budget: time.Minute,
	}
	for i := range items {
		ref, err := ParseRef(fmt.Sprintf("nsu=urn:test;s=n%d", i))
		if err != nil {
			t.Fatal(err)
		}
		o.Items = append(o.Items, Item{Ref: ref})
	}
	if more != nil {
		more(&o)
	}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{fakeServer: f, link: l, sink: sink}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := l.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	beat := make(chan struct{})
	go func() {
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f.keepalive()
			case <-beat:
				return
			}
		}
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		close(beat)
		f.cut()
	})
	time.Sleep(time.Second)
	return w
}

func (w *world) want(t *testing.T, values ...string) {
	t.Helper()
	synctest.Wait()
	if got := w.sink.seen(); !slices.Equal(got, values) {
		t.Errorf("the sink has %v, want %v", got, values)
	}
}

func TestValuesAreAcknowledgedWhenTheyAreOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newFake(t), 2, nil)
		defer w.stop()
		if n := w.fakeServer.outstanding(); n != outstanding {
			t.Errorf("%d publish requests are with the server, want %d", n, outstanding)
		}
		w.sink.mu.Lock()
		w.sink.manual = true
		w.sink.mu.Unlock()
		w.change(num(1, 10), num(2, 20))
		w.change(num(1, 11))
		w.change(num(1, 12))
		time.Sleep(10 * time.Second)
		w.want(t, "0=10", "1=20", "0=11", "0=12")
		if n := w.unacked(); n != 3 {
			t.Errorf("%d of 3 notifications are not acknowledged, but nothing is on disk", n)
		}
		w.sink.settle(nil)
		w.change(num(1, 13)) // acknowledgements travel with the next request
		synctest.Wait()
		if n := w.unacked(); n != 1 {
			t.Errorf("%d notifications are not acknowledged after the disk has 3 of 4", n)
		}
	})
}

func TestMemoryIsBoundedWhileNobodyTakesValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newFake(t), 1, func(o *Options) { o.Sink.(*fakeSink).gate = make(chan struct{}) })
		defer w.stop()
		want := []string{}
		for i := range 100 {
			w.change(num(1, int32(i)))
			want = append(want, fmt.Sprintf("0=%d", i))
		}
		time.Sleep(time.Hour)
		w.fakeServer.mu.Lock()
		sent, waiting := len(w.kept), len(w.fakeServer.queue)
		w.fakeServer.mu.Unlock()
		if sent > window || sent+waiting != 100 {
			t.Errorf("%d notifications were asked for and %d wait, want at most %d", sent, waiting, window)
		}
		if _, err := w.link.Session(); err != nil {
			t.Errorf("an hour of a full buffer ended the session: %v", err)
		}
		close(w.sink.gate)
		time.Sleep(time.Minute)
		w.want(t, want...)
	})
}

func TestHolesAreRepublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newFake(t), 1, nil)
		defer w.stop()
		w.change(num(1, 1))
		w.lose(true, num(1, 2))
		w.lose(false, num(1, 3))
		w.lose(true, num(1, 4))
		w.change(num(1, 5))
		time.Sleep(time.Second)
		w.want(t, "0=1", "0=2", "0=4", "0=5")
		if s := w.Stats(); s.Republished != 2 || s.Missing != 1 {
			t.Errorf("counted %+v", s)
		}
		w.lose(true, num(1, 6))
		w.keepalive() // it names the number after the one that is missing
		time.Sleep(time.Second)
		w.want(t, "0=1", "0=2", "0=4", "0=5", "0=6")
	})
}

func TestSequenceNumbersWrap(t *testing.T) {
	state := filepath.Join(t.TempDir(), "x.session")
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		keep := func(o *Options) { o.State = state }
		newWorld(t, f, 1, keep).stop()
		f.mu.Lock()
		f.sequence = 1<<32 - 3
		f.mu.Unlock()
		f.change(num(1, 1))
		w := newWorld(t, f, 1, keep) // goes on with whatever number comes
		defer w.stop()
		w.change(num(1, 2))
		w.lose(true, num(1, 3))
		f.mu.Lock()
		f.kept[1] = encodeNotification(1, []*ua.MonitoredItemNotification{num(1, 3)}) // 0 is no number
		delete(f.kept, 0)
		f.sequence = 1
		f.mu.Unlock()
		w.change(num(1, 4))
		time.Sleep(time.Second)
		w.want(t, "0=1", "0=2", "0=3", "0=4")
	})
}

func TestCutAndReactivate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newFake(t), 1, nil)
		defer w.stop()
		w.change(num(1, 1))
		synctest.Wait()
		w.fakeServer.mu.Lock()
		w.refuse = true
		w.fakeServer.mu.Unlock()
		w.cut()
		w.lose(true, num(1, 2)) // sent into the broken connection
		w.change(num(1, 3))     // queued by the server
		time.Sleep(30 * time.Second)
		w.fakeServer.mu.Lock()
		w.refuse = false
		w.fakeServer.mu.Unlock()
		time.Sleep(15 * time.Second)
		w.want(t, "0=1", "0=2", "0=3")
		s := w.Stats()
		if s.Connects[rungReactivated] != 1 || s.Connects[rungCreated] != 1 || s.Republished != 1 {
			t.Errorf("counted %+v", s)
		}
	})
}

func TestTheLadder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newFake(t), 2, nil)
		defer w.stop()
		w.change(num(1, 1))
		synctest.Wait()
		w.cut()
		w.fakeServer.mu.Lock()
		clear(w.sessions) // the session is gone, the subscription lives
		w.fakeServer.mu.Unlock()
		w.lose(true, num(1, 2))
		time.Sleep(5 * time.Second)
		w.change(num(1, 3))
		time.Sleep(time.Second)
		w.want(t, "0=1", "0=2", "0=3")
		if s := w.Stats(); s.Connects[rungTransferred] != 1 {
			t.Errorf("counted %+v", s)
		}
		w.restart()
		time.Sleep(5 * time.Second)
		w.change(num(1, 4), num(2, 5))
		time.Sleep(time.Second)
		w.want(t, "0=1", "0=2", "0=3", "0=4", "1=5")
		if s := w.Stats(); s.Connects[rungCreated] != 2 {
			t.Errorf("counted %+v", s)
		}
		w.fakeServer.mu.Lock()
		w.fakeServer.sub = 0 // the subscription alone is gone
		for _, p := range w.publishes {
			go p.conn.fault(p.request, ua.StatusBadNoSubscription)
		}
		w.publishes = nil
		w.fakeServer.mu.Unlock()
		time.Sleep(5 * time.Second)
		w.change(num(1, 6))
		time.Sleep(time.Second)
		w.want(t, "0=1", "0=2", "0=3", "0=4", "1=5", "0=6")
	})
}

func TestADeadPeerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lost atomic.Pointer[time.Time]
		w := newWorld(t, newFake(t), 1, func(o *Options) {
			o.OnChange = func(up bool, _ error) {
				if now := time.Now(); !up {
					lost.CompareAndSwap(nil, &now)
				}
			}
		})
		defer w.stop()
		time.Sleep(time.Hour) // idle, but alive
		if lost.Load() != nil {
			t.Fatal("an idle server was taken for a dead one")
		}
		since := time.Now()
		w.fakeServer.mu.Lock()
		w.silent = true
		w.fakeServer.mu.Unlock()
		time.Sleep(6 * time.Second)
		if at := lost.Load(); at == nil || at.Sub(since) > 5*time.Second {
			t.Errorf("a dead peer was noticed at %v, silent since %v", at, since)
		}
		w.fakeServer.mu.Lock()
		w.silent = false
		w.fakeServer.mu.Unlock()
		time.Sleep(30 * time.Second)
		w.change(num(1, 1))
		time.Sleep(time.Second)
		w.want(t, "0=1")
	})
}

func TestWhatTheDiskRefusedIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newFake(t), 1, func(o *Options) { o.Sink.(*fakeSink).manual = true })
		defer w.stop()
		w.change(num(1, 1))
		w.change(num(1, 2))
		w.change(num(1, 3))
		synctest.Wait()
		w.sink.mu.Lock()
		done := w.sink.done
		w.sink.done, w.sink.manual = nil, false
		w.sink.mu.Unlock()
		done[0](nil)
		done[2](nil)
		done[1](errors.New("the disk failed"))
		time.Sleep(30 * time.Second)
		w.change(num(1, 4))
		time.Sleep(time.Second)
		if got := w.sink.seen(); !slices.Contains(got[3:], "0=2") || got[len(got)-1] != "0=4" {
			t.Errorf("the sink has %v, want 2 a second time and 4 last", got)
		}
		if s := w.Stats(); s.Missing != 0 {
			t.Errorf("counted %+v", s)
		}
	})
}

func TestMissingNodesAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.unknown["ns=2;s=n1"] = true
		w := newWorld(t, f, 3, nil)
		defer w.stop()
		w.sink.mu.Lock()
		w.sink.refuse[2] = errors.New("its topic is taken")
		w.sink.mu.Unlock()
		if s := w.Stats(); s.Watched != 2 || s.Failed != 1 {
			t.Errorf("counted %+v", s)
		}
		w.change(num(1, 1))
		time.Sleep(time.Minute)
		w.want(t, "0=1")
		f.mu.Lock()
		delete(f.unknown, "ns=2;s=n1")
		f.mu.Unlock()
		time.Sleep(10 * time.Second)
		if s := w.Stats(); s.Watched != 3 || s.Failed != 0 {
			t.Errorf("counted %+v after the node has come", s)
		}
		// A node that goes away while it is watched is asked for anew.
		w.change(&ua.MonitoredItemNotification{ClientHandle: 1, Value: &ua.DataValue{
			EncodingMask: ua.DataValueStatusCode, Status: ua.StatusBadNodeIDUnknown,
		}})
		synctest.Wait()
		if s := w.Stats(); s.Watched != 2 {
			t.Errorf("counted %+v after a node has gone", s)
		}
		time.Sleep(10 * time.Second)
		if s := w.Stats(); s.Watched != 3 {
			t.Errorf("counted %+v after the node was asked for anew", s)
		}
	})
}

func TestBatchesAreHalvedUntilTheyFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		sizes := []int{}
		f.onRequest = func(req ua.Request) (ua.Response, error) {
			if q, ok := req.(*ua.CreateMonitoredItemsRequest); ok {
				sizes = append(sizes, len(q.ItemsToCreate))
				if len(q.ItemsToCreate) > 30 {
					return nil, ua.StatusBadTooManyOperations
				}
			}
			return nil, nil
		}
		w := newWorld(t, f, 100, nil)
		defer w.stop()
		if s := w.Stats(); s.Watched != 100 {
			t.Errorf("counted %+v", s)
		}
		f.mu.Lock()
		if !slices.Equal(sizes, []int{100, 50, 25, 25, 25, 25}) {
			t.Errorf("asked for %v items at a time", sizes)
		}
		sizes = nil
		f.mu.Unlock()
		w.restart()
		time.Sleep(5 * time.Second)
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(sizes) == 0 || sizes[0] > 30 {
			t.Errorf("after a reconnect: asked for %v items at a time", sizes)
		}
	})
}

func TestQueuesAreSizedForTheOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.shrink = 50 // the server looks twice as often as asked
		w := newWorld(t, f, 1, nil)
		defer w.stop()
		if got := w.Stats().Budget; got != time.Minute {
			t.Errorf("the server keeps values for %s, want a minute", got)
		}
	})
	for _, c := range []struct {
		budget, sampling time.Duration
		want             uint32
	}{{time.Minute, time.Second, 60}, {time.Minute, 7 * time.Second, 9}, {time.Minute, 0, 600}, {0, time.Second, 1}} {
		l := &Link{o: Options{Budget: c.budget}}
		if got := l.queueSize(c.sampling); got != c.want {
			t.Errorf("%s at %s: queue of %d, want %d", c.budget, c.sampling, got, c.want)
		}
	}
}

func TestNamespacesMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, f, 1, nil)
		defer w.stop()
		asked := ""
		f.mu.Lock()
		f.onRequest = func(req ua.Request) (ua.Response, error) {
			if q, ok := req.(*ua.CreateMonitoredItemsRequest); ok {
				asked = q.ItemsToCreate[0].ItemToMonitor.NodeID.String()
			}
			return nil, nil
		}
		f.namespaces = []string{"http://opcfoundation.org/UA/", "urn:fake", "urn:new", "urn:test"}
		f.mu.Unlock()
		w.cut() // the session survives, the numbers do not
		time.Sleep(5 * time.Second)
		f.mu.Lock()
		defer f.mu.Unlock()
		if asked != "ns=3;s=n0" {
			t.Errorf("asked for %q, want the node under its new index", asked)
		}
	})
}

func TestSessionOutlivesTheProcess(t *testing.T) {
	state := filepath.Join(t.TempDir(), "x.session")
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		keep := func(o *Options) { o.State = state }
		w := newWorld(t, f, 2, keep)
		w.sink.mu.Lock()
		w.sink.manual = true
		w.sink.mu.Unlock()
		w.change(num(1, 1))
		w.change(num(1, 2))
		synctest.Wait()
		w.sink.settle(nil)
		w.stop()
		if n := f.unacked(); n != 0 {
			t.Errorf("%d notifications are not acknowledged after an orderly stop", n)
		}
		f.lose(true, num(1, 3)) // asked for, and sent to nobody
		f.change(num(1, 4))

		w = newWorld(t, f, 2, keep)
		w.want(t, "0=3", "0=4")
		if s := w.Stats(); s.Connects[rungReactivated] != 1 || s.Missing != 0 || s.Budget != time.Minute {
			t.Errorf("counted %+v", s)
		}
		w.stop()
	})
}

func TestStopWaitsForTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, f, 1, func(o *Options) { o.Sink.(*fakeSink).manual = true })
		w.change(num(1, 1))
		synctest.Wait()
		time.AfterFunc(time.Second, func() { w.sink.settle(nil) })
		started := time.Now()
		w.stop()
		if took := time.Since(started); took < time.Second || took > stopTimeout {
			t.Errorf("stopped after %s", took)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.sessions) != 0 {
			t.Error("a session that nobody can find again was left open")
		}
	})
}

// TestAPoisonedNotification: one that makes no sense, however often it is sent, holds nothing up.
func TestAPoisonedNotification(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, f, 1, nil)
		defer w.stop()
		w.change(num(1, 1))
		synctest.Wait()
		f.mu.Lock()
		f.sequence++
		data := encodeNotification(f.sequence, []*ua.MonitoredItemNotification{num(1, 2)})
		f.kept[f.sequence] = data[:len(data)-30] // cut short
		f.reply(f.kept[f.sequence])
		f.mu.Unlock()
		w.change(num(1, 3))
		time.Sleep(time.Second)
		w.want(t, "0=1", "0=3")
		if s := w.Stats(); s.Unreadable == 0 || s.Connects[rungReactivated] != 0 {
			t.Errorf("counted %+v", s)
		}
	})
}

// TestServersWithoutRepublish: small ones have none; what was missed is counted, the rest flows.
func TestServersWithoutRepublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, f, 1, nil)
		defer w.stop()
		f.mu.Lock()
		f.onRequest = func(req ua.Request) (ua.Response, error) {
			if _, ok := req.(*ua.RepublishRequest); ok {
				return nil, ua.StatusBadServiceUnsupported
			}
			return nil, nil
		}
		f.mu.Unlock()
		w.change(num(1, 1))
		synctest.Wait()
		w.cut()
		w.lose(true, num(1, 2))
		w.change(num(1, 3))
		time.Sleep(5 * time.Second)
		w.want(t, "0=1", "0=3")
		if s := w.Stats(); s.Missing != 1 {
			t.Errorf("counted %+v", s)
		}
	})
}

// TestAnOldSessionIsGivenUp: a server that hangs up on whoever takes a session back is asked for a new one in the end.
func TestAnOldSessionIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, f, 1, nil)
		defer w.stop()
		f.mu.Lock()
		old := f.nextID - 1
		f.onRequest = func(req ua.Request) (ua.Response, error) {
			if _, ok := req.(*ua.ActivateSessionRequest); ok && req.Header().AuthenticationToken.IntID() <= old {
				go f.cut()
				return nil, errors.New("no answer")
			}
			return nil, nil
		}
		f.mu.Unlock()
		w.cut()
		time.Sleep(2 * time.Minute)
		w.change(num(1, 1))
		time.Sleep(time.Second)
		w.want(t, "0=1")
	})
}

// TestASubscriptionThatSleeps: a server takes the session back, but its subscription never answers again.
func TestASubscriptionThatSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, f, 1, nil)
		defer w.stop()
		f.mu.Lock()
		asleep := f.sub
		f.onRequest = func(req ua.Request) (ua.Response, error) {
			if _, ok := req.(*ua.PublishRequest); ok && f.sub == asleep {
				return nil, errors.New("no answer")
			}
			return nil, nil
		}
		f.mu.Unlock()
		w.cut()
		time.Sleep(30 * time.Second)
		w.change(num(1, 1))
		time.Sleep(time.Second)
		w.want(t, "0=1")
	})
}

// TestADroppedSessionIsNoticed: also where nothing is watched, and only writes would fail.
func TestADroppedSessionIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, f, 0, nil)
		defer w.stop()
		before, err := w.link.Session()
		if err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		clear(f.sessions)
		f.mu.Unlock()
		time.Sleep(10 * time.Second)
		after, err := w.link.Session()
		if err != nil || after == before || after.token == before.token {
			t.Errorf("the session is %v, %v", after, err)
		}
	})
}

// TestRefusedPublishRequestsAreNoStorm: a server that takes one request at a time, or none for a while.
func TestRefusedPublishRequestsAreNoStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		asked, on := 0, true
		f.onRequest = func(req ua.Request) (ua.Response, error) {
			if _, ok := req.(*ua.PublishRequest); ok && on {
				asked++
				return nil, ua.StatusBadTooManyPublishRequests
			}
			return nil, nil
		}
		w := newWorld(t, f, 1, nil)
		defer w.stop()
		time.Sleep(5 * time.Second)
		f.mu.Lock()
		if asked > 30 {
			t.Errorf("asked %d times in 6 seconds", asked)
		}
		on = false
		f.mu.Unlock()
		w.change(num(1, 1))
		time.Sleep(time.Second)
		w.want(t, "0=1")
	})
}

func TestPace(t *testing.T) {
	p := defaultPace()
	for failures, most := range map[int]time.Duration{0: 200 * time.Millisecond, 1: 400 * time.Millisecond, 5: 3 * time.Second, 9: 3 * time.Second, 1000: 3 * time.Second} {
		for range 100 {
			if d := p.wait(failures, errors.New("refused")); d < 0 || d > most {
				t.Fatalf("%d failures: wait %s, want at most %s", failures, d, most)
			}
		}
	}
	if d := p.wait(0, fmt.Errorf("log in: %w", StatusCode(ua.StatusBadUserAccessDenied))); d < 5*time.Second {
		t.Errorf("a wrong password is tried again after %s", d)
	}
	if d := p.wait(0, &UntrustedError{}); d < time.Second || d > 3*time.Second {
		t.Errorf("an untrusted certificate is looked at again after %s", d)
	}
}
