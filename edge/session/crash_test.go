package session

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// world is a store whose machine crashes now and then, with clients that keep their half of the sessions. What was on disk
// when something was promised must be there afterwards.
type world struct {
	t    *testing.T
	rnd  *rand.Rand
	disk *disk
	log  *buffer.Log
	m    *Manager

	uplink  *buffer.Queue
	clients []*client
	n       int            // of the newest message
	sent    map[int]sentTo // what becomes of each message
	kept    map[string][]string
	crashes int
	crowds  map[*crowd]bool
}

// sentTo is what is known of one message.
type sentTo struct {
	topic    string
	qos      message.QoS
	payload  []byte
	promised bool  // it was on disk before anything failed
	who      []int // clients that subscribed to it for certain
}

// client is the far end of a session.
type client struct {
	w       *world
	index   int
	s       *Session
	conn    *clientConn
	subs    map[string]bool // by topic: acknowledged; false: may be there or not
	got     []int           // in order, without repetitions of QoS 2
	count   map[int]int
	held    map[uint16]bool // QoS 2 received and not released
	inbound map[uint16]bool // true: PUBREC came, false: nobody knows
	nextID  uint16
}

// clientConn keeps what was written, packet by packet.
type clientConn struct {
	mu     sync.Mutex
	buf    []byte
	closed bool
}

func (c *clientConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	c.buf = append(c.buf, p...)
	return len(p), nil
}

func (c *clientConn) WaitWritable() error { return nil }

func (c *clientConn) Fail(error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

func (c *clientConn) take() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.buf
	c.buf = nil
	return b
}

var worldTopics = []string{"a", "b", "c"}

// start opens the log and the store, as a start of the gateway does.
func (w *world) start() {
	w.t.Helper()
	var err error
	if w.log, err = buffer.Open("/log", buffer.Options{FS: w.disk, SegmentBytes: 64 << 10, Compress: true}); err != nil {
		w.t.Fatal(err)
	}
	if w.uplink, err = w.log.Queue("uplink", buffer.QueueOptions{Bound: w.log.NewBound(256<<10, buffer.DropOldest)}); err != nil {
		w.t.Fatal(err)
	}
	st, err := OpenStore(w.log, 1<<20, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	w.m = New(Options{Store: st, RetainedLimit: 100})
	if n := st.Lost(); n > 0 {
		w.t.Fatalf("%d records are lost", n)
	}
	for _, c := range w.clients {
		c.s, c.conn = nil, nil
	}
}

// crash ends the machine, or only the process, in the middle of everything.
func (w *world) crash(power bool) {
	w.crashes++
	left := w.disk.cut(power)
	_ = w.log.Close()
	w.disk = left
	w.start()
}

func (c *client) connect() {
	c.conn = &clientConn{}
	present := false
	c.s, present, _ = c.w.m.Attach(Connect{
		Conn: c.conn, Client: fmt.Sprint("client", c.index), Version: 4, Expiry: time.Hour, ReceiveMaximum: 10, Allow: allowAll,
	})
	if err := c.s.Secure(); err != nil {
		c.w.t.Fatal(err)
	}
	if !present && len(c.subs) > 0 {
		c.w.t.Fatalf("client %d: the session is gone", c.index)
	}
	for id, known := range c.inbound {
		if _, there := c.s.Receive(id); known && !there {
			c.w.t.Fatalf("client %d: the server forgot that it received %d", c.index, id)
		}
	}
}

func (c *client) disconnect() {
	c.w.m.Detach(c.s, c.conn)
	c.s.Left(nil)
	c.s, c.conn = nil, nil
}

// pump lets the server send and the client answer, rounds times.
func (c *client) pump(rounds int) {
	for range rounds {
		c.s.restock(c.conn)
		b, _ := c.s.encode(c.conn, nil)
		if len(b) > 0 {
			if c.s.secured() != nil {
				return
			}
			_, _ = c.conn.Write(b)
		}
		c.read()
	}
}

// read answers what has come.
func (c *client) read() {
	for b := c.conn.take(); len(b) > 0; {
		n, used := binary.Uvarint(b[1:])
		head, body := b[0], b[1+used:][:n]
		b = b[1+used+int(n):]
		switch head >> 4 {
		case 3:
			c.publish(head, body)
		case 6:
			id := binary.BigEndian.Uint16(body)
			delete(c.held, id)
			c.s.Pubcomp(c.conn, id)
		}
	}
}

func (c *client) publish(head byte, body []byte) {
	n := int(binary.BigEndian.Uint16(body))
	id := binary.BigEndian.Uint16(body[2+n:])
	number := int(binary.BigEndian.Uint32(body[4+n:]))
	if want := c.w.sent[number].payload; !bytes.Equal(body[4+n:], want) {
		c.w.t.Fatalf("client %d: message %d is %x, want %x", c.index, number, body[4+n:], want)
	}
	qos, dup := head>>1&3, head&flagDup != 0
	switch {
	case qos == 1:
		c.arrived(number)
		if c.w.rnd.IntN(10) > 0 {
			c.s.Puback(c.conn, id)
		}
	case c.held[id] && !dup:
		c.w.t.Fatalf("client %d: identifier %d is used for %d while it is open", c.index, id, number)
	default:
		if !c.held[id] {
			c.held[id] = true
			c.arrived(number)
		}
		if c.s.Pubrec(c.conn, id, true) {
			c.s.Answer(c.conn, []byte{0x62, 2, byte(id >> 8), byte(id)})
		}
	}
}

func (c *client) arrived(number int) {
	if c.count[number]++; c.count[number] == 1 {
		c.got = append(c.got, number)
	}
	x := c.w.sent[number]
	if _, maybe := c.subs[x.topic]; !maybe && c.count[number] == 1 && !slices.Contains(x.who, c.index) {
		c.w.t.Fatalf("client %d: message %d on %s that it does not subscribe to", c.index, number, x.topic)
	}
	if x.qos == 2 && c.count[number] > 1 {
		c.w.t.Fatalf("client %d: QoS 2 message %d comes %d times", c.index, number, c.count[number])
	}
}

func (c *client) subscribe(topic string) {
	c.s.Subscribe(c.conn, []*Subscription{{Filter: topic, QoS: 2}}, nil)
	if wait(c.s.Ticket()) == nil {
		c.subs[topic] = true
	}
}

func (c *client) unsubscribe(topic string) {
	delete(c.subs, topic)
	c.s.Unsubscribe(c.conn, topic)
	_ = wait(c.s.Ticket())
}

// receive publishes a message of the client with QoS 2, or finishes one.
func (c *client) receive() {
	for id, known := range c.inbound {
		if !known {
			continue // it stays, and must be known after every restart
		}
		if c.w.rnd.IntN(2) == 0 {
			t, there := c.s.Release(c.conn, id)
			if !there {
				c.w.t.Fatalf("client %d: %d is not known", c.index, id)
			}
			c.inbound[id] = false
			if wait(t) == nil {
				delete(c.inbound, id)
			}
			return
		}
	}
	c.nextID++
	msg := &message.Message{ID: message.NewID(), Topic: "up", QoS: 2, Payload: []byte("x")}
	r, err := c.w.m.Route(Publication{Msg: msg, Session: c.s, ID: c.nextID, Take: c.w.take})
	if err != nil {
		c.w.t.Fatal(err)
	}
	c.inbound[c.nextID] = wait(r.Ticket) == nil
}

// take is what a forwarder does for a message that no route wants, or for one with a copy for an uplink, which has the same bytes.
func (w *world) take(msg *message.Message, r Riders) (message.Ticket, error) {
	all := append(slices.Clone(r.May), r.Must...)
	if r.Message {
		first := &all[0]
		if w.rnd.IntN(2) == 0 {
			c := *msg
			c.ID = msg.ID.Copy(1)
			data, err := c.AppendBinary([]byte("route"))
			if err != nil {
				return message.Ticket{}, err
			}
			first.SameEnd = len(data) - len("route")
			all = append([]Record{{Queue: w.uplink, Data: data}}, all...)
		} else {
			data, err := msg.AppendBinary(slices.Clone(first.Data))
			if err != nil {
				return message.Ticket{}, err
			}
			first.Data = data
		}
	}
	if len(all) == 0 {
		return message.Ticket{}, nil
	}
	pos, err := w.log.Append(all...)
	if err != nil {
		return message.Ticket{}, err
	}
	own := all[len(all)-len(r.May)-len(r.Must):]
	copy(r.May, own)
	copy(r.Must, own[len(r.May):])
	if w.rnd.IntN(200) == 0 {
		w.uplink.Purge() // the cloud has them
	}
	return message.NewTicket(w.log, pos), nil
}

func (w *world) publish() {
	topic, qos := worldTopics[w.rnd.IntN(len(worldTopics))], message.QoS(1+w.rnd.IntN(2))
	n := 1
	if w.rnd.IntN(8) == 0 { // so many in a row that who takes them is a crowd, if away
		n = 2 * crowdRow
	}
	for range n {
		w.publishOne(topic, qos)
		if c := w.m.crowds.now; c != nil {
			w.crowds[c] = true
		}
	}
}

func (w *world) publishOne(topic string, qos message.QoS) {
	w.n++
	x := sentTo{topic: topic, qos: qos}
	for _, c := range w.clients {
		if c.subs[x.topic] {
			x.who = append(x.who, c.index)
		}
	}
	payload := binary.BigEndian.AppendUint32(nil, uint32(w.n))
	for range w.rnd.IntN(300) {
		payload = append(payload, byte(w.rnd.Uint32()))
	}
	x.payload = payload
	w.sent[w.n] = x
	r, err := w.m.Route(Publication{Msg: &message.Message{ID: message.NewID(), Topic: x.topic, QoS: x.qos, Payload: payload}, Take: w.take})
	if err != nil {
		w.t.Fatal(err)
	}
	if w.rnd.IntN(3) > 0 {
		x.promised = wait(r.Ticket) == nil
		w.sent[w.n] = x
	}
}

// retain sets or clears a retained message; kept remembers what may be there: after a promise only that.
func (w *world) retain() {
	topic := fmt.Sprint("r/", w.rnd.IntN(4))
	text := ""
	if w.rnd.IntN(4) > 0 {
		text = fmt.Sprint(w.rnd.Uint32())
	}
	if w.kept[topic] == nil {
		w.kept[topic] = []string{""}
	}
	w.kept[topic] = append(w.kept[topic], text)
	r, err := w.m.Route(Publication{Msg: &message.Message{ID: message.NewID(), Topic: topic, Retain: true, Payload: []byte(text)}, Take: w.take})
	if err != nil {
		w.t.Fatal(err)
	}
	if w.rnd.IntN(2) == 0 && wait(r.Ticket) == nil {
		w.kept[topic] = []string{text}
	}
}

// checkRetained wants each topic to have something that it may have, which is what it has from then on.
func (w *world) checkRetained() {
	for topic, may := range w.kept {
		text := ""
		if found := w.m.Retained(topic); len(found) > 0 {
			text = string(found[0].Payload)
		}
		if !slices.Contains(may, text) {
			w.t.Fatalf("%s has %q, may have %q", topic, text, may)
		}
		w.kept[topic] = []string{text}
	}
}

func (w *world) step() {
	c := w.clients[w.rnd.IntN(len(w.clients))]
	switch p := w.rnd.IntN(100); {
	case p < 45:
		w.publish()
	case p < 50:
		w.retain()
	case p < 53:
		w.m.Flush()
	case c.s == nil:
		if p < 75 {
			c.connect()
		}
	case p < 75:
		c.pump(1 + w.rnd.IntN(3))
	case p < 80:
		c.disconnect()
	case p < 86:
		c.receive()
	case p < 92:
		c.subscribe(worldTopics[w.rnd.IntN(len(worldTopics))])
	case p < 93:
		c.unsubscribe(worldTopics[w.rnd.IntN(len(worldTopics))])
	}
}

// settle lets every client have what waits for it, and checks that everything promised has come.
func (w *world) settle() {
	for _, c := range w.clients {
		if c.s == nil {
			c.connect()
		}
		for deadline := time.Now().Add(30 * time.Second); ; {
			c.pump(1)
			c.s.mu.Lock()
			left := c.s.queue.Len() + c.s.flight.ring.len()
			c.s.mu.Unlock()
			if left == 0 {
				break
			}
			if time.Now().After(deadline) {
				w.t.Fatalf("client %d: %d messages do not come", c.index, left)
			}
			if c.conn.take(); w.rnd.IntN(50) == 0 { // what was not acknowledged comes again on a new connection
				c.disconnect()
				c.connect()
			}
			time.Sleep(10 * time.Microsecond)
		}
		for number, x := range w.sent {
			if x.promised && slices.Contains(x.who, c.index) && c.count[number] == 0 {
				w.t.Fatalf("client %d: message %d on %s with QoS %d is lost", c.index, number, x.topic, x.qos)
			}
		}
		type stream struct {
			topic string
			qos   message.QoS
		}
		newest := map[stream]int{}
		for _, number := range c.got {
			k := stream{w.sent[number].topic, w.sent[number].qos}
			if number < newest[k] {
				w.t.Fatalf("client %d: %d comes after %d", c.index, number, newest[k])
			}
			newest[k] = number
		}
	}
	w.m.Flush()
	if n := w.m.store.messages.Stats().Records; n > 0 {
		// Everything was acknowledged by everybody.
		w.t.Fatalf("%d messages stay in the store", n)
	}
}

// TestCrashes: random work with crashes at random moments, by kill and by power cut. Nothing promised is lost, QoS 2 comes once.
func TestCrashes(t *testing.T) {
	var crowds atomic.Int64
	t.Cleanup(func() { // when all have ended
		if crowds.Load() == 0 {
			t.Error("no crowd was made: the test proves too little")
		}
	})
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := &world{t: t, rnd: rand.New(rand.NewPCG(seed, 7)), disk: newDisk(), sent: map[int]sentTo{}, kept: map[string][]string{}, crowds: map[*crowd]bool{}}
			for i := range 3 {
				w.clients = append(w.clients, &client{
					w: w, index: i, subs: map[string]bool{}, count: map[int]int{}, held: map[uint16]bool{}, inbound: map[uint16]bool{},
				})
			}
			w.start()
			for range 25 {
				for range 1 + w.rnd.IntN(80) {
					w.step()
				}
				w.crash(w.rnd.IntN(2) == 0)
				w.checkRetained()
				if w.rnd.IntN(4) == 0 {
					w.settle()
				}
			}
			w.settle()
			_ = w.log.Close()
			t.Logf("%d messages, %d crashes, %d crowds", w.n, w.crashes, len(w.crowds))
			crowds.Add(int64(len(w.crowds)))
		})
	}
}
