package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

// TestReserveHeap: with the reserve the collector lets more garbage be, and the reserve itself is not resident memory's business here.
func TestReserveHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	reserve := reserveHeap()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if len(reserve) != heapReserve || m.NextGC < 2*heapReserve {
		t.Errorf("%d bytes in reserve, the next collection at %d", len(reserve), m.NextGC)
	}
	runtime.KeepAlive(reserve)
	t.Setenv("GOGC", "50")
	if reserveHeap() != nil {
		t.Error("who set GOGC has a reserve all the same")
	}
}

// TestMemoryLimit: the soft limit follows what is in use, with room to spare, and is gone with keepSmall.
func TestMemoryLimit(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	before := debug.SetMemoryLimit(-1)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- keepSmall(ctx) }()
		synctest.Wait()
		if least := debug.SetMemoryLimit(-1); least != heapReserve+memoryLeast {
			t.Errorf("limit %d with nothing in use, want %d", least, heapReserve+memoryLeast)
		}
		used := make([]byte, 100<<20)
		runtime.GC()
		time.Sleep(limitEvery + time.Millisecond)
		synctest.Wait()
		if limit := debug.SetMemoryLimit(-1); limit < 150<<20 || limit > 250<<20 {
			t.Errorf("limit %d with %d in use", limit, len(used))
		}
		runtime.KeepAlive(used)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if after := debug.SetMemoryLimit(-1); after != before {
		t.Errorf("limit %d afterwards, %d before", after, before)
	}
}

// TestKeepSmall: what a load left behind is collected when it is over, and only then.
func TestKeepSmall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- keepSmall(ctx) }()
		time.Sleep(calmEvery / 2)
		collections := func() uint32 {
			synctest.Wait()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.NumForcedGC
		}
		var garbage []byte
		for range 4 { // a load: more than calmBytes between two looks
			garbage = make([]byte, 4*calmBytes)
			time.Sleep(calmEvery)
		}
		runtime.KeepAlive(garbage)
		busy := collections()
		time.Sleep(2 * calmEvery)
		calm := collections()
		if calm == busy {
			t.Error("nothing was collected after the load")
		}
		time.Sleep(20 * calmEvery)
		if n := collections(); n != calm {
			t.Errorf("%d more collections while nothing happened", n-calm)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
