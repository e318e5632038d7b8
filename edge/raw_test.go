package edge

// A client that speaks packets rather than API calls, for what real clients hide or forbid.

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// rawOptions are what a rawClient says in its CONNECT.
type rawOptions struct {
	ID         string
	V          byte
	Clean      bool
	RM         uint16
	Expiry     uint32
	KeepAlive  uint16
	AliasMax   uint16
	User, Pass string
	Mod        func(*packets.Packet)
	RcvBuf     int
	TLS        *tls.Config // nil: plain
	WebSocket  bool
}

// rawClient is one connection. Recv is for one goroutine, sending for any number.
type rawClient struct {
	net.Conn
	R       *bufio.Reader
	V       byte
	Connack packets.Packet
	wmu     sync.Mutex
	back    []packets.Packet
}

// rawDial connects and reads the CONNACK.
func rawDial(addr string, o rawOptions) (*rawClient, error) {
	if o.V == 0 {
		o.V = 4
	}
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	if o.RcvBuf > 0 {
		_ = c.(*net.TCPConn).SetReadBuffer(o.RcvBuf)
	}
	if o.TLS != nil {
		c = tls.Client(c, o.TLS)
	}
	if o.WebSocket {
		if c, err = overWebSocket(c, addr); err != nil {
			return nil, err
		}
	}
	cl := &rawClient{Conn: c, R: bufio.NewReaderSize(c, 64<<10), V: o.V}
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: o.V,
		Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: o.Clean, Keepalive: o.KeepAlive, ClientIdentifier: o.ID},
	}
	if o.User != "" {
		pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte(o.User)
		pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte(o.Pass)
	}
	pk.Properties.ReceiveMaximum = o.RM
	pk.Properties.TopicAliasMaximum = o.AliasMax
	if o.Expiry > 0 {
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = o.Expiry, true
	}
	if o.Mod != nil {
		o.Mod(&pk)
	}
	if err := cl.Send(pk); err != nil {
		return nil, err
	}
	ack, err := cl.Recv(5 * time.Second)
	if err != nil {
		return nil, err
	}
	cl.Connack = ack
	if ack.FixedHeader.Type != packets.Connack {
		return cl, fmt.Errorf("not a connack: %v", ack.FixedHeader.Type)
	}
	if ack.ReasonCode != 0 {
		return cl, fmt.Errorf("connack %#x", ack.ReasonCode)
	}
	return cl, nil
}

func (c *rawClient) Send(pk packets.Packet) error {
	var b bytes.Buffer
	pk.ProtocolVersion = c.V
	pk.Mods.AllowResponseInfo = true
	if err := rawEncode(&pk, &b); err != nil {
		return err
	}
	return c.Raw(b.Bytes())
}

func (c *rawClient) Raw(b []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_, err := c.Conn.Write(b)
	return err
}

func rawEncode(pk *packets.Packet, b *bytes.Buffer) error {
	switch pk.FixedHeader.Type {
	case packets.Connect:
		return pk.ConnectEncode(b)
	case packets.Publish:
		return pk.PublishEncode(b)
	case packets.Puback:
		return pk.PubackEncode(b)
	case packets.Pubrec:
		return pk.PubrecEncode(b)
	case packets.Pubrel:
		pk.FixedHeader.Qos = 1
		return pk.PubrelEncode(b)
	case packets.Pubcomp:
		return pk.PubcompEncode(b)
	case packets.Subscribe:
		pk.FixedHeader.Qos = 1
		return pk.SubscribeEncode(b)
	case packets.Unsubscribe:
		pk.FixedHeader.Qos = 1
		return pk.UnsubscribeEncode(b)
	case packets.Auth:
		return pk.AuthEncode(b)
	case packets.Pingreq:
		return pk.PingreqEncode(b)
	case packets.Disconnect:
		return pk.DisconnectEncode(b)
	}
	return errors.New("type")
}

func (c *rawClient) Recv(d time.Duration) (packets.Packet, error) {
	if len(c.back) > 0 {
		pk := c.back[0]
		c.back = c.back[1:]
		return pk, nil
	}
	return c.next(d)
}

// unread gives a packet back to the next Recv.
func (c *rawClient) unread(pk packets.Packet) { c.back = append(c.back, pk) }

func (c *rawClient) next(d time.Duration) (packets.Packet, error) {
	_ = c.SetReadDeadline(time.Now().Add(d))
	var pk packets.Packet
	h, err := c.R.ReadByte()
	if err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(h); err != nil {
		return pk, err
	}
	n, _, err := packets.DecodeLength(c.R)
	if err != nil {
		return pk, err
	}
	pk.FixedHeader.Remaining = n
	body := make([]byte, n)
	if _, err := io.ReadFull(c.R, body); err != nil {
		return pk, err
	}
	pk.ProtocolVersion = c.V
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Pubrec:
		err = pk.PubrecDecode(body)
	case packets.Pubrel:
		err = pk.PubrelDecode(body)
	case packets.Pubcomp:
		err = pk.PubcompDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Auth:
		err = pk.AuthDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	}
	return pk, err
}

func (c *rawClient) Subscribe(id uint16, filter string, qos byte) (packets.Packet, error) {
	err := c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: id,
		Filters: packets.Subscriptions{{Filter: filter, Qos: qos}},
	})
	if err != nil {
		return packets.Packet{}, err
	}
	for {
		pk, err := c.Recv(3 * time.Second)
		if err != nil || pk.FixedHeader.Type == packets.Suback {
			return pk, err
		}
	}
}

func (c *rawClient) Publish(id uint16, topic string, qos byte, payload []byte) error {
	return c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, PacketID: id, TopicName: topic, Payload: payload})
}

func (c *rawClient) Ack(typ byte, id uint16) error {
	h := typ << 4
	if typ == packets.Pubrel {
		h |= 2
	}
	return c.Raw([]byte{h, 2, byte(id >> 8), byte(id)})
}

// PublishAll sends n QoS q messages through a window and waits for all acks.
func (c *rawClient) PublishAll(topic string, q byte, n, window int, payload func(i int) []byte, d time.Duration) (acked int, err error) {
	sent := 0
	end := time.Now().Add(d)
	for acked < n {
		for sent < n && sent-acked < window {
			if err := c.Publish(uint16(sent%60000+1), topic, q, payload(sent)); err != nil {
				return acked, err
			}
			sent++
			if q == 0 {
				acked++
			}
		}
		if q == 0 {
			continue
		}
		pk, err := c.Recv(time.Until(end))
		if err != nil {
			return acked, err
		}
		switch pk.FixedHeader.Type {
		case packets.Puback, packets.Pubcomp:
			acked++
		case packets.Pubrec:
			_ = c.Ack(packets.Pubrel, pk.PacketID)
		}
	}
	return acked, nil
}

func (c *rawClient) Disconnect() {
	_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
	_ = c.Close()
}
