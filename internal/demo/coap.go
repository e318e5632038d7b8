package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

// Transmission parameters of RFC 7252, section 4.8, and how long a separate response may take.
const (
	ackTimeout    = 2 * time.Second
	maxRetransmit = 4
	responseAfter = 30 * time.Second
)

// coapClient is a CoAP device that sends one confirmable request after the other (NSTART = 1, RFC 7252, section 4.7).
type coapClient struct {
	conn net.Conn
	id   uint16
	buf  []byte
}

func dialCoAP(addr string) (*coapClient, error) {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		return nil, err
	}
	return &coapClient{conn: conn, id: uint16(rand.Uint32()), buf: make([]byte, 2048)}, nil //nolint:gosec // no secret
}

func (c *coapClient) close() { _ = c.conn.Close() }

// post sends payload to /ps/TOPIC and waits for the response; nil means 2.04 or 2.01.
func (c *coapClient) post(ctx context.Context, topic string, payload []byte) error {
	c.id++
	token := binary.BigEndian.AppendUint32(nil, rand.Uint32()) //nolint:gosec // no secret
	m := message.Message{Type: message.Confirmable, Code: codes.POST, MessageID: int32(c.id), Token: token, Payload: payload}
	for _, segment := range append([]string{"ps"}, strings.Split(topic, "/")...) {
		m.Options = m.Options.Add(message.Option{ID: message.URIPath, Value: []byte(segment)})
	}
	request := make([]byte, 512)
	n, err := coder.DefaultCoder.Encode(m, request)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	return c.exchange(ctx, request[:n], m)
}

// exchange sends a request until it is acknowledged, and waits for its response.
func (c *coapClient) exchange(ctx context.Context, request []byte, m message.Message) error {
	acknowledged := false
	timeout := ackTimeout + rand.N(ackTimeout/2) //nolint:gosec // no secret
	for try := 0; try <= maxRetransmit && ctx.Err() == nil; try++ {
		// A send error is that of an earlier datagram, which nobody took; the next may arrive.
		_, _ = c.conn.Write(request)
		deadline := time.Now().Add(timeout)
		for time.Now().Before(deadline) {
			r, err := c.receive(ctx, deadline)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				continue
			}
			if r.MessageID == m.MessageID && r.Type == message.Reset {
				return errors.New("the server answered with a reset")
			}
			if r.MessageID == m.MessageID && r.Type == message.Acknowledgement && !acknowledged {
				acknowledged = true
				deadline = time.Now().Add(responseAfter)
			}
			if r.Code != codes.Empty && string(r.Token) == string(m.Token) {
				return c.finish(r)
			}
		}
		if acknowledged {
			return fmt.Errorf("no response within %v", responseAfter)
		}
		timeout *= 2
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errors.New("no acknowledgement")
}

// receive reads one message. It wakes up now and then to see that ctx has ended.
func (c *coapClient) receive(ctx context.Context, deadline time.Time) (message.Message, error) {
	if err := context.Cause(ctx); err != nil {
		return message.Message{}, fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
	}
	_ = c.conn.SetReadDeadline(deadline)
	n, err := c.conn.Read(c.buf)
	if err != nil {
		return message.Message{}, err
	}
	m := message.Message{Options: make(message.Options, 0, 16)}
	_, err = coder.DefaultCoder.Decode(c.buf[:n], &m)
	return m, err
}

// finish acknowledges a separate response and says what it means.
func (c *coapClient) finish(r message.Message) error {
	if r.Type == message.Confirmable {
		ack := make([]byte, 4)
		n, err := coder.DefaultCoder.Encode(message.Message{Type: message.Acknowledgement, Code: codes.Empty, MessageID: r.MessageID}, ack)
		if err != nil {
			return fmt.Errorf("encode an acknowledgement: %w", err)
		}
		_, _ = c.conn.Write(ack[:n]) // lost: the server sends its response again, and this one is answered no more
	}
	if r.Code != codes.Changed && r.Code != codes.Created {
		return fmt.Errorf("the server answered %v", r.Code)
	}
	return nil
}
