package wire

import (
	"bytes"
	"encoding/hex"
	"testing"
	"time"

	coap "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// TestNoRequests: what is no well-formed request changes nothing, is never handled, and gets a reset where RFC 7252 asks for
// one.
func TestNoRequests(t *testing.T) {
	for _, c := range []struct {
		name, hex string
		reset     bool
	}{
		{"nothing", "", false},
		{"one byte", "40", false},
		{"three bytes", "400100", false},
		{"version 0 [3]", "00010001", false},
		{"version 2 [3]", "80010001", false},
		{"version 3 [3]", "c0010001", false},
		{"token length 9 [3]", "49010001010203040506070809", false},
		{"token length 15 [3]", "4f010001000000000000000000000000000000", false},
		{"token cut short, CON", "4401000101", true},
		{"token cut short, NON", "5401000101", false},
		{"option delta 15 [3.1]", "40010001f0", true},
		{"option length 15 [3.1]", "400100010f", true},
		{"option cut short", "40010001b3" + "7073", true},
		{"option, long delta cut short", "40010001d0", true},
		{"option, longer delta cut short", "40010001e000", true},
		{"option, long length cut short", "400100010d", true},
		{"option beyond 65,535", "40010001e0ffff" + "e0ffff", true},
		{"marker and no payload, CON [3]", "40010001ff", true},
		{"marker and no payload, NON [3]", "50010001ff", false},
		{"marker and no payload behind an option", "40010001b161ff", true},
		{"ping [4.3]", "40000001", true},
		{"empty with token [4.1]", "4100000101", true},
		{"empty with something behind [4.1]", "4000000100", true},
		{"empty NON [4.3]", "50000001", false},
		{"empty ACK", "60000001", false},
		{"empty ACK with a token", "6100000101", false},
		{"RST", "70000001", false},
		{"RST with something behind", "70000001ff01", false},
		{"request on an ACK", "60010001", false},
		{"request on a RST", "70010001", false},
		{"response in a CON", "40440001", true},
		{"response in a NON", "50440001", false},
		{"response on an ACK", "60450001", false},
		{"response 4.04 in a CON", "40840001", true},
		{"class 1, CON [4.2]", "40200001", true},
		{"class 1, NON [4.3]", "50200001", false},
		{"class 3, CON", "40600001", true},
		{"class 6, CON [4.2]", "40c00001", true},
		{"class 7, CON [4.2]", "40e10001", true},
		{"class 7, ACK", "60e10001", false},
		{"too many options", "40010001" + hex.EncodeToString(bytes.Repeat([]byte{0x10}, 600)), true},
		{"a line of text, which looks like a response", hex.EncodeToString([]byte("GET / HTTP/1.1\r\n\r\n")), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := hex.DecodeString(c.hex)
			if err != nil {
				t.Fatal(err)
			}
			h := func(*Request) { t.Error("handled") }
			run(t, Options{}, h, func(r *rig) {
				r.send(1, b)
				if c.reset {
					r.want(1, []byte{0x70, 0, b[2], b[3]})
				} else {
					r.want(1)
				}
				st := r.server.Stats()
				if st.Peers != 0 || st.Parked != 0 || st.Malformed+st.Unexpected != 1 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// TestUnusualRequests that are well-formed all the same.
func TestUnusualRequests(t *testing.T) {
	for name, b := range map[string][]byte{
		"no token, no option":             {0x40, 1, 0, 1},
		"an option that ends in a marker": {0x40, 1, 0, 1, 0xb1, 0xff},
		"a payload that is a marker":      {0x40, 1, 0, 1, 0xff, 0xff},
		"code 0.31":                       {0x40, 31, 0, 1},
		"token of 8":                      {0x48, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8},
		"40 options":                      append([]byte{0x40, 1, 0, 1}, bytes.Repeat([]byte{0x10}, 40)...),
	} {
		t.Run(name, func(t *testing.T) {
			run(t, Options{}, atOnce, func(r *rig) {
				r.send(1, b)
				if m := r.one(); m.Type != coap.Acknowledgement || m.Code != codes.Changed || m.MessageID != 1 {
					t.Errorf("answered %v", m)
				}
			})
		})
	}
}

// FuzzDatagram puts any sequence of datagrams through the whole layer: cut at each 0xfe, from two peers in turn, to a handler
// that answers at once or later. What comes out is well-formed, and when all is answered nothing is left behind.
func FuzzDatagram(f *testing.F) {
	for _, b := range [][]byte{
		con(1, "ab"), non(2, "cdefghij"), bareAck(3), rst(4), ack(5, "x", codes.Content),
		encode(coap.Confirmable, codes.GET, 6, "t", coap.Options{{ID: coap.URIPath, Value: []byte("ps")}, {ID: coap.NoResponse, Value: []byte{26}}}, "p"),
		{0x40, 1, 0, 1, 0xb1, 0xff},
		{0x40, 1, 0, 1, 0xff},
		{0x4f, 1, 0, 1},
		{},
		{0x40, 0, 0, 1},
	} {
		f.Add(b)
		f.Add(append(append(bytes.Clone(b), 0xfe), b...))
		f.Add(append(append(append(bytes.Clone(b), 0xfe, 0xfe), b...), 0xfe, 0x60, 0, 0, 1))
	}
	f.Fuzz(func(t *testing.T, all []byte) {
		var sent [][]byte
		conn := newMemConn(func(b []byte, _ Path) { sent = append(sent, b) })
		var parked []*Exchange
		calls := 0
		s := New(Options{MaxPeers: 16, MaxParked: 8, Handler: func(r *Request) {
			if calls++; calls%3 == 0 && !r.Busy() {
				parked = append(parked, r.Park())
				return
			}
			r.Reply(Response{Code: r.Code | 0x40, Options: r.Options, Payload: r.Payload})
		}}, conn)
		r := &Request{Options: make(coap.Options, 0, 1)}
		for i, b := range bytes.Split(all, []byte{0xfe}) {
			peers := s.Stats().Peers
			before := calls
			s.take(r, b, s.sockets[0], peerPath(i%2), time.Now())
			if s.Stats().Peers > peers && calls == before {
				t.Fatalf("%x made a peer and was not handled", b)
			}
		}
		for i, x := range parked {
			if i%2 == 0 && x.con {
				s.due(x) // its acknowledgement comes first
			}
			b := x.answer(x, Response{Code: codes.Changed}, nil)
			s.send(x.socket, b, x.path)
			if len(b) > 0 && b[0]>>4&3 == byte(coap.Confirmable) {
				s.settleOutgoing(endpoint{x.path.Remote, 0}, x.own, i%4 == 0)
			}
		}
		for _, b := range sent {
			m := coap.Message{Options: make(coap.Options, 0, maxOptions)}
			if h, rest, is := readHead(b); is == ignored && h.code != 0 && h.typ == coap.Confirmable || is == broken {
				t.Fatalf("sent %x", b)
			} else if _, _, err := readOptions(m.Options, rest); err != nil {
				t.Fatalf("sent %x: %v", b, err)
			}
		}
		if st := s.Stats(); st.Parked != 0 || s.wheel.count != 0 {
			t.Fatalf("%+v, %d deadlines", st, s.wheel.count)
		}
	})
}
