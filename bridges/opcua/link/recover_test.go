package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopcua/opcua/ua"
)

// cutOn cuts the line instead of answering the requests that match says so of.
func (f *fakeServer) cutOn(match func(ua.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onRequest = func(req ua.Request) (ua.Response, error) {
		if match(req) {
			go f.cut()
			return nil, errors.New("no answer")
		}
		return nil, nil
	}
}

// TestACutWhileOldNotificationsAreFetched: a process takes over what the one before it never acknowledged, and loses the
// line on the way, again and again. Each notification comes all the same, once and in order.
func TestACutWhileOldNotificationsAreFetched(t *testing.T) {
	state := filepath.Join(t.TempDir(), "x.session")
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		keep := func(o *Options) { o.State = state }
		w := newWorld(t, f, 1, func(o *Options) { keep(o); o.Sink.(*fakeSink).manual = true })
		for i := range 6 {
			w.change(num(1, int32(i+1)))
		}
		synctest.Wait()
		w.stop() // nothing got on disk, nothing is acknowledged
		f.mu.Lock()
		delete(f.kept, 4) // a hole in what is owed is no loss: it was acknowledged
		f.mu.Unlock()

		cuts := map[uint32]int{1: 1, 3: 12, 6: 1}
		f.cutOn(func(req ua.Request) bool {
			q, ok := req.(*ua.RepublishRequest)
			if !ok || cuts[q.RetransmitSequenceNumber] == 0 {
				return false
			}
			cuts[q.RetransmitSequenceNumber]--
			return true
		})
		w = newWorld(t, f, 1, keep)
		defer w.stop()
		w.change(num(1, 7))
		time.Sleep(time.Minute)
		w.want(t, "0=1", "0=2", "0=3", "0=5", "0=6", "0=7")
		w.change(num(1, 8))
		time.Sleep(time.Second)
		w.want(t, "0=1", "0=2", "0=3", "0=5", "0=6", "0=7", "0=8")
		if s := w.Stats(); s.Missing != 0 {
			t.Errorf("counted %+v", s)
		}
	})
}

// TestWhatIsOwedAndNotThereIsCounted: the server lists a notification and does not send it.
func TestWhatIsOwedAndNotThereIsCounted(t *testing.T) {
	state := filepath.Join(t.TempDir(), "x.session")
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		keep := func(o *Options) { o.State = state }
		w := newWorld(t, f, 1, func(o *Options) { keep(o); o.Sink.(*fakeSink).manual = true })
		w.change(num(1, 1))
		w.change(num(1, 2))
		synctest.Wait()
		w.stop()
		f.mu.Lock()
		f.onRequest = func(req ua.Request) (ua.Response, error) {
			if q, ok := req.(*ua.RepublishRequest); ok && q.RetransmitSequenceNumber == 1 {
				return nil, ua.StatusBadMessageNotAvailable
			}
			return nil, nil
		}
		f.mu.Unlock()
		w = newWorld(t, f, 1, keep)
		defer w.stop()
		w.change(num(1, 3))
		time.Sleep(time.Second)
		w.want(t, "0=2", "0=3")
		if s := w.Stats(); s.Missing != 1 {
			t.Errorf("counted %+v", s)
		}
	})
}

// cutOff is a pump on a dead connection, whose link has no room for another delivery.
func cutOff(t *testing.T) *pump {
	t.Helper()
	none, err := ParseSecurity("None")
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(Options{Name: "x", Security: none})
	if err != nil {
		t.Fatal(err)
	}
	for range window {
		l.queue <- delivery{}
	}
	c := &channel{over: make(chan struct{}), err: errClosed}
	close(c.over)
	l.sub = &subscription{ID: 1, next: 5, high: 5}
	return &pump{l: l, s: &Session{c: c}}
}

// TestWhatWasNotHandedOverStaysDue: no number moves on for a notification that the connection took with it.
func TestWhatWasNotHandedOverStaysDue(t *testing.T) {
	for _, c := range []struct {
		what     string
		sequence uint32
	}{{"the next one", 5}, {"a late one that was given up", 3}} {
		p := cutOff(t)
		sub := p.l.sub
		sub.skipped = []uint32{2, 3}
		if err := p.order(context.Background(), notification{sequence: c.sequence}); err == nil {
			t.Errorf("%s: handed over to a full queue", c.what)
		}
		got := fmt.Sprint(sub.next, sub.high, sub.skipped)
		if got != "5 5 [2 3]" {
			t.Errorf("%s: next, high and skipped are %s", c.what, got)
		}
		if underway, _ := p.l.ledger.state(); underway != 0 {
			t.Errorf("%s: %d underway", c.what, underway)
		}
	}
}

// TestABrokenLineCostsNoSubscription: whatever is cut while the subscription moves to a new session, and however often, it
// is taken over in the end, with what the server has kept.
func TestABrokenLineCostsNoSubscription(t *testing.T) {
	for what, match := range map[string]func(ua.Request) bool{
		"learn":     func(req ua.Request) bool { _, ok := req.(*ua.ReadRequest); return ok },
		"transfer":  func(req ua.Request) bool { _, ok := req.(*ua.TransferSubscriptionsRequest); return ok },
		"republish": func(req ua.Request) bool { _, ok := req.(*ua.RepublishRequest); return ok },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				w := newWorld(t, f, 1, nil)
				defer w.stop()
				w.change(num(1, 1))
				synctest.Wait()
				cuts := 12
				f.cutOn(func(req ua.Request) bool {
					if cuts == 0 || !match(req) {
						return false
					}
					cuts--
					return true
				})
				f.mu.Lock()
				clear(f.sessions)
				f.mu.Unlock()
				w.cut()
				w.lose(true, num(1, 2))
				w.change(num(1, 3))
				time.Sleep(2 * time.Minute)
				w.want(t, "0=1", "0=2", "0=3")
				if s := w.Stats(); s.Connects[rungTransferred]+s.Connects[rungReactivated] != 1 || s.Connects[rungCreated] != 1 {
					t.Errorf("counted %+v", s)
				}
			})
		})
	}
}

// TestALostAnswerToTheTransfer: the server has moved the subscription, and says so when it is asked again.
func TestALostAnswerToTheTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, f, 1, nil)
		defer w.stop()
		asked := 0
		f.mu.Lock()
		clear(f.sessions)
		f.onRequest = func(req ua.Request) (ua.Response, error) {
			if _, ok := req.(*ua.TransferSubscriptionsRequest); !ok {
				return nil, nil
			}
			if asked++; asked == 1 {
				go f.cut()
				return nil, errors.New("no answer")
			}
			return &ua.TransferSubscriptionsResponse{Results: []*ua.TransferResult{{StatusCode: ua.StatusBadNothingToDo}}}, nil
		}
		f.mu.Unlock()
		w.cut()
		w.lose(true, num(1, 1))
		time.Sleep(10 * time.Second)
		w.want(t, "0=1")
	})
}

// TestNotNowIsNoRefusal: a server that is busy is asked again; only a definite answer ends a session or a subscription.
func TestNotNowIsNoRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, f, 1, nil)
		defer w.stop()
		busy := 3
		f.mu.Lock()
		sessions := len(f.sessions)
		f.onRequest = func(req ua.Request) (ua.Response, error) {
			if _, ok := req.(*ua.ActivateSessionRequest); ok && busy > 0 {
				busy--
				return nil, ua.StatusBadResourceUnavailable
			}
			return nil, nil
		}
		f.mu.Unlock()
		w.cut()
		time.Sleep(20 * time.Second)
		f.mu.Lock()
		if busy > 0 || len(f.sessions) != sessions {
			t.Errorf("%d sessions, want the old one alone", len(f.sessions))
		}
		busy = 3
		clear(f.sessions)
		f.onRequest = func(req ua.Request) (ua.Response, error) {
			if _, ok := req.(*ua.TransferSubscriptionsRequest); ok && busy > 0 {
				busy--
				return nil, ua.StatusBadTooManyOperations
			}
			return nil, nil
		}
		f.mu.Unlock()
		w.cut()
		w.lose(true, num(1, 1))
		time.Sleep(20 * time.Second)
		w.want(t, "0=1")
		if s := w.Stats(); s.Connects[rungTransferred] != 1 || s.Connects[rungCreated] != 1 {
			t.Errorf("counted %+v", s)
		}
	})
}

// TestAnEndedSubscriptionIsCounted: what the server held for it is gone, and that shows.
func TestAnEndedSubscriptionIsCounted(t *testing.T) {
	for what, spoil := range map[string]func(*fakeServer){
		"the transfer is refused": func(f *fakeServer) {
			clear(f.sessions)
			f.onRequest = func(req ua.Request) (ua.Response, error) {
				if _, ok := req.(*ua.TransferSubscriptionsRequest); ok {
					return nil, ua.StatusBadServiceUnsupported
				}
				return nil, nil
			}
		},
		"the subscription is gone": func(f *fakeServer) { f.sub = 0 },
		"the server is a new one":  func(f *fakeServer) { f.sub = 0; clear(f.sessions) },
		"the namespaces moved":     func(f *fakeServer) { f.namespaces = append(f.namespaces, "urn:more") },
		"the line breaks for two minutes": func(f *fakeServer) {
			f.onRequest = func(req ua.Request) (ua.Response, error) {
				if q, ok := req.(*ua.RepublishRequest); ok && q.SubscriptionID <= 102 {
					go f.cut()
					return nil, errors.New("no answer")
				}
				return nil, nil
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				var log bytes.Buffer
				w := newWorld(t, f, 1, func(o *Options) {
					o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
				})
				defer w.stop()
				w.change(num(1, 1))
				synctest.Wait()
				if s := w.Stats(); s.Abandoned != 0 {
					t.Errorf("counted %+v before", s)
				}
				f.mu.Lock()
				spoil(f)
				f.mu.Unlock()
				w.cut()
				time.Sleep(4 * time.Minute)
				if s := w.Stats(); s.Abandoned != 1 {
					t.Errorf("counted %+v", s)
				}
				w.change(num(1, 2))
				time.Sleep(time.Second)
				w.want(t, "0=1", "0=2")
				w.stop()
				if !strings.Contains(log.String(), "values that the server still held for it are lost") {
					t.Errorf("the log says %s", log.String())
				}
			})
		})
	}
}

// TestAnotherServerInTheConfiguration: what the one before held for this gateway is given up, not forgotten in silence.
func TestAnotherServerInTheConfiguration(t *testing.T) {
	state := filepath.Join(t.TempDir(), "x.session")
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		newWorld(t, f, 1, func(o *Options) { o.State = state }).stop()
		w := newWorld(t, f, 1, func(o *Options) { o.State, o.Endpoint = state, "opc.tcp://other:4840" })
		defer w.stop()
		if s := w.Stats(); s.Abandoned != 1 {
			t.Errorf("counted %+v", s)
		}
	})
}
