package wire

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestWheelAgainstAModel sets, moves and clears deadlines at random; each is due once, no earlier than asked for and at most
// three ticks later.
func TestWheelAgainstAModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wheel
		w.init(time.Now())
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		due := map[*Exchange]time.Time{}
		fired := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.run(ctx, func(x *Exchange) {
				mu.Lock()
				defer mu.Unlock()
				at, ok := due[x]
				if late := time.Since(at); !ok || late < 0 || late > 3*tick {
					t.Errorf("due %v late (%v)", late, ok)
				}
				delete(due, x)
				fired++
			}, func() {})
		}()
		list := make([]*Exchange, 500)
		for i := range list {
			list[i] = &Exchange{}
			list[i].timer.exchange = list[i]
		}
		for range 20_000 {
			x := list[rand.N(len(list))]
			mu.Lock()
			switch rand.IntN(3) {
			case 0:
				w.clear(&x.timer)
				delete(due, x)
			default:
				d := rand.N(48 * time.Second)
				if rand.IntN(2) == 0 {
					d = rand.N(time.Second)
				}
				w.set(&x.timer, d)
				due[x] = time.Now().Add(d)
			}
			mu.Unlock()
			if rand.IntN(100) == 0 {
				time.Sleep(rand.N(2 * time.Minute)) // the wheel runs empty now and then
			} else {
				time.Sleep(rand.N(20 * time.Millisecond))
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(due) != 0 || w.count != 0 || fired < 1000 {
			t.Errorf("%d left, count %d, %d fired", len(due), w.count, fired)
		}
		cancel()
		<-done
	})
}

// TestWheelSleeps: with nothing to wait for there is no tick.
func TestWheelSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wheel
		w.init(time.Now())
		ctx, cancel := context.WithCancel(t.Context())
		sweeps := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.run(ctx, func(*Exchange) {}, func() { sweeps++ })
		}()
		synctest.Wait()
		for range 10 {
			w.mu.Lock()
			idle := w.idle
			w.mu.Unlock()
			if !idle {
				t.Error("awake with nothing to do")
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
		}
		cancel()
		<-done
		if sweeps != 10 {
			t.Errorf("%d sweeps", sweeps)
		}
	})
}
