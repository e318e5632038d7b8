package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// sink is a cloud broker that does nothing but acknowledge, everything that one read brings in one write, and count by the numbers of the
// devices. It is faster than any gateway, so that a gateway is what is measured. It speaks MQTT 3.1.1 and 5, QoS 0 and 1.
type sink struct {
	t       testing.TB
	addr    string
	granted uint16 // Receive Maximum that it announces on MQTT 5; 0: none

	wg sync.WaitGroup

	mu      sync.Mutex
	ln      net.Listener
	conns   map[net.Conn]bool
	streams map[string]*sunk
	total   int            // first arrivals
	gone    map[string]int // records announced as never to come, by reason
	bytes   int64
	begun   time.Time // of the first arrival since reset
	latest  time.Time // of the last one
}

// sunk is what arrived on one topic.
type sunk struct {
	newest  int          // all up to this one arrived, apart from the missing ones
	missing map[int]bool // numbers that were left out when a higher one came
	late    int          // of those, how many came then
	repeats int          // arrivals of a number that had come
	// ages are those of messages that carry the time at which they were sent as a third word, in nanoseconds.
	ages []time.Duration
}

// newSink makes a sink that listens after up.
func newSink(t testing.TB) *sink {
	t.Helper()
	s := &sink{t: t, addr: "127.0.0.1:0", conns: map[net.Conn]bool{}, streams: map[string]*sunk{}, gone: map[string]int{}}
	s.up()
	t.Cleanup(func() {
		s.down()
		s.wg.Wait()
	})
	return s
}

func (s *sink) url() string { return "mqtt://" + s.addr }

// up listens (again), always at the same address.
func (s *sink) up() {
	s.t.Helper()
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.ln, s.addr = ln, ln.Addr().String()
	s.mu.Unlock()
	s.wg.Go(func() { // ends with ln
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			gone := s.ln != ln
			if !gone {
				s.conns[c] = true
			}
			s.mu.Unlock()
			if gone {
				c.Close()
				return
			}
			s.wg.Go(func() { // ends with its connection
				_ = s.serve(c)
				c.Close()
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			})
		}
	})
}

// down takes the sink away with all its connections.
func (s *sink) down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ln != nil {
		s.ln.Close()
		s.ln = nil
	}
	for c := range s.conns {
		c.Close()
	}
}

func (s *sink) serve(c net.Conn) error {
	r, w := bufio.NewReaderSize(c, 256<<10), bufio.NewWriterSize(c, 64<<10)
	version := byte(0)
	for {
		if r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		first, n, err := fixedHeader(r)
		if err != nil {
			return err
		}
		p, err := r.Peek(n)
		if err != nil {
			return err
		}
		switch first & 0xf0 {
		case typeConnect:
			version = p[6]
			_, _ = w.Write(s.connack(version))
		case typePublish:
			if id := s.take(version, first, p); id != nil {
				_, _ = w.Write([]byte{typePuback, 2, id[0], id[1]})
			}
		case typeSubscribe & 0xf0:
			ack := []byte{typeSuback, 3, p[0], p[1], 1}
			if version == 5 {
				ack = []byte{typeSuback, 4, p[0], p[1], 0, 1}
			}
			_, _ = w.Write(ack)
		case 0xc0:
			_, _ = w.Write([]byte{0xd0, 0})
		case typeDisconnect:
			return nil
		}
		if _, err := r.Discard(n); err != nil {
			return err
		}
	}
}

func (s *sink) connack(version byte) []byte {
	switch {
	case version < 5:
		return []byte{typeConnack, 2, 0, 0}
	case s.granted > 0:
		return []byte{typeConnack, 6, 0, 0, 3, 0x21, byte(s.granted >> 8), byte(s.granted)}
	}
	return []byte{typeConnack, 3, 0, 0, 0}
}

// fixedHeader reads the first byte of a packet and the length of what follows.
func fixedHeader(r *bufio.Reader) (first byte, n int, err error) {
	if first, err = r.ReadByte(); err != nil {
		return 0, 0, err
	}
	length, err := binary.ReadUvarint(r)
	if err == nil && length > 200<<10 {
		err = fmt.Errorf("packet of %d bytes", length)
	}
	return first, int(length), err
}

// take counts one PUBLISH and returns its identifier, nil with QoS 0.
func (s *sink) take(version, first byte, p []byte) (id []byte) {
	topic := p[2 : 2+binary.BigEndian.Uint16(p)]
	rest := p[2+len(topic):]
	if first>>1&3 > 0 {
		id, rest = rest[:2], rest[2:]
	}
	if version == 5 {
		n, used := binary.Uvarint(rest)
		rest = rest[used+int(n):]
	}
	if bytes.HasPrefix(topic, []byte("tidegate/")) {
		if bytes.HasSuffix(topic, []byte("/gaps")) {
			s.announced(rest)
		}
		return id
	}
	_, text, _ := bytes.Cut(rest, []byte(" "))
	number, text, _ := bytes.Cut(text, []byte(" "))
	n, err := strconv.Atoi(string(number))
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[string(topic)]
	if st == nil {
		st = &sunk{missing: map[int]bool{}}
		s.streams[string(topic)] = st
	}
	switch {
	case err != nil || n <= st.newest && !st.missing[n]:
		st.repeats++
		return id
	case n <= st.newest:
		delete(st.missing, n)
		st.late++
	default:
		for i := st.newest + 1; i < n; i++ {
			st.missing[i] = true
		}
		st.newest = n
	}
	if s.begun.IsZero() {
		s.begun = now
	}
	s.latest = now
	s.total++
	s.bytes += int64(len(p))
	if sent, _, _ := bytes.Cut(text, []byte(" ")); len(sent) == 19 {
		if at, err := strconv.ParseInt(string(sent), 10, 64); err == nil {
			st.ages = append(st.ages, now.Sub(time.Unix(0, at)))
		}
	}
	return id
}

// announced notes a report of records that will never come.
func (s *sink) announced(payload []byte) {
	var report struct {
		Reason string `json:"reason"`
		Count  int    `json:"count"`
	}
	if json.Unmarshal(payload, &report) == nil {
		s.mu.Lock()
		s.gone[report.Reason] += report.Count
		s.mu.Unlock()
	}
}

// arrived is the number of first arrivals so far.
func (s *sink) arrived() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// reset begins a new measurement.
func (s *sink) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total, s.begun = 0, time.Time{}
}

// rate is that of the arrivals since reset, in messages per second.
func (s *sink) rate() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return float64(s.total-1) / s.latest.Sub(s.begun).Seconds()
}

// requireAll wants the numbers 1 to want on a topic, in order.
func (s *sink) requireAll(t testing.TB, topic string, want int) {
	t.Helper()
	if late := s.requireEach(t, topic, want); late > 0 {
		t.Errorf("%s: %d messages came after later ones", topic, late)
	}
}

// requireEach wants the numbers 1 to want on a topic, in any order, and returns how many came after a later one.
func (s *sink) requireEach(t testing.TB, topic string, want int) (late int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[topic]
	if st == nil {
		st = &sunk{}
	}
	if st.newest != want || len(st.missing) > 0 {
		t.Errorf("%s: the newest number is %d, want %d; %d are missing, %d came again", topic, st.newest, want, len(st.missing), st.repeats)
	}
	return st.late
}

// late counts, by topic, the messages that came after later ones.
func (s *sink) late() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := map[string]int{}
	for topic, st := range s.streams {
		n[topic] = st.late
	}
	return n
}

// repeated counts arrivals of what had come before.
func (s *sink) repeated() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.streams {
		n += st.repeats
	}
	return n
}

// age gives the p-th part of the ages on a topic, sorted.
func (s *sink) age(topic string, p float64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[topic]
	if st == nil || len(st.ages) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(st.ages))
	return sorted[int(p*float64(len(sorted)-1))]
}

// load is what a number of devices publish: size bytes each, with QoS 1 and a window of messages in flight for each device.
type load struct {
	names  []string
	size   int
	window int
	rate   int // of all together, in messages per second; 0: as fast as they are acknowledged
}

// publish sends the numbers from+1 to from+n of one device and wants every acknowledgement in order.
func (l load) publish(addr, name string, from, n int) error {
	w, err := dial(addr, "3.1.1", login{client: name})
	if err != nil {
		return err
	}
	defer w.close()
	topic, size, window := "plant/"+name, l.size, l.window
	free := make(chan int, window)
	free <- window
	begin := time.Now()
	failed := make(chan error, 1)
	go func() { // ends with the last message, or with the connection
		var batch []byte
		filling := bytes.Repeat([]byte("x"), size)
		for sent := 0; sent < n; {
			room, ok := <-free
			if !ok {
				break
			}
			for batch = batch[:0]; room > 0 && sent < n; room-- {
				sent++
				text := fmt.Appendf(nil, "%s %d ", name, from+sent)
				text = append(text, filling[:max(0, size-len(text))]...)
				batch = append(batch, publishPacket("3.1.1", topic, 1, uint16(sent%65535+1), text)...)
			}
			if err := w.write(batch); err != nil {
				failed <- err
				return
			}
			if l.rate > 0 {
				time.Sleep(time.Until(begin.Add(time.Duration(sent*len(l.names)) * time.Second / time.Duration(l.rate))))
			}
		}
		failed <- nil
	}()
	defer close(free)
	credit := 0
	for i := range n {
		p, err := w.readWithin(60 * time.Second)
		if err != nil {
			return fmt.Errorf("%s: after %d of %d acknowledgements: %w", name, i, n, err)
		}
		if p.kind != typePuback || p.id() != uint16((i+1)%65535+1) {
			return fmt.Errorf("%s: acknowledgement %d: packet %#x, identifier %d", name, i+1, p.kind, p.id())
		}
		if credit++; credit >= window/8+1 {
			free <- credit
			credit = 0
		}
	}
	return <-failed
}

// run lets the devices publish n messages altogether, each its part behind the from messages that it published before, and returns how long
// it took.
func (l load) run(t testing.TB, addr string, from, n int) time.Duration {
	t.Helper()
	begin := time.Now()
	errs := make(chan error, len(l.names))
	for _, name := range l.names {
		go func() { errs <- l.publish(addr, name, from, n/len(l.names)) }() // ends with the last acknowledgement
	}
	for range l.names {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	return time.Since(begin)
}
