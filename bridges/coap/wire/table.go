package wire

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
)

// endpoint is who a peer is: an address, as seen by one of our sockets.
type endpoint struct {
	remote netip.AddrPort
	socket int32
}

// peer is what is known about an endpoint. Its shard's mu guards it.
type peer struct {
	endpoint
	shard *shard
	ring  ring
	// out holds separate responses; nil for nearly all peers nearly always.
	out *outbox
	// next and prev are the neighbours in the shard's list of peers for which nobody owes an answer.
	next, prev *peer
	owed       int32  // requests whose answer is not done with
	used       uint32 // when its last request came, in milliseconds of the server
	mid        uint16 // the last message ID that we sent it under
}

// nextID returns a message ID for a message of our own.
func (p *peer) nextID() uint16 {
	p.mid++
	return p.mid
}

// shardCount spreads the peers over locks.
const shardCount = 16

// table holds the peers.
type table struct {
	seed   maphash.Seed
	shards [shardCount]shard
	count  atomic.Int64
	slots  atomic.Int64 // of all rings
	most   int64        // for slots
	forgot atomic.Uint64
}

// shard is a part of the table.
type shard struct {
	table *table
	limit int

	// mu guards what follows, and the peers. It is held neither while a handler runs nor while a datagram is sent. The mu of
	// the wheel and of the stash may be taken with it held.
	mu    sync.Mutex
	peers map[endpoint]*peer
	// idle are the peers for which nobody owes an answer, the one that was heard last at the front: it is a ring through this
	// element, of which only the links are used. Others are not forgotten.
	idle peer
}

func (t *table) init(maxPeers int) {
	t.seed = maphash.MakeSeed()
	t.most = int64(maxPeers) * setSlots
	for i := range t.shards {
		s := &t.shards[i]
		s.table, s.limit = t, max(maxPeers/shardCount, 1)
		s.peers = make(map[endpoint]*peer)
		s.idle.next, s.idle.prev = &s.idle, &s.idle
	}
}

// shard returns the one where an endpoint belongs.
func (t *table) shard(e endpoint) *shard {
	return &t.shards[maphash.Comparable(t.seed, e)%shardCount]
}

// admit returns the peer of an endpoint that sent a request, and makes it if need be. Where there are too many, the one that
// was heard longest ago is forgotten; nil means that an answer is owed to every one of them. The caller holds mu.
func (s *shard) admit(e endpoint, now uint32, firstID func() uint16) *peer {
	p := s.peers[e]
	if p == nil {
		if len(s.peers) >= s.limit {
			if s.idle.prev == &s.idle {
				return nil
			}
			s.forget(s.idle.prev)
		}
		p = &peer{endpoint: e, shard: s, mid: firstID()}
		s.peers[e] = p
		s.table.count.Add(1)
	} else if p.owed == 0 {
		p.unlink()
	}
	if p.owed == 0 {
		s.link(p)
	}
	p.used = now
	return p
}

func (s *shard) link(p *peer) {
	p.next, p.prev = s.idle.next, &s.idle
	p.next.prev, s.idle.next = p, p
}

func (p *peer) unlink() {
	p.next.prev, p.prev.next = p.prev, p.next
	p.next, p.prev = nil, nil
}

// forget drops an idle peer. The caller holds mu.
func (s *shard) forget(p *peer) {
	p.unlink()
	delete(s.peers, p.endpoint)
	s.table.count.Add(-1)
	s.table.slots.Add(-int64(len(p.ring)))
	s.table.forgot.Add(1)
}

// owe keeps p from being forgotten until settle is called as often. The caller holds mu.
func (s *shard) owe(p *peer) {
	if p.owed == 0 {
		p.unlink()
	}
	p.owed++
}

// settle is told that an answer is done with. The caller holds mu.
func (s *shard) settle(p *peer) {
	if p.owed--; p.owed == 0 {
		s.link(p)
	}
}

// claim finds a slot in p's ring, which may grow while there are slots left for all rings. The caller holds mu.
func (s *shard) claim(p *peer, mid uint16, now uint32) *slot {
	return p.ring.claim(mid, now, func(from, to int) bool {
		t := s.table
		more := int64(to - from)
		if from > 0 && t.slots.Load()+more > t.most {
			return false
		}
		t.slots.Add(more)
		return true
	})
}

// sweep forgets the peers whose requests are all past.
func (t *table) sweep(now uint32) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for p := s.idle.prev; p != &s.idle && now-p.used >= exchangeLifetime; p = s.idle.prev {
			s.forget(p)
		}
		s.mu.Unlock()
	}
}
