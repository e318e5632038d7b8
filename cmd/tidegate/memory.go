package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapReserve is how much garbage there may be before it is collected, beside as much as is in use. An idle gateway uses so little that
	// the collector would otherwise run for every 4 MiB, thirty times a second under load, which took a fifth of the processor time.
	heapReserve = 12 << 20
	// calmEvery is how often keepSmall looks, and calmBytes how little is allocated in that time while there is no load to speak of.
	calmEvery = 5 * time.Second
	calmBytes = 512 << 10
	// memoryLeast is the soft limit of all memory beside the reserve while little is in use, and limitEvery how often it follows what is in
	// use. Without it the collector lets twice as much come together as is in use, which a drain at full speed needs for moments only.
	memoryLeast = 40 << 20
	limitEvery  = time.Second
)

// reserveHeap makes the collector wait for heapReserve, and returns the memory that does it. It is never touched, so it takes address space
// and no memory. Who set GOGC or GOMEMLIMIT has decided otherwise.
func reserveHeap() []byte {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	return make([]byte, heapReserve)
}

// limitMemory sets the soft limit for so much live heap. It leaves room for half as much again and a little, so that the collector never
// runs without end for a limit that cannot be kept.
func limitMemory(live int64) {
	debug.SetMemoryLimit(heapReserve + max(memoryLeast, memoryLeast/2+live*3/2))
}

// keepSmall bounds the memory by what is in use, and gives it back to the machine when the load is over, until ctx ends.
func keepSmall(ctx context.Context) error {
	reserve := reserveHeap()
	if reserve != nil {
		before := debug.SetMemoryLimit(-1)
		defer debug.SetMemoryLimit(before)
		limitMemory(0)
	}
	tick, limit := time.NewTicker(calmEvery), time.NewTicker(limitEvery)
	defer tick.Stop()
	defer limit.Stop()
	var seen, collected uint64
	for {
		select {
		case <-ctx.Done():
			runtime.KeepAlive(reserve)
			return nil
		case <-limit.C:
			if reserve != nil {
				limitMemory(max(0, int64(measure("/gc/heap/live:bytes"))-heapReserve))
			}
			continue
		case <-tick.C:
		}
		now := measure("/gc/heap/allocs:bytes")
		if now-seen < calmBytes && now-collected > 4*calmBytes {
			debug.FreeOSMemory()
			debug.FreeOSMemory() // what pools keep goes with the second collection
			collected = now
		}
		seen = now
	}
}

// measure reads one number of the runtime.
func measure(name string) uint64 {
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
