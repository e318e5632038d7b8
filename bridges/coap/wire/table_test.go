package wire

import (
	"runtime"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// TestPeersAreFewHundredBytes: what an idle peer costs, with the one request that it sent.
func TestPeersAreFewHundredBytes(t *testing.T) {
	if bytes := bytesPerPeer(t, 20_000, 1); bytes > 1024 {
		t.Errorf("an idle peer takes %d bytes, want at most 1,024", bytes)
	} else {
		t.Logf("an idle peer takes %d bytes", bytes)
	}
	if bytes := bytesPerPeer(t, 20_000, 12); bytes > 1024 {
		t.Errorf("a peer with 12 requests takes %d bytes, want at most 1,024", bytes)
	} else {
		t.Logf("a peer with 12 requests takes %d bytes", bytes)
	}
}

func bytesPerPeer(t testing.TB, peers, requests int) int {
	conn := newMemConn(func([]byte, Path) {})
	s := New(Options{Handler: atOnce, MaxPeers: 2 * peers}, conn)
	goroutines := runtime.NumGoroutine()
	before := heap()
	r := &Request{}
	for n := range peers {
		for i := range requests {
			s.take(r, con(i, "abcd"), s.sockets[0], peerPath(n), time.Now())
		}
	}
	after := heap()
	if n := s.Stats().Peers; n < peers*9/10 {
		t.Fatalf("%d peers", n)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines more", n-goroutines)
	}
	bytes := int(after-before) / s.Stats().Peers
	runtime.KeepAlive(s)
	return bytes
}

func heap() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkIdlePeer reports the memory of a peer.
func BenchmarkIdlePeer(b *testing.B) {
	bytes := 0
	for b.Loop() {
		bytes = bytesPerPeer(b, 20_000, 1)
	}
	b.ReportMetric(float64(bytes), "bytes/peer")
	b.ReportMetric(0, "ns/op")
}

func TestTooManyPeersForgetTheLongestIdle(t *testing.T) {
	var s shelf
	calls := 0
	h := func(r *Request) {
		calls++
		if string(r.Payload) == "x" && r.mid == 1 {
			s.handle(r) // peer 1 waits for its answer
			return
		}
		atOnce(r)
	}
	run(t, Options{MaxPeers: shardCount}, h, func(r *rig) {
		r.send(1, con(1, "a"))
		for n := range 5000 {
			r.conn.in <- packet{con(2, "b"), peerPath(n + 2)}
		}
		r.take()
		if st := r.server.Stats(); st.Peers > shardCount || st.Forgotten < 4000 {
			t.Errorf("%+v", st)
		}
		// The one that waits is remembered however many came after.
		before := calls
		r.send(1, con(1, "a"))
		if calls != before {
			t.Error("a request that waits for its answer was handled again")
		}
		s.answer(codes.Changed)
		r.want(1, ack(1, "a", codes.Changed))
	})
}

// TestNoRoomForAPeer: when an answer is owed to every peer that can be remembered, another one is still answered.
func TestNoRoomForAPeer(t *testing.T) {
	var s shelf
	run(t, Options{MaxPeers: 1}, s.handle, func(r *rig) { // one for each shard
		for n := range 200 {
			r.conn.in <- packet{con(1, "a"), peerPath(n)}
			r.conn.in <- packet{non(2, "a"), peerPath(n)}
		}
		refused := 0
		for _, p := range r.take() {
			if decode(t, p.b).Code != codes.ServiceUnavailable {
				t.Fatalf("sent %s", text(p.b))
			}
			refused++
		}
		if n := r.server.Stats().Peers; n != shardCount || refused != 400-2*shardCount {
			t.Errorf("%d peers, %d refused", n, refused)
		}
		for range 2 * shardCount {
			s.answer(codes.Changed)
		}
	})
}

// TestSilentPeersAreForgotten when nothing that they send can be a duplicate.
func TestSilentPeersAreForgotten(t *testing.T) {
	run(t, Options{}, atOnce, func(r *rig) {
		for n := range 1000 {
			r.send(n, con(1, "a"))
		}
		time.Sleep(200 * time.Second)
		r.send(1, con(2, "a"))
		if n := r.server.Stats().Peers; n != 1000 {
			t.Errorf("%d peers", n)
		}
		time.Sleep(100 * time.Second)
		if n := r.server.Stats().Peers; n != 1 {
			t.Errorf("%d peers, want the one that was heard", n)
		}
		time.Sleep(200 * time.Second)
		if n, slots := r.server.Stats().Peers, r.server.table.slots.Load(); n != 0 || slots != 0 {
			t.Errorf("%d peers, %d slots", n, slots)
		}
	})
}

// TestRingsShareTheirRoom: busy peers take what room there is for rings, and no more.
func TestRingsShareTheirRoom(t *testing.T) {
	run(t, Options{MaxPeers: 320}, atOnce, func(r *rig) {
		for i := range 2000 {
			for n := range 5 {
				r.conn.in <- packet{con(i, "a"), peerPath(n)}
			}
		}
		r.take()
		slots := r.server.table.slots.Load()
		if slots > 320*setSlots || slots < 320*setSlots/4 {
			t.Errorf("%d slots, of %d", slots, 320*setSlots)
		}
	})
}
