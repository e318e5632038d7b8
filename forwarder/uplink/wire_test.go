package uplink

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

func TestPublishBytes(t *testing.T) {
	m := message.Message{Topic: "a/b", Payload: []byte("21.5"), ContentType: "t", CorrelationData: []byte{}}
	p := publication{m: &m, identity: Identity{ID: "x"}, packetID: 0x1234, qos: 1, retain: true}
	for _, c := range []struct {
		version byte
		want    string
	}{
		{version311, "\x33\x0b\x00\x03a/b\x12\x3421.5"},
		{version5, "\x33\x1e\x00\x03a/b\x12\x34\x12\x03\x00\x01t\x09\x00\x00\x26\x00\x05tg-id\x00\x01x21.5"},
	} {
		if got := string(appendPublish(nil, c.version, p)); got != c.want {
			t.Errorf("version %d:\n got %q\nwant %q", c.version, got, c.want)
		}
	}
}

func TestAckBytes(t *testing.T) {
	for _, c := range []struct {
		kind, code byte
		want       string
	}{
		{packets.Puback, 0, "\x40\x02\x01\x02"},
		{packets.Puback, 0x87, "\x40\x03\x01\x02\x87"},
		{packets.Pubrel, 0, "\x62\x02\x01\x02"}, // [MQTT-3.6.1-1]
		{packets.Pubrel, 0x92, "\x62\x03\x01\x02\x92"},
	} {
		if got := string(appendAck(nil, c.kind, 0x0102, c.code)); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// Whatever is written reads back the same with another implementation.
func FuzzPublishReadsBack(f *testing.F) {
	f.Add("a/b", []byte("payload"), "text/plain", "answer", []byte{1}, "k", "v", "id", uint16(7), true, uint8(2))
	f.Add("a", []byte{}, "", "", []byte(nil), "", "", "", uint16(1), false, uint8(1))
	f.Fuzz(func(t *testing.T, topic string, payload []byte, content, response string, correlation []byte, key, value, id string,
		packetID uint16, utf8 bool, qos uint8,
	) {
		for _, s := range []string{topic, content, response, key, value, id} {
			if s != "" && message.ValidName(s) != nil {
				return // the edge lets no such text in
			}
		}
		m := message.Message{
			Topic: topic, Payload: payload, ContentType: content, ResponseTopic: response, CorrelationData: correlation,
			PayloadUTF8: utf8, Properties: []message.Property{{Key: key, Value: value}}, Expires: time.Now().Add(time.Hour),
		}
		p := publication{m: &m, identity: Identity{ID: id, Seq: value}, packetID: max(packetID, 1), qos: 1 + qos%2}
		for _, version := range []byte{version311, version5} {
			if check(version, p, 0) != nil {
				continue
			}
			b := appendPublish([]byte("before"), version, p)
			r := bufio.NewReader(bytes.NewReader(b[len("before"):]))
			first, n, err := readHeader(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r)
			if err != nil || len(body) != n {
				t.Fatalf("remaining length %d, but %d bytes follow (%v)", n, len(body), err)
			}
			pk := packets.Packet{ProtocolVersion: version}
			if err := pk.FixedHeader.Decode(first); err != nil {
				t.Fatal(err)
			}
			pk.FixedHeader.Remaining = n
			if err := pk.PublishDecode(body); err != nil {
				t.Fatal(err)
			}
			if pk.TopicName != topic || !bytes.Equal(pk.Payload, payload) || pk.PacketID != p.packetID || pk.FixedHeader.Qos != p.qos {
				t.Fatalf("reads back as %+v", pk)
			}
			if version == version5 && (pk.Properties.ContentType != content ||
				!bytes.Equal(pk.Properties.CorrelationData, correlation) || pk.Properties.PayloadFormatFlag != utf8) {
				t.Fatalf("properties read back as %+v", pk.Properties)
			}
		}
	})
}

// newTestConn is a connection without a network, for feeding the reader.
func newTestConn(version byte) *pipelined {
	nc, other := net.Pipe()
	_ = other.Close()
	p := &pipelined{
		version: version, tcp: nc, box: newOutbox(nc), queue: make(chan command, 1000), gone: make(chan struct{}),
		closed: make(chan struct{}), win: newWindow(200, 100),
		hooks: hooks{subscribed: func([]byte) {}, overflow: func() {}},
	}
	close(p.gone) // a full queue does not stop the reader
	return p
}

// Whatever the broker sends: no panic, the reader ends with an error, and no message is completed twice.
func FuzzReader(f *testing.F) {
	f.Add([]byte("\x40\x02\x00\x65\x40\x02\x00\x66"), true)
	f.Add([]byte("\x40\x04\x00\x65\x97\x00"), true)
	f.Add([]byte("\x50\x02\x00\x01\x70\x02\x00\x01"), false)
	f.Add([]byte("\x32\x09\x00\x01a\x00\x05\x00xyz"), true)
	f.Add([]byte("\x90\x04\xff\xff\x00\x01\xe0\x01\x8e"), true)
	f.Add([]byte("\xd0\x00\xe0\x07\x97\x05\x1f\x00\x02no"), true)
	f.Fuzz(func(t *testing.T, in []byte, five bool) {
		version := byte(version311)
		if five {
			version = version5
		}
		p := newTestConn(version)
		calls := map[int]int{}
		for i := range 50 {
			qos := byte(1 + i%2)
			if _, ok := p.win.take(qos, func(error) { calls[i]++ }); !ok {
				t.Fatal("no identifier")
			}
		}
		if err := p.read(bufio.NewReader(bytes.NewReader(in))); err == nil {
			t.Fatal("the reader ended without a reason")
		}
		for _, done := range p.win.drain() {
			done(ErrDisconnected)
		}
		for i := range 50 {
			if calls[i] != 1 {
				t.Fatalf("message %d was completed %d times", i, calls[i])
			}
		}
	})
}

// A decoder that fails over its input is an error like any other bad packet.
func TestDecoderThatFails(t *testing.T) {
	err := decode(func(b []byte) error { _ = b[7]; return nil }, []byte{1})
	if err == nil || !strings.Contains(err.Error(), "out of range") {
		t.Errorf("got %v", err)
	}
	want := errors.New("bad packet")
	if err := decode(func([]byte) error { return want }, nil); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

func FuzzConnack(f *testing.F) {
	f.Add([]byte{0, 0, 0}, true)
	f.Add([]byte{1, 0, 3, 33, 0, 20}, true)
	f.Add([]byte{0, 4}, false)
	f.Add([]byte{0, 1}, true)
	f.Fuzz(func(t *testing.T, body []byte, five bool) {
		s := settings{version: version311}
		if five {
			s.version = version5
		}
		g, err := granted(&s, body)
		if err == nil && (g.maxQoS == 0 || len(body) < 2) {
			t.Fatalf("granted %+v", g)
		}
	})
}

func TestAcknowledgementsThatDoNotFit(t *testing.T) {
	for _, c := range []struct {
		name string
		in   string
		qos  byte
	}{
		{"PUBACK for a QoS 2 message", "\x40\x02\x00\x01", 2},
		{"PUBREC for a QoS 1 message", "\x50\x02\x00\x65", 1},
		{"PUBCOMP before PUBREC", "\x70\x02\x00\x01", 2},
		{"PUBCOMP with an error", "\x50\x02\x00\x01\x70\x03\x00\x01\x92", 2},
		{"identifier in use", "\x40\x03\x00\x65\x91", 1},
		{"packet identifier 0 [MQTT-2.2.1-3]", "\x40\x02\x00\x00", 1},
		{"cut short", "\x40\x01\x00", 1},
		{"unknown packet type", "\xf1\x00", 1},
		{"remaining length of five bytes", "\x40\x80\x80\x80\x80\x01", 1},
	} {
		p := newTestConn(version5)
		p.win.last, p.win.lastExact = 100, 0 // identifiers 0x65 and 1
		var got []error
		id, _ := p.win.take(c.qos, func(err error) { got = append(got, err) })
		if want := map[byte]uint16{1: 0x65, 2: 1}[c.qos]; id != want {
			t.Fatalf("identifier %d, want %d", id, want)
		}
		err := p.read(bufio.NewReader(bytes.NewReader([]byte(c.in))))
		if label := endLabel(err); len(got) != 0 || label != endProtocol && label != endNetwork {
			t.Errorf("%s: completed with %v, ended with %v", c.name, got, err)
		}
	}
}

func TestStrayAcknowledgementsChangeNothing(t *testing.T) {
	p := newTestConn(version5)
	var got []error
	id, _ := p.win.take(1, func(err error) { got = append(got, err) })
	stray := append(appendAck(nil, packets.Puback, id+1, 0), appendAck(nil, packets.Pubcomp, id+2, 0)...)
	stray = append(stray, appendAck(nil, packets.Pubrec, id+3, 0)...)
	stray = append(stray, appendAck(nil, packets.Puback, id, 0x97)...)
	stray = append(stray, appendAck(nil, packets.Puback, id, 0)...) // a second one for the same
	if err := p.read(bufio.NewReader(bytes.NewReader(stray))); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if len(got) != 1 || !errors.Is(got[0], ErrQuota) {
		t.Errorf("completed with %v", got)
	}
	if want := appendAck(nil, packets.Pubrel, id+3, 0x92); !bytes.Equal(p.box.buf, want) {
		t.Errorf("answered %x, want %x", p.box.buf, want)
	}
}

// The window against a plain model: identifiers are never given twice, completion finds the right message, the order
// of sending is kept.
func TestWindowModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, limit := range []int{1, 2, 20, 100, 1000} {
		w := newWindow(limit, exactlyOnceWindow)
		type entry struct {
			id uint16
			n  int
		}
		var model []entry
		var completed []int
		for n := range 20_000 {
			if rng.IntN(5) < 3 {
				qos := byte(1)
				if rng.IntN(4) == 0 {
					qos = 2
				}
				id, ok := w.take(qos, func(error) { completed = append(completed, n) })
				if ok {
					for _, e := range model {
						if limit <= 100 && e.id == id {
							t.Fatalf("identifier %d was given twice", id)
						}
					}
					if (qos == 2) != (id <= w.exactly) || id == 0 || id == subscribeID {
						t.Fatalf("identifier %d for qos %d", id, qos)
					}
					model = append(model, entry{id, n})
				} else if qos == 1 && len(model) < limit {
					t.Fatalf("no identifier with %d of %d in flight", len(model), limit)
				}
			} else if len(model) > 0 {
				i := rng.IntN(min(len(model), 8))
				s := w.find(model[i].id)
				if s == nil {
					t.Fatalf("identifier %d is not found", model[i].id)
				}
				w.release(s, time.Now())(nil)
				if got := completed[len(completed)-1]; got != model[i].n {
					t.Fatalf("identifier %d completed message %d, want %d", model[i].id, got, model[i].n)
				}
				model = append(model[:i], model[i+1:]...)
			}
			if w.busy != len(model) || w.busy > limit {
				t.Fatalf("%d busy, model has %d", w.busy, len(model))
			}
		}
		completed = nil
		for _, done := range w.drain() {
			done(ErrDisconnected)
		}
		if len(completed) != len(model) || w.busy != 0 {
			t.Fatalf("drained %d of %d", len(completed), len(model))
		}
		for i, e := range model {
			if completed[i] != e.n {
				t.Fatalf("drained out of order at %d", i)
			}
		}
	}
}

func TestWindowFillsUp(t *testing.T) {
	for _, limit := range []int{1, 20, 65, 8192, maxWindow, 65535} {
		w := newWindow(limit, exactlyOnceWindow)
		n := 0
		for _, qos := range []byte{2, 1} {
			for ; ; n++ {
				if _, ok := w.take(qos, nil); !ok {
					break
				}
			}
			if qos == 2 && n != min(limit, exactlyOnceWindow) {
				t.Errorf("limit %d: %d QoS 2 messages", limit, n)
			}
		}
		if n != min(limit, maxWindow) {
			t.Errorf("limit %d: %d messages", limit, n)
		}
	}
}

func TestPace(t *testing.T) {
	p := defaultPace()
	soft := ended(endNetwork, "refused")
	hard := &endError{label: endRefused, err: &refusal{version: version5, code: 0x86}}
	for failures := range 100 {
		most := min(p.limit, p.base<<min(failures, 20))
		for range 20 {
			if d := p.wait(failures, soft); d < 0 || d >= most {
				t.Fatalf("after %d failures: %s, want below %s", failures, d, most)
			}
			if d := p.wait(failures, hard); d < 30*time.Second || d > time.Minute {
				t.Fatalf("after a refused login: %s", d)
			}
		}
	}
	for code, want := range map[byte]bool{0x86: true, 0x87: true, 0x85: true, 0x88: false, 0x89: false, 0x97: false, 0x9F: false} {
		if got := (&refusal{version: version5, code: code}).lasting(); got != want {
			t.Errorf("%#x lasting: %v", code, got)
		}
	}
}

func TestDisconnectReasons(t *testing.T) {
	for body, want := range map[string]string{
		"":                             endKicked,
		"\x8e":                         endTakenOver, // a reason code without properties
		"\x8e\x00":                     endTakenOver,
		"\x97\x05\x1f\x00\x02no":       endKicked,
		"\x97\xff\xff\xff\xff\xff\xff": endKicked,
	} {
		if got := endLabel(parseDisconnect([]byte(body))); got != want {
			t.Errorf("%q: %s, want %s", body, got, want)
		}
	}
}

func TestErrorsSayWhatTheyAre(t *testing.T) {
	if err := ackError(0x99, ""); fmt.Sprint(err) != "the cloud broker refuses the message (0x99)" {
		t.Error(err)
	}
	if err := ackError(0x10, ""); err != nil {
		t.Errorf("no matching subscribers is success, got %v", err)
	}
}
