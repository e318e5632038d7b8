package link

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// opening is an OpenSecureChannel request that waits for its answer. There is one at a time.
type opening struct {
	request uint32
	nonce   []byte
	answer  chan error
}

// hello exchanges buffer sizes. The deadline bounds a peer that accepts and says nothing.
func (c *channel) hello(endpoint string) error {
	_ = c.conn.SetDeadline(time.Now().Add(helloTimeout))
	msg := binary.LittleEndian.AppendUint32([]byte("HELF\x00\x00\x00\x00"), 0) // version
	for _, n := range []uint32{bufferBytes, bufferBytes, maxMessageBytes, maxChunks, uint32(len(endpoint))} {
		msg = binary.LittleEndian.AppendUint32(msg, n)
	}
	msg = append(msg, endpoint...)
	binary.LittleEndian.PutUint32(msg[4:], uint32(len(msg)))
	if _, err := c.conn.Write(msg); err != nil {
		return plain(err)
	}
	frame, err := c.frame()
	if err != nil {
		return err
	}
	if kind := string(frame[:4]); kind != "ACKF" {
		return fmt.Errorf("the server answers a hello by %q", kind)
	}
	r := &reader{b: frame[8:]}
	r.u32() // version: there is one
	receives, sends := r.u32(), r.u32()
	c.requestBytes, c.requestParts = r.u32(), r.u32()
	if r.err != nil || receives < leastBufferBytes || sends < leastBufferBytes || sends > bufferBytes {
		return fmt.Errorf("the server's buffers of %d and %d bytes are outside of %d to %d", receives, sends, leastBufferBytes, bufferBytes)
	}
	c.chunkBytes = int(min(receives, bufferBytes))
	return c.conn.SetDeadline(time.Time{})
}

// open issues or renews the token of the channel.
func (c *channel) open(ctx context.Context, kind ua.SecurityTokenRequestType) error {
	nonce, err := c.asymmetric.MakeNonce()
	if err != nil {
		return err
	}
	wanted := c.lifetime
	if wanted <= 0 {
		wanted = tokenLifetime
	}
	o := &opening{nonce: nonce, answer: make(chan error, 1)}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.last++
	o.request = c.last
	c.opening = o
	c.mu.Unlock()
	req := &ua.OpenSecureChannelRequest{
		RequestType: kind, SecurityMode: c.mode, ClientNonce: nonce, RequestedLifetime: uint32(wanted / time.Millisecond),
	}
	if err := c.write("OPN", req, o.request, NodeID{}, writeTimeout); err != nil {
		return c.reason(err)
	}
	timer := time.NewTimer(writeTimeout)
	defer timer.Stop()
	select {
	case err := <-o.answer:
		return err
	case <-timer.C:
		return fmt.Errorf("%w within %s", errNoAnswer, writeTimeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// opened takes the answer to an OpenSecureChannel request. It runs before the next chunk is looked at, which may be
// secured by the new keys already.
func (c *channel) opened(request uint32, body []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.opening
	if o == nil || o.request != request {
		return // nobody asked
	}
	c.opening = nil
	o.answer <- c.install(o, body)
}

func (c *channel) install(o *opening, body []byte) error {
	var p openResponse
	if err := decodeResponse(body, &p); err != nil {
		return err
	}
	if !c.none() && len(p.nonce) != len(o.nonce) {
		return fmt.Errorf("the server's nonce has %d bytes where %d are due", len(p.nonce), len(o.nonce))
	}
	lifetime := time.Duration(p.lifetime) * time.Millisecond
	if lifetime < time.Second {
		return fmt.Errorf("the server grants a security token for %s", lifetime)
	}
	if c.id != 0 && p.channel != c.id {
		return fmt.Errorf("the server renews channel %d as %d", c.id, p.channel)
	}
	algo, err := uapolicy.Symmetric(c.policy, o.nonce, p.nonce)
	if err != nil {
		return err
	}
	c.id, c.before, c.keys = p.channel, c.keys, keys{p.token, algo, min(lifetime, tokenLifetime)}
	return nil
}

// renew renews the token when three quarters of its life are over.
func (c *channel) renew() {
	for {
		c.mu.Lock()
		lifetime := c.keys.lifetime
		c.mu.Unlock()
		timer := time.NewTimer(lifetime / 4 * 3)
		select {
		case <-c.over:
			timer.Stop()
			return
		case <-timer.C:
		}
		if err := c.open(context.Background(), ua.SecurityTokenRequestTypeRenew); err != nil {
			c.fail(fmt.Errorf("renew the security token: %w", err))
			return
		}
	}
}
