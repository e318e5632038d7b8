package link

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // thumbprints are SHA-1 by the specification
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// A chunk on the wire [Part 6, 6.7.2]. What is encrypted begins at the sequence number; the signature covers everything
// before it.
//
//	0      3       4      8         12                        n          n+4       n+8
//	+------+-------+------+---------+-------------------------+----------+---------+------+---------+-----------+
//	| kind | final | size | channel | security header         | sequence | request | body | padding | signature |
//	+------+-------+------+---------+-------------------------+----------+---------+------+---------+-----------+
//
// The security header is the token of the channel (4 bytes) or, for OPN, policy URI, certificate and thumbprint.
const (
	chunkHeader    = 12
	sequenceHeader = 8
)

// chunk is what one of them holds.
type chunk struct {
	kind              string
	final             byte
	sequence, request uint32
	body              []byte
}

// errTampered says no more than that: which check failed is nobody's business.
var errTampered = errors.New("a chunk fails the checks of its signature and encryption")

// tooLargeError is a request that the server would not take. Nothing of it was sent.
type tooLargeError struct{ bytes int }

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("a request of %d bytes is more than the server takes", e.bytes)
}

// encode makes the bytes of a request. Requests are made by this package alone; a panic of the library's encoder would be
// a mistake in one of them, and costs that request.
func encode(req ua.Request, request uint32, token NodeID, timeout time.Duration) (body []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			body, err = nil, fmt.Errorf("encode %T: %v", req, p)
		}
	}()
	typ := ua.ServiceTypeID(req)
	if typ == 0 {
		return nil, fmt.Errorf("encode %T: no service", req)
	}
	req.SetHeader(&ua.RequestHeader{
		AuthenticationToken: token.ua(), Timestamp: time.Now(), RequestHandle: request,
		TimeoutHint: uint32(min(timeout, 24*time.Hour) / time.Millisecond),
	})
	b := ua.NewBuffer(nil)
	b.WriteStruct(ua.NewFourByteExpandedNodeID(0, typ))
	b.WriteStruct(req)
	return b.Bytes(), b.Error()
}

// write sends a request in as many chunks as it takes.
func (c *channel) write(kind string, req ua.Request, request uint32, token NodeID, timeout time.Duration) error {
	body, err := encode(req, request, token, timeout)
	if err != nil {
		return err
	}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	c.mu.Lock()
	k, id, dead := c.keys, c.id, c.err
	c.mu.Unlock()
	if dead != nil {
		return dead
	}
	opn := kind == "OPN"
	if !opn && k.algo == nil {
		return errClosed // close before the channel was open
	}
	security := binary.LittleEndian.AppendUint32(nil, k.token)
	algo := k.algo
	if opn {
		security, algo = c.asymmetricHeader(), c.asymmetric
	}
	most := c.room(len(security), algo, opn)
	parts := max(1, (len(body)+most-1)/most)
	if c.requestParts != 0 && parts > int(c.requestParts) || c.requestBytes != 0 && len(body) > int(c.requestBytes) || opn && parts > 1 {
		return &tooLargeError{len(body)}
	}
	if kind != "CLO" { // which has a shorter deadline of its own
		_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	for i := range parts {
		final := byte('C')
		if i == parts-1 {
			final = 'F'
		}
		if c.sequence++; c.sequence > 1<<32-1024 {
			c.sequence = 1
		}
		part := body[:min(most, len(body))]
		body = body[len(part):]
		frame := make([]byte, 0, chunkHeader+len(security)+sequenceHeader+len(part)+600)
		frame = append(frame, kind...)
		frame = append(frame, final, 0, 0, 0, 0)
		frame = binary.LittleEndian.AppendUint32(frame, id)
		frame = append(frame, security...)
		frame = binary.LittleEndian.AppendUint32(frame, c.sequence)
		frame = binary.LittleEndian.AppendUint32(frame, request)
		frame = append(frame, part...)
		if frame, err = c.seal(frame, chunkHeader+len(security), algo, opn); err != nil {
			return err
		}
		if _, err := c.conn.Write(frame); err != nil {
			return plain(err)
		}
	}
	return nil
}

func (c *channel) asymmetricHeader() []byte {
	b := ua.NewBuffer(nil)
	b.WriteString(c.policy)
	if c.none() {
		b.WriteByteString(nil)
		b.WriteByteString(nil)
	} else {
		b.WriteByteString(c.own)
		b.WriteByteString(thumbprint(c.remote))
	}
	return b.Bytes()
}

// thumbprint names a certificate as Part 6, 6.7.2.3 and every OPC UA tool do.
func thumbprint(der []byte) []byte {
	sum := sha1.Sum(der) //nolint:gosec // by the specification; trust compares whole certificates
	return sum[:]
}

// protects reports what a chunk gets: opening a channel is always signed and encrypted where there is a policy at all.
func (c *channel) protects(opn bool) (signed, encrypted bool) {
	signed = !c.none()
	return signed, signed && (opn || c.mode == ua.MessageSecurityModeSignAndEncrypt)
}

// room is how many bytes of a body one chunk holds.
func (c *channel) room(securityBytes int, algo *uapolicy.EncryptionAlgorithm, opn bool) int {
	signed, encrypted := c.protects(opn)
	free := c.chunkBytes - chunkHeader - securityBytes
	if encrypted {
		free = free/algo.BlockSize()*algo.PlaintextBlockSize() - paddingSizeBytes(algo.RemoteSignatureLength())
	}
	if signed {
		free -= algo.SignatureLength()
	}
	return free - sequenceHeader
}

// paddingSizeBytes is how many bytes say how long the padding is: two for keys of more than 2048 bits.
func paddingSizeBytes(keyBytes int) int {
	if keyBytes > 256 {
		return 2
	}
	return 1
}

// seal pads, signs and encrypts a chunk whose header ends at head, and fills in its size.
func (c *channel) seal(frame []byte, head int, algo *uapolicy.EncryptionAlgorithm, opn bool) ([]byte, error) {
	signed, encrypted := c.protects(opn)
	size := len(frame)
	if encrypted {
		sizeBytes := paddingSizeBytes(algo.RemoteSignatureLength())
		block := algo.PlaintextBlockSize()
		over := (len(frame) - head + sizeBytes + algo.SignatureLength()) % block
		padding := (block - over) % block
		frame = append(frame, byte(padding))
		frame = append(frame, bytes.Repeat([]byte{byte(padding)}, padding)...)
		if sizeBytes == 2 {
			frame = append(frame, byte(padding>>8))
		}
		size = head + (len(frame)-head+algo.SignatureLength())/block*algo.BlockSize()
	} else if signed {
		size += algo.SignatureLength()
	}
	binary.LittleEndian.PutUint32(frame[4:], uint32(size))
	if !signed {
		return frame, nil
	}
	signature, err := algo.Signature(frame)
	if err != nil {
		return nil, fmt.Errorf("sign a chunk: %w", err)
	}
	frame = append(frame, signature...)
	if !encrypted {
		return frame, nil
	}
	secret, err := algo.Encrypt(frame[head:])
	if err != nil {
		return nil, fmt.Errorf("encrypt a chunk: %w", err)
	}
	return append(frame[:head:head], secret...), nil
}

// unwrap checks and decrypts a chunk. Whatever a peer puts into one, it ends in a chunk or in an error.
func (c *channel) unwrap(frame []byte) (ch chunk, err error) {
	defer func() {
		if p := recover(); p != nil { // the lengths are checked here; this is for what the algorithms miss
			err = errTampered
		}
	}()
	r := &reader{b: frame}
	ch.kind = string(r.take(3))
	ch.final = r.u8()
	r.u32() // size
	id := r.u32()
	var algo *uapolicy.EncryptionAlgorithm
	opn := ch.kind == "OPN"
	switch ch.kind {
	case "OPN":
		algo, err = c.asymmetric, c.checkOpening(r)
	case "MSG":
		algo, err = c.algorithm(id, r.u32())
	case "CLO":
		err = errors.New("the server closed the channel")
	default:
		err = fmt.Errorf("a message of the unknown kind %q", ch.kind)
	}
	if err == nil {
		err = r.err
	}
	if err != nil {
		return chunk{}, err
	}
	plain, err := c.unseal(frame, len(frame)-len(r.b), algo, opn)
	if err != nil {
		return chunk{}, err
	}
	r = &reader{b: plain}
	ch.sequence, ch.request = r.u32(), r.u32()
	ch.body = r.b
	return ch, r.err
}

// checkOpening refuses an OPN chunk that is not secured by the policy and the certificate that we chose. Without it
// anybody in between could answer with a certificate of his own.
func (c *channel) checkOpening(r *reader) error {
	policy, certificate, receiver := r.string(), r.bytes(), r.bytes()
	if policy != c.policy {
		return fmt.Errorf("the server opens a channel with the policy %q instead of %q", policy, c.policy)
	}
	if c.none() {
		return nil
	}
	leaf, err := leafOf(certificate)
	if err != nil || !bytes.Equal(leaf.Raw, c.remote) {
		return errors.New("the server opens a channel with another certificate than the trusted one")
	}
	if !bytes.Equal(receiver, thumbprint(c.own)) {
		return errTampered
	}
	return nil
}

// algorithm finds the keys of a token: the present one or the one before it, which is good until the server has changed.
func (c *channel) algorithm(id, token uint32) (*uapolicy.EncryptionAlgorithm, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.id == 0 || id != c.id:
	case c.keys.token == token && c.keys.algo != nil:
		return c.keys.algo, nil
	case c.before.token == token && c.before.algo != nil:
		return c.before.algo, nil
	}
	return nil, fmt.Errorf("a chunk for channel %d with token %d, which we do not have", id, token)
}

func (c *channel) unseal(frame []byte, head int, algo *uapolicy.EncryptionAlgorithm, opn bool) ([]byte, error) {
	signed, encrypted := c.protects(opn)
	if !signed {
		return frame[head:], nil
	}
	if encrypted {
		plain, err := algo.Decrypt(frame[head:])
		if err != nil {
			return nil, errTampered
		}
		frame = append(frame[:head:head], plain...)
	}
	end := len(frame) - algo.RemoteSignatureLength()
	if end < head+sequenceHeader {
		return nil, errTampered
	}
	if err := algo.VerifySignature(frame[:end], frame[end:]); err != nil {
		return nil, errTampered
	}
	if encrypted {
		// The padding is measured by the key that it was encrypted with, which is ours.
		sizeBytes := paddingSizeBytes(algo.SignatureLength())
		if end -= sizeBytes; end < head+sequenceHeader {
			return nil, errTampered
		}
		padding := int(frame[end])
		if sizeBytes == 2 {
			padding = int(frame[end]) | int(frame[end+1])<<8
		}
		if end -= padding; end < head+sequenceHeader {
			return nil, errTampered
		}
	}
	return frame[head:end], nil
}
