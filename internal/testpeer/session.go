package testpeer

import (
	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

// session is what the cloud keeps for a client identifier.
type session struct {
	keep    bool // survives its connection
	conn    *conn
	filters map[string]byte     // topic filter to QoS
	held    map[uint16]struct{} // QoS 2 identifiers received and not released
	queue   []*outgoing
	nextID  uint16
}

// outgoing is a command on its way to one session.
type outgoing struct {
	cmd  Command
	id   uint16
	sent *conn // the connection it was last written to
	dup  bool
}

func (s *session) matches(topic string) bool {
	for f := range s.filters {
		if message.Match(f, topic) {
			return true
		}
	}
	return false
}

func (cn *conn) subscribe(pk packets.Packet) {
	c := cn.cloud
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Suback}, PacketID: pk.PacketID}
	c.mu.Lock()
	for _, f := range pk.Filters {
		if message.ValidFilter(f.Filter) != nil {
			ack.ReasonCodes = append(ack.ReasonCodes, packets.ErrUnspecifiedError.Code)
			continue
		}
		cn.session.filters[f.Filter] = f.Qos
		ack.ReasonCodes = append(ack.ReasonCodes, min(f.Qos, 1))
	}
	c.note()
	c.mu.Unlock()
	cn.write(ack)
}

// sendCommands writes what is queued for this session and was not written to this connection yet.
func (cn *conn) sendCommands() {
	c := cn.cloud
	c.mu.Lock()
	s := cn.session
	var due []packets.Packet
	kept := s.queue[:0]
	for _, o := range s.queue {
		if o.sent != cn {
			o.sent = cn
			if o.id == 0 && o.cmd.QoS > 0 {
				s.nextID++
				o.id = s.nextID
			}
			due = append(due, commandPacket(o))
		}
		if o.cmd.QoS > 0 {
			kept = append(kept, o)
		}
	}
	s.queue = kept
	c.mu.Unlock()
	for _, pk := range due {
		cn.write(pk)
	}
	cn.flush()
}

func (cn *conn) commandAck(pk packets.Packet) {
	c := cn.cloud
	c.mu.Lock()
	defer c.mu.Unlock()
	s := cn.session
	for i, o := range s.queue {
		if o.id == pk.PacketID {
			s.queue = append(s.queue[:i:i], s.queue[i+1:]...)
			c.acks = append(c.acks, CommandAck{
				Conn: cn.number, Client: cn.client, ID: pk.PacketID, Code: pk.ReasonCode, Command: o.cmd,
			})
			c.note()
			return
		}
	}
}
