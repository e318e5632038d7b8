package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// MQTT control packet types as the high half of the first byte.
const (
	typeConnect     = 0x10
	typeConnack     = 0x20
	typePublish     = 0x30
	typePuback      = 0x40
	typePubrec      = 0x50
	typePubrel      = 0x62 // with the flags that it must have
	typePubcomp     = 0x70
	typeSubscribe   = 0x82
	typeSuback      = 0x90
	typeDisconnect  = 0xe0
	reasonQuota     = 0x97
	reasonForbidden = 0x87
)

// wire is one MQTT connection, byte by byte: a client that waits for nothing unless asked to, written from the standards so
// that it shares no code with the gateway.
type wire struct {
	conn       net.Conn
	r          *bufio.Reader
	version    string // "3.1.1" or "5"
	receiveMax int    // what the server grants
	present    bool   // the server had the session

	mu sync.Mutex // one packet at a time
}

// login says who connects.
type login struct {
	client, user, password string
	keep                   bool // keep the session: clean session false, or clean start false and an hour of expiry
}

// dial connects and waits for the CONNACK; a refusal is a *refusal.
func dial(addr, version string, l login) (*wire, error) {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	w := &wire{conn: conn, r: bufio.NewReaderSize(conn, 64<<10), version: version, receiveMax: 65535}
	if err := w.connect(l); err != nil {
		conn.Close()
		return nil, err
	}
	return w, nil
}

// refusal is a reason code that the server answered.
type refusal struct {
	packet string
	code   byte
}

func (r *refusal) Error() string { return fmt.Sprintf("%s with reason code %#x", r.packet, r.code) }

func (w *wire) connect(l login) error {
	flags, level := byte(0), byte(4)
	if !l.keep {
		flags |= 0x02
	}
	var payload []byte
	payload = text(payload, l.client)
	if l.user != "" {
		flags |= 0x80
		payload = text(payload, l.user)
	}
	if l.password != "" {
		flags |= 0x40
		payload = text(payload, l.password)
	}
	var properties []byte
	if w.version == "5" {
		level, properties = 5, []byte{0}
		if l.keep {
			properties = []byte{5, 0x11, 0, 0, 0x0e, 0x10} // session expiry interval 3600 s
		}
	}
	body := text(nil, "MQTT")
	body = append(body, level, flags, 0, 60)
	body = append(body, properties...)
	if err := w.send(typeConnect, append(body, payload...)); err != nil {
		return err
	}
	_ = w.conn.SetReadDeadline(time.Now().Add(60 * time.Second))
	p, err := w.read()
	_ = w.conn.SetReadDeadline(time.Time{})
	if err != nil {
		return fmt.Errorf("wait for CONNACK: %w", err)
	}
	if p.kind != typeConnack || len(p.body) < 2 {
		return fmt.Errorf("want CONNACK, got %#x", p.kind)
	}
	if p.body[1] != 0 {
		return &refusal{"CONNACK", p.body[1]}
	}
	w.present = p.body[0]&1 != 0
	if w.version == "5" {
		if v, ok := property(p.body[2:], 0x21); ok {
			w.receiveMax = int(v)
		}
	}
	return nil
}

// property finds a numeric property in a block of properties that begins with its length.
func property(b []byte, id byte) (uint32, bool) {
	n, used := binary.Uvarint(b) // the same as MQTT's variable byte integer
	b = b[used:]
	b = b[:min(int(n), len(b))]
	for len(b) > 0 {
		key := b[0]
		b = b[1:]
		var v uint32
		size := 0
		switch key {
		case 0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2a:
			v, size = uint32(b[0]), 1
		case 0x13, 0x21, 0x22, 0x23:
			v, size = uint32(binary.BigEndian.Uint16(b)), 2
		case 0x02, 0x11, 0x18, 0x27:
			v, size = binary.BigEndian.Uint32(b), 4
		case 0x26: // user property: two texts
			size = 2 + int(binary.BigEndian.Uint16(b))
			size += 2 + int(binary.BigEndian.Uint16(b[size:]))
		default: // texts and bytes
			size = 2 + int(binary.BigEndian.Uint16(b))
		}
		if key == id {
			return v, true
		}
		b = b[size:]
	}
	return 0, false
}

func text(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// publishPacket encodes one PUBLISH.
func publishPacket(version, topic string, qos byte, id uint16, payload []byte) []byte {
	body := text(nil, topic)
	if qos > 0 {
		body = binary.BigEndian.AppendUint16(body, id)
	}
	if version == "5" {
		body = append(body, 0)
	}
	return packet(typePublish|qos<<1, append(body, payload...))
}

func packet(first byte, body []byte) []byte {
	b := binary.AppendUvarint([]byte{first}, uint64(len(body)))
	return append(b, body...)
}

func (w *wire) send(first byte, body []byte) error { return w.write(packet(first, body)) }

func (w *wire) write(b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.conn.Write(b)
	return err
}

func (w *wire) publish(topic string, qos byte, id uint16, payload []byte) error {
	return w.write(publishPacket(w.version, topic, qos, id, payload))
}

// subscribe sends one SUBSCRIBE and waits for its SUBACK, which must be the next packet; it returns the reason code.
func (w *wire) subscribe(filter string, qos byte) (byte, error) {
	body := []byte{0, 1}
	if w.version == "5" {
		body = append(body, 0)
	}
	if err := w.send(typeSubscribe, append(text(body, filter), qos)); err != nil {
		return 0, err
	}
	p, err := w.readWithin(soon)
	if err != nil {
		return 0, err
	}
	if p.kind != typeSuback {
		return 0, fmt.Errorf("want SUBACK, got %#x", p.kind)
	}
	return p.body[len(p.body)-1], nil
}

// incoming is one packet from the server.
type incoming struct {
	kind  byte // without flags
	flags byte
	body  []byte
}

// id is the packet identifier of an acknowledgement.
func (p incoming) id() uint16 { return binary.BigEndian.Uint16(p.body) }

// reason is the reason code of an acknowledgement; 0 where it is absent.
func (p incoming) reason() byte {
	if len(p.body) > 2 {
		return p.body[2]
	}
	return 0
}

func (w *wire) read() (incoming, error) {
	first, err := w.r.ReadByte()
	if err != nil {
		return incoming{}, err
	}
	n, err := binary.ReadUvarint(w.r)
	if err != nil {
		return incoming{}, err
	}
	if n > 1<<24 {
		return incoming{}, errors.New("packet of more than 16 MiB")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(w.r, body); err != nil {
		return incoming{}, err
	}
	return incoming{first & 0xf0, first & 0x0f, body}, nil
}

func (w *wire) readWithin(d time.Duration) (incoming, error) {
	_ = w.conn.SetReadDeadline(time.Now().Add(d))
	p, err := w.read()
	_ = w.conn.SetReadDeadline(time.Time{})
	return p, err
}

func (w *wire) close() { w.conn.Close() }
