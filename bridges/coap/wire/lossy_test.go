package wire

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coap "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// lossy is a network that loses a fifth of what it carries, delivers a tenth twice, and everything up to a second late, so
// that much is overtaken.
type lossy struct {
	lost, doubled, delivered atomic.Int64
}

func (n *lossy) carry(deliver func()) {
	if rand.IntN(5) == 0 {
		n.lost.Add(1)
		return
	}
	copies := 1
	if rand.IntN(10) == 0 {
		copies = 2
		n.doubled.Add(1)
	}
	for range copies {
		n.delivered.Add(1)
		after(rand.N(time.Second), deliver)
	}
}

// device is a client that does what RFC 7252 asks of one: one request at a time, sent again after growing pauses until it is
// acknowledged, and every confirmable response acknowledged.
type device struct {
	number int
	in     chan coap.Message
	send   func(b []byte)
}

// ask sends one request and waits for its answer, or gives up.
func (d *device) ask(t *testing.T, mid int) (answer coap.Message, ok bool) {
	token := fmt.Sprintf("%03d%04d", d.number, mid)
	b := encode(coap.Confirmable, codes.POST, mid, token, nil, token)
	wait := time.Duration(float64(2*time.Second) * (1 + rand.Float64()/2))
	giveUp := time.NewTimer(exchangeLifetime * time.Millisecond)
	defer giveUp.Stop()
	again := time.NewTimer(wait)
	defer again.Stop()
	d.send(b)
	for tries := 0; ; {
		select {
		case m := <-d.in:
			if m.Type == coap.Confirmable {
				d.send(bareAck(int(m.MessageID))) // of an earlier request as well
			}
			switch {
			case m.Type == coap.Acknowledgement && m.Code == codes.Empty && int(m.MessageID) == mid:
				again.Stop() // the answer comes by itself
			case m.Code != codes.Empty && string(m.Token) == token:
				if m.Type == coap.Acknowledgement && int(m.MessageID) != mid {
					t.Errorf("the answer to %s is on the acknowledgement of %d", token, m.MessageID)
				}
				return m, true
			}
		case <-again.C:
			if tries++; tries > 4 {
				return answer, false
			}
			wait *= 2
			again.Reset(wait)
			d.send(b)
		case <-giveUp.C:
			return answer, false
		}
	}
}

// TestLossyNetwork: whatever is lost, doubled or overtaken, no request is handled twice, and every device that did not give
// up has its answer. Handlers take from nothing to four seconds, so answers travel both ways.
func TestLossyNetwork(t *testing.T) {
	const devices, requests = 40, 100
	var net lossy
	var mu sync.Mutex
	handled := map[string]int{}
	h := func(r *Request) {
		mu.Lock()
		handled[string(r.Payload)]++
		mu.Unlock()
		switch rand.IntN(4) {
		case 0:
			r.Reply(Response{Code: codes.Changed})
		default:
			x := r.Park()
			after(rand.N(4*time.Second), func() { x.Reply(Response{Code: codes.Changed}) })
		}
	}
	run(t, Options{}, h, func(r *rig) {
		list := make([]*device, devices)
		for i := range list {
			list[i] = &device{number: i, in: make(chan coap.Message, 1000), send: func(b []byte) {
				net.carry(func() { r.conn.in <- packet{b, peerPath(i)} })
			}}
		}
		r.conn.out = func(b []byte, to Path) {
			a := to.Remote.Addr().As4()
			m := decode(t, b)
			net.carry(func() { list[int(a[2])<<8|int(a[3])].in <- m })
		}
		var wg sync.WaitGroup
		var answered, gaveUp atomic.Int64
		for _, d := range list {
			wg.Go(func() {
				for i := range requests {
					m, ok := d.ask(t, i+1000)
					if !ok {
						gaveUp.Add(1)
						continue
					}
					answered.Add(1)
					mu.Lock()
					n := handled[string(m.Token)]
					mu.Unlock()
					if m.Code != codes.Changed || n != 1 {
						t.Errorf("%s: answered %v, handled %d times", m.Token, m.Code, n)
					}
				}
			})
		}
		wg.Wait()
		time.Sleep(5 * time.Minute)
		for token, n := range handled {
			if n != 1 {
				t.Errorf("%s was handled %d times", token, n)
			}
		}
		st := r.server.Stats()
		t.Logf("%d answered, %d gave up; network: %d delivered, %d lost, %d doubled; server: %+v",
			answered.Load(), gaveUp.Load(), net.delivered.Load(), net.lost.Load(), net.doubled.Load(), st)
		if answered.Load()+gaveUp.Load() != devices*requests || gaveUp.Load() > devices*requests/20 {
			t.Errorf("%d answered, %d gave up, of %d", answered.Load(), gaveUp.Load(), devices*requests)
		}
		if st.Parked != 0 || st.Peers != 0 || st.Duplicates == 0 || st.Retransmissions == 0 {
			t.Errorf("%+v", st)
		}
	})
}

// TestLossyNetworkWithManyInFlight: a peer that has hundreds of requests under way at once, more than RFC 7252 lets it have, is
// served just once for each of them as well: its ring grows.
func TestLossyNetworkWithManyInFlight(t *testing.T) {
	const lanes, requests = 200, 20 // no more than a ring can hold, whose oldest would be forgotten while it is young
	var net lossy
	var mu sync.Mutex
	handled := map[string]int{}
	h := func(r *Request) {
		mu.Lock()
		handled[string(r.Payload)]++
		mu.Unlock()
		x := r.Park()
		after(rand.N(200*time.Millisecond), func() { x.Reply(Response{Code: codes.Changed}) })
	}
	run(t, Options{}, h, func(r *rig) {
		list := make([]*device, lanes)
		for i := range list {
			list[i] = &device{number: 7, in: make(chan coap.Message, 1000), send: func(b []byte) {
				net.carry(func() { r.conn.in <- packet{b, peerPath(1)} })
			}}
		}
		r.conn.out = func(b []byte, _ Path) {
			m := decode(t, b)
			net.carry(func() { list[int(m.MessageID)%lanes].in <- m }) // all answers are on acknowledgements
		}
		var wg sync.WaitGroup
		var answered, gaveUp atomic.Int64
		for lane, d := range list {
			wg.Go(func() {
				for i := range requests {
					if _, ok := d.ask(t, i*lanes+lane); ok {
						answered.Add(1)
					} else {
						gaveUp.Add(1)
					}
				}
			})
		}
		wg.Wait()
		for token, n := range handled {
			if n != 1 {
				t.Errorf("%s was handled %d times", token, n)
			}
		}
		st := r.server.Stats()
		t.Logf("%d answered, %d gave up; network: %d delivered, %d lost; server: %+v",
			answered.Load(), gaveUp.Load(), net.delivered.Load(), net.lost.Load(), st)
		if answered.Load()+gaveUp.Load() != lanes*requests || gaveUp.Load() > lanes*requests/20 || st.Duplicates == 0 {
			t.Errorf("%d answered, %d gave up, of %d; %+v", answered.Load(), gaveUp.Load(), lanes*requests, st)
		}
	})
}
