package link

import (
	"bufio"
	"context"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

const (
	// bufferBytes is the largest chunk that we take and, if the server agrees, send.
	bufferBytes = 65535
	// leastBufferBytes is the least that Part 6, 7.1.2.3 allows; a server that says less is not one.
	leastBufferBytes = 8192
	// writeTimeout bounds one write: a peer that takes nothing for so long is dead.
	writeTimeout = 5 * time.Second
	// helloTimeout bounds the first bytes of a connection each: TCP's handshake and OPC UA's. A line that has just come back
	// is found by a fresh attempt sooner than by an old one, whose packets are repeated ever more seldom.
	helloTimeout = 3 * time.Second
	// tokenLifetime is what we ask for where nothing else is said; keys are renewed when three quarters of what the server
	// grants are over.
	tokenLifetime = time.Hour
)

// protection is how the chunks of a channel are signed and encrypted, and by whom.
type protection struct {
	policy    string // URI
	mode      ua.MessageSecurityMode
	own       []byte // certificate, DER
	key       *rsa.PrivateKey
	remote    []byte // leaf certificate of the server, DER: the one that was found trustworthy
	remoteKey *rsa.PublicKey
	lifetime  time.Duration // of keys; 0: tokenLifetime
}

func (p protection) none() bool { return p.mode == ua.MessageSecurityModeNone }

// channel is a secure channel over one TCP connection [Part 6, 6.7 and 7.1]: it sends requests, renews its keys and hands
// out the answers, undecoded, in the order in which they come. It decodes nothing but the opening of the channel itself.
type channel struct {
	conn net.Conn
	in   *bufio.Reader
	protection
	asymmetric *uapolicy.EncryptionAlgorithm

	chunkBytes   int    // largest chunk the server takes
	requestBytes uint32 // largest request it takes; 0: any
	requestParts uint32 // most chunks it takes for one request; 0: any

	// sendMu orders chunks on the wire, as their sequence numbers must rise. It is held across writes, which writeTimeout
	// bounds, and guards sequence.
	sendMu   sync.Mutex
	sequence uint32

	// mu guards what follows. It is never held across I/O or a callback.
	mu      sync.Mutex
	id      uint32
	keys    keys // for sending, and for receiving together with the ones before
	before  keys
	waiting map[uint32]func([]byte, error)
	last    uint32 // request
	opening *opening
	err     error

	heard  atomic.Int64 // when bytes came in last, in nanoseconds since born
	born   time.Time
	over   chan struct{} // closed with err set
	parts  sync.WaitGroup
	closed sync.Once
}

// keys are a security token and the algorithms that belong to it.
type keys struct {
	token    uint32
	algo     *uapolicy.EncryptionAlgorithm
	lifetime time.Duration
}

// errClosed is why requests fail that wait when we close the channel.
var errClosed = errors.New("the channel was closed")

// dialer makes a connection to host and port.
type dialer = func(ctx context.Context, address string) (net.Conn, error)

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: helloTimeout}).DialContext(ctx, "tcp", address)
}

// dialChannel connects to the server at address, opens a channel and starts the goroutines that live with it; close ends
// them. endpoint is the URL that the server is told.
func dialChannel(ctx context.Context, dial dialer, endpoint string, p protection) (*channel, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", endpoint, err)
	}
	conn, err := dial(ctx, u.Host)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", endpoint, err)
	}
	c := &channel{
		conn: conn, in: bufio.NewReaderSize(conn, bufferBytes), protection: p,
		waiting: map[uint32]func([]byte, error){}, over: make(chan struct{}), born: time.Now(),
	}
	// A cancelled attempt ends at once, wherever it is.
	stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	defer stop()
	if err := c.hello(endpoint); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to %s: hello: %w", endpoint, c.reason(err))
	}
	if c.asymmetric, err = uapolicy.Asymmetric(p.policy, p.key, p.remoteKey); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to %s: security policy: %w", endpoint, err)
	}
	c.parts.Go(c.receive) // ends with the connection
	if err := c.open(ctx, ua.SecurityTokenRequestTypeIssue); err != nil {
		c.close()
		return nil, fmt.Errorf("connect to %s: open a secure channel: %w", endpoint, err)
	}
	c.parts.Go(c.renew) // ends with the channel
	return c, nil
}

// frame reads one chunk, or message of the connection itself. An error message of the server is an error.
func (c *channel) frame() ([]byte, error) {
	head, err := c.in.Peek(8)
	if err != nil {
		return nil, plain(err)
	}
	switch string(head[:3]) {
	case "ACK", "ERR", "OPN", "MSG", "CLO":
	default:
		return nil, fmt.Errorf("the peer says %q: it speaks no OPC UA", head)
	}
	size := binary.LittleEndian.Uint32(head[4:])
	if size < 8 || size > bufferBytes {
		return nil, fmt.Errorf("a chunk of %d bytes", size)
	}
	frame := make([]byte, size)
	if _, err := io.ReadFull(c.in, frame); err != nil {
		return nil, plain(err)
	}
	c.heard.Store(int64(time.Since(c.born)))
	if string(frame[:3]) == "ERR" {
		r := &reader{b: frame[8:]}
		code, text := r.status(), r.string()
		return nil, &peerError{code, text}
	}
	return frame, nil
}

// plain leaves the addresses of a network error out: one's own port is another one each time, and the same failure would
// look like news.
func plain(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the server closed the connection: %w", io.EOF)
	case errors.As(err, &op):
		return op.Err
	default:
		return err
	}
}

// peerError is an error by which the server ends the connection.
type peerError struct {
	code StatusCode
	text string
}

func (e *peerError) Error() string {
	if e.text == "" || len(e.text) > 200 {
		return "the server refuses: " + e.code.String()
	}
	return fmt.Sprintf("the server refuses: %s (%q)", e.code, e.text)
}

func (e *peerError) Unwrap() error { return e.code }

// silence is how long nothing came in.
func (c *channel) silence() time.Duration { return time.Since(c.born) - time.Duration(c.heard.Load()) }

// fail ends the channel with a reason; the first one counts.
func (c *channel) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	waiting, opening := c.waiting, c.opening
	c.waiting, c.opening = nil, nil
	c.mu.Unlock()
	_ = c.conn.Close()
	close(c.over)
	for _, f := range waiting {
		f(nil, err)
	}
	if opening != nil {
		opening.answer <- err
	}
}

// reason is why the channel ended, or err.
func (c *channel) reason(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return err
}

// close says goodbye as far as that can be done at once, and waits for the goroutines of the channel.
func (c *channel) close() {
	c.closed.Do(func() {
		_ = c.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_ = c.write("CLO", &ua.CloseSecureChannelRequest{}, 0, NodeID{}, 0)
		c.fail(errClosed)
	})
	c.parts.Wait()
}

// begin sends a request. done is called once, from the goroutine that receives, with the answer or with why there is
// none; it must not block. Where begin returns an error, done is never called.
func (c *channel) begin(req ua.Request, token NodeID, timeout time.Duration, done func(body []byte, err error)) (uint32, error) {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return 0, c.err
	}
	c.last++
	request := c.last
	c.waiting[request] = done
	c.mu.Unlock()
	if err := c.write("MSG", req, request, token, timeout); err != nil {
		if c.forget(request) == nil {
			return request, nil // done has been told already
		}
		var large *tooLargeError
		if !errors.As(err, &large) {
			c.fail(err) // half a message may be on the wire
		}
		return 0, err
	}
	return request, nil
}

// forget takes back the interest in an answer; nil: it was given already.
func (c *channel) forget(request uint32) func([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.waiting[request]
	delete(c.waiting, request)
	return f
}

// errNoAnswer is wrapped by the error of a request that was not answered in time.
var errNoAnswer = errors.New("no answer")

// call sends a request and reads its answer into into.
func (c *channel) call(ctx context.Context, req ua.Request, token NodeID, timeout time.Duration, into response) error {
	type answer struct {
		body []byte
		err  error
	}
	got := make(chan answer, 1)
	request, err := c.begin(req, token, timeout, func(body []byte, err error) { got <- answer{body, err} })
	if err != nil {
		return err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case a := <-got:
		if a.err != nil {
			return a.err
		}
		return decodeResponse(a.body, into)
	case <-timer.C:
		c.forget(request)
		return fmt.Errorf("%w within %s", errNoAnswer, timeout)
	case <-ctx.Done():
		c.forget(request)
		return context.Cause(ctx)
	}
}

// receive hands out what comes in until the connection ends.
func (c *channel) receive() {
	partial := map[uint32][]byte{}
	bytes, expected := 0, uint32(0)
	for {
		frame, err := c.frame()
		if err != nil {
			c.fail(err)
			return
		}
		chunk, err := c.unwrap(frame)
		if err != nil {
			c.fail(err)
			return
		}
		if expected != 0 && chunk.sequence != expected && !(chunk.sequence < 1024 && expected > 1<<32-1024) && !c.none() {
			c.fail(fmt.Errorf("chunk %d came where %d was due", chunk.sequence, expected))
			return
		}
		expected = chunk.sequence + 1
		switch chunk.final {
		case 'A':
			bytes -= len(partial[chunk.request])
			delete(partial, chunk.request)
			r := &reader{b: chunk.body}
			c.answer(chunk.request, nil, &peerError{r.status(), r.string()})
		case 'C':
			if bytes += len(chunk.body); bytes > maxMessageBytes {
				c.fail(fmt.Errorf("a message of more than %d bytes", maxMessageBytes))
				return
			}
			partial[chunk.request] = append(partial[chunk.request], chunk.body...)
		case 'F':
			body := chunk.body
			if start := partial[chunk.request]; start != nil {
				bytes -= len(start)
				delete(partial, chunk.request)
				body = append(start, body...)
			}
			if chunk.kind == "OPN" {
				c.opened(chunk.request, body)
			} else {
				c.answer(chunk.request, body, nil)
			}
		default:
			c.fail(fmt.Errorf("a chunk of the unknown kind %q", chunk.final))
			return
		}
	}
}

// answer hands an answer to whoever waits for it. Nobody does after a timeout.
func (c *channel) answer(request uint32, body []byte, err error) {
	if f := c.forget(request); f != nil {
		f(body, err)
	}
}
