package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

// coapHeader is the length of a message's header with the four bytes of token that these tests use (RFC 7252, section 3).
const coapHeader = 8

// coapPost encodes a confirmable POST to /ps/TOPIC; identifier and token are patched in by stamp.
func coapPost(t testing.TB, topic string, payload []byte) []byte {
	t.Helper()
	m := message.Message{Type: message.Confirmable, Code: codes.POST, Token: make([]byte, 4), Payload: payload}
	for _, segment := range append([]string{"ps"}, strings.Split(topic, "/")...) {
		m.Options = m.Options.Add(message.Option{ID: message.URIPath, Value: []byte(segment)})
	}
	b := make([]byte, len(payload)+len(topic)+64)
	n, err := coder.DefaultCoder.Encode(m, b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// stamp gives an encoded request its number, as message ID and as token.
func stamp(b []byte, n uint32) {
	binary.BigEndian.PutUint16(b[2:4], uint16(n))
	binary.BigEndian.PutUint32(b[4:coapHeader], n)
}

// coapDevice posts "NAME 1", "NAME 2" and so on, each until it is answered: it retransmits like any confirmable request, sooner
// than a real device, and begins the request anew, under a new message ID, when that was of no use, as after a restart of the
// gateway. So what it counts as acknowledged was answered with 2.04.
type coapDevice struct {
	name, topic string
	addr        func() string

	mu       sync.Mutex
	acked    int
	requests uint32
	refused  map[codes.Code]int

	cancel context.CancelFunc
	ended  chan struct{}
}

func (d *coapDevice) start(t testing.TB) *coapDevice {
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel, d.ended, d.refused = cancel, make(chan struct{}), map[codes.Code]int{}
	t.Cleanup(d.stop)
	go func() { // ends with ctx
		defer close(d.ended)
		for ctx.Err() == nil {
			if d.post(ctx, t, d.ackedCount()+1) == nil {
				d.mu.Lock()
				d.acked++
				d.mu.Unlock()
			}
		}
	}()
	return d
}

// stop lets the request under way end and returns how many were acknowledged.
func (d *coapDevice) stop() {
	d.cancel()
	<-d.ended
}

func (d *coapDevice) ackedCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.acked
}

func (d *coapDevice) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fmt.Sprintf("%s: %d acknowledged, %d requests, refused %v", d.name, d.acked, d.requests, d.refused)
}

// post sends one message as one request; an error means that it was not acknowledged.
func (d *coapDevice) post(ctx context.Context, t testing.TB, n int) error {
	conn, err := net.Dial("udp", d.addr())
	if err != nil {
		return err
	}
	defer conn.Close()
	d.mu.Lock()
	d.requests++
	id := d.requests
	d.mu.Unlock()
	b := coapPost(t, d.topic, fmt.Appendf(nil, "%s %d", d.name, n))
	stamp(b, id)
	in := make([]byte, 1500)
	for try := 0; try < 5 && ctx.Err() == nil; try++ {
		_, _ = conn.Write(b)
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		for {
			size, err := conn.Read(in)
			if err != nil {
				break
			}
			code, done := d.response(conn, in[:size], id)
			if !done {
				continue
			}
			if code != codes.Changed {
				d.mu.Lock()
				d.refused[code]++
				d.mu.Unlock()
				return fmt.Errorf("answered %v", code)
			}
			return nil
		}
	}
	return errors.New("no answer")
}

// response looks at a datagram; done says that it is the response to request id.
func (d *coapDevice) response(conn net.Conn, b []byte, id uint32) (code codes.Code, done bool) {
	m := message.Message{Options: make(message.Options, 0, 16)}
	if _, err := coder.DefaultCoder.Decode(b, &m); err != nil {
		return 0, false
	}
	if m.Code == codes.Empty || len(m.Token) != 4 || binary.BigEndian.Uint32(m.Token) != id {
		return 0, false
	}
	if m.Type == message.Confirmable { // a separate response wants an acknowledgement
		ack := []byte{0x60, 0, byte(m.MessageID >> 8), byte(m.MessageID)}
		_, _ = conn.Write(ack)
	}
	return m.Code, true
}
