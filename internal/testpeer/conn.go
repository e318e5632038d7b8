package testpeer

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// flushEvery is how long an acknowledgement may wait for others to share its write.
const flushEvery = 5 * time.Millisecond

// maxPacket bounds what a test may send in one packet.
const maxPacket = 16 << 20

// conn is one connection to the cloud.
type conn struct {
	cloud   *Cloud
	nc      net.Conn
	in      *bufio.Reader
	version byte
	number  int
	client  string
	session *session // set once CONNECT was answered with success; guarded by cloud.mu

	out  sync.Mutex // guards w
	w    *bufio.Writer
	late chan lateAck // acknowledgements with a delay, in order

	endOnce sync.Once
	done    chan struct{} // closed by end
}

type lateAck struct {
	due  time.Time
	p    []byte
	then Fault
}

func newConn(c *Cloud, nc net.Conn) *conn {
	return &conn{
		cloud: c, nc: nc, in: bufio.NewReaderSize(nc, 64<<10), w: bufio.NewWriterSize(nc, 64<<10),
		late: make(chan lateAck, 1<<16), done: make(chan struct{}),
	}
}

// end closes the connection; run then returns.
func (cn *conn) end() {
	cn.endOnce.Do(func() {
		close(cn.done)
		_ = cn.nc.Close()
	})
}

func (cn *conn) run() {
	defer cn.cloud.running.Done()
	var lateDone sync.WaitGroup
	lateDone.Add(1)
	go func() { // ends with done
		defer lateDone.Done()
		cn.writeLate()
	}()
	clean := cn.serve()
	cn.end()
	lateDone.Wait()
	cn.leave(clean)
}

// serve reads packets until the connection ends; it reports whether the client said DISCONNECT.
func (cn *conn) serve() bool {
	will, ok := cn.greet()
	if !ok {
		return true
	}
	defer func() {
		if will != nil {
			cn.cloud.mu.Lock()
			cn.cloud.wills = append(cn.cloud.wills, *will)
			cn.cloud.note()
			cn.cloud.mu.Unlock()
		}
	}()
	cn.sendCommands()
	for flushed := time.Now(); ; {
		// Acknowledgements leave in batches, but none waits for long while more keeps coming in.
		if cn.in.Buffered() == 0 || time.Since(flushed) > flushEvery {
			cn.flush()
			flushed = time.Now()
		}
		pk, err := cn.read()
		if err != nil {
			return false
		}
		switch pk.FixedHeader.Type {
		case packets.Publish:
			cn.publish(pk)
		case packets.Pubrel:
			cn.release(pk)
		case packets.Puback:
			cn.commandAck(pk)
		case packets.Subscribe:
			cn.subscribe(pk)
		case packets.Pingreq:
			cn.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingresp}})
		case packets.Disconnect:
			if pk.ReasonCode != packets.CodeDisconnectWillMessage.Code {
				will = nil
			}
			return true
		}
	}
}

// leave takes the connection out of the books; a session that is not to be kept goes with it.
func (cn *conn) leave(bool) {
	c := cn.cloud
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, cn)
	if s := cn.session; s != nil && s.conn == cn {
		s.conn = nil
		if !s.keep {
			delete(c.sessions, cn.client)
		}
	}
	c.note()
}

// greet handles CONNECT. It reports false when the client was not let in.
func (cn *conn) greet() (*Will, bool) {
	pk, err := cn.read()
	if err != nil || pk.FixedHeader.Type != packets.Connect {
		return nil, false
	}
	cn.version, cn.client = pk.ProtocolVersion, pk.Connect.ClientIdentifier
	c := cn.cloud
	c.mu.Lock()
	hello := connectOf(pk, len(c.connects)+1)
	if t, ok := cn.nc.(*tls.Conn); ok {
		hello.ServerName = t.ConnectionState().ServerName
	}
	cn.number = hello.Conn
	c.connects = append(c.connects, hello)
	script := c.script
	c.note()
	c.mu.Unlock()

	var g Greeting
	if script.Connect != nil {
		g = script.Connect(hello)
	}
	switch {
	case g.Cut:
		return nil, false
	case g.Silent:
		_, _ = io.Copy(io.Discard, cn.in)
		return nil, false
	}
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ReasonCode: g.Code}
	grant(&ack.Properties, g)
	if g.Code != 0 {
		cn.write(ack)
		cn.flush()
		return nil, false
	}
	ack.SessionPresent = cn.enter(hello, g)
	cn.write(ack)
	cn.flush()
	if hello.WillTopic == "" {
		return nil, true
	}
	return &Will{Conn: cn.number, Topic: hello.WillTopic, Payload: hello.WillPayload, Retain: hello.WillRetain}, true
}

// enter finds or makes the session and takes it over from another connection of that client, which is told 0x8E.
func (cn *conn) enter(hello Connect, g Greeting) (present bool) {
	c := cn.cloud
	c.mu.Lock()
	s := c.sessions[cn.client]
	var old *conn
	if s != nil {
		old = s.conn
	}
	if s == nil || hello.Clean || g.Forget {
		s = &session{filters: map[string]byte{}, held: map[uint16]struct{}{}}
		c.sessions[cn.client] = s
	} else {
		present = true
	}
	s.keep = !hello.Clean
	if cn.version == 5 {
		s.keep = hello.SessionExpiry > 0
	}
	s.conn, cn.session = cn, s
	for _, o := range s.queue {
		o.dup, o.sent = o.sent != nil, nil
	}
	c.note()
	c.mu.Unlock()
	if old != nil {
		old.fault(Fault{Kind: Kick, Code: packets.ErrSessionTakenOver.Code})
	}
	return present
}

func (cn *conn) publish(pk packets.Packet) {
	r := receivedOf(pk)
	r.Conn, r.Client = cn.number, cn.client
	c := cn.cloud
	c.mu.Lock()
	if r.QoS == 2 {
		_, r.Resent = cn.session.held[r.ID]
	}
	r.N = c.count
	script := c.script
	c.mu.Unlock()
	var a Answer
	if script.Publish != nil {
		a = script.Publish(r)
	}
	c.mu.Lock()
	c.count++
	if !c.options.CountOnly {
		c.received = append(c.received, r)
	}
	if r.QoS == 2 && a.Code < 0x80 {
		cn.session.held[r.ID] = struct{}{}
	}
	c.note()
	c.mu.Unlock()

	ack := packets.Packet{PacketID: r.ID, ReasonCode: a.Code}
	ack.Properties.ReasonString = a.Reason
	switch r.QoS {
	case 0:
		cn.fault(a.Then)
		return
	case 1:
		ack.FixedHeader.Type = packets.Puback
	case 2:
		ack.FixedHeader.Type = packets.Pubrec
	}
	cn.answer(ack, a)
}

func (cn *conn) release(pk packets.Packet) {
	c := cn.cloud
	c.mu.Lock()
	_, held := cn.session.held[pk.PacketID]
	delete(cn.session.held, pk.PacketID)
	script := c.script
	c.mu.Unlock()
	var a Answer
	if script.Release != nil {
		a = script.Release(pk.PacketID)
	}
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubcomp}, PacketID: pk.PacketID, ReasonCode: a.Code}
	if !held && a.Code == 0 && cn.version == 5 {
		ack.ReasonCode = packets.ErrPacketIdentifierNotFound.Code
	}
	cn.answer(ack, a)
}

// answer writes an acknowledgement as a says: at once, later, in half, or never.
func (cn *conn) answer(ack packets.Packet, a Answer) {
	p := cn.encode(ack)
	switch {
	case a.Then.Kind == Tear:
		p = p[:len(p)/2]
	case a.Drop:
		p = nil
	}
	if a.Delay > 0 {
		select {
		case cn.late <- lateAck{due: time.Now().Add(a.Delay), p: p, then: a.Then}:
		case <-cn.done:
		}
		return
	}
	cn.raw(p)
	cn.fault(a.Then)
}

func (cn *conn) writeLate() {
	for {
		select {
		case <-cn.done:
			return
		case l := <-cn.late:
			select {
			case <-cn.done:
				return
			case <-time.After(time.Until(l.due)):
			}
			cn.raw(l.p)
			cn.flush()
			cn.fault(l.then)
		}
	}
}

// fault does to the connection what f says; Stall blocks the caller until the connection is ended from elsewhere.
func (cn *conn) fault(f Fault) {
	switch f.Kind {
	case None:
	case Cut, Tear:
		cn.flush()
		cn.end()
	case Stall:
		<-cn.done
	case Kick:
		if cn.version == 5 {
			cn.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: f.Code})
		}
		cn.flush()
		cn.end()
	}
}

func (cn *conn) write(pk packets.Packet) { cn.raw(cn.encode(pk)) }

func (cn *conn) raw(p []byte) {
	cn.out.Lock()
	defer cn.out.Unlock()
	_, _ = cn.w.Write(p) // a broken connection shows in the reader
}

func (cn *conn) flush() {
	cn.out.Lock()
	defer cn.out.Unlock()
	_ = cn.w.Flush()
}

func (cn *conn) encode(pk packets.Packet) []byte {
	pk.ProtocolVersion = cn.version
	pk.Mods.AllowResponseInfo = true
	var b bytes.Buffer
	switch pk.FixedHeader.Type {
	case packets.Connack:
		_ = pk.ConnackEncode(&b)
	case packets.Publish:
		_ = pk.PublishEncode(&b)
	case packets.Puback:
		_ = pk.PubackEncode(&b)
	case packets.Pubrec:
		_ = pk.PubrecEncode(&b)
	case packets.Pubcomp:
		_ = pk.PubcompEncode(&b)
	case packets.Suback:
		_ = pk.SubackEncode(&b)
	case packets.Pingresp:
		_ = pk.PingrespEncode(&b)
	case packets.Disconnect:
		_ = pk.DisconnectEncode(&b)
	}
	return b.Bytes()
}

// read takes one packet from the connection.
func (cn *conn) read() (packets.Packet, error) {
	var pk packets.Packet
	first, err := cn.in.ReadByte()
	if err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, err
	}
	n, _, err := packets.DecodeLength(cn.in)
	if err != nil || n > maxPacket {
		return pk, fmt.Errorf("testpeer: bad remaining length %d: %w", n, err)
	}
	pk.FixedHeader.Remaining, pk.ProtocolVersion = n, cn.version
	body := make([]byte, n) // strings of the packet alias it
	if _, err := io.ReadFull(cn.in, body); err != nil {
		return pk, err
	}
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Pubrel:
		err = pk.PubrelDecode(body)
	case packets.Subscribe:
		err = pk.SubscribeDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	case packets.Pingreq:
	default:
		err = fmt.Errorf("testpeer: unexpected packet type %d", pk.FixedHeader.Type)
	}
	return pk, err
}
