package edge

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/access"
	"tidegate/edge/gate"
	"tidegate/message"
)

// Enhanced authentication (MQTT 5.0, 4.12): AUTH packets go back and forth between CONNECT and CONNACK, and later when the
// client wants to authenticate again. The one method here is SCRAM-SHA-256.
const (
	methodSCRAM = "SCRAM-SHA-256"
	byMethod    = "scram"

	// authTimeout is how long the client may take for each AUTH packet before its CONNACK.
	authTimeout = 10 * time.Second
	// maxAuthBytes bounds the body of such a packet; it is read before anybody is authenticated.
	maxAuthBytes = 4 << 10
)

// exchange makes the login by the method that the CONNECT names and returns the user, and keeps the last answer for the CONNACK.
func (p *peer) exchange() (string, *refusedLogin) {
	e := p.b.o.ACL.Exchange(addrOf(p.RemoteAddr()))
	if e == nil {
		return "", &refusedLogin{codeBadAuthMethod, "credentials", errors.New("there is nobody who could log in by it")}
	}
	data := p.connect.data
	for {
		answer, user, err := e.Step(data)
		switch {
		case errors.Is(err, access.ErrLocked):
			return "", &refusedLogin{codeConnectRate, "locked", err}
		case err != nil:
			return "", &refusedLogin{codeNotAuthorized, "credentials", err}
		case user != "":
			p.connect.data = answer
			return user, nil
		}
		p.sendAuth(codeContinue, answer)
		if data, err = p.awaitAuth(); err != nil {
			return "", &refusedLogin{codeProtocolError, "credentials", err}
		}
	}
}

// sendAuth writes an AUTH packet.
func (p *peer) sendAuth(code byte, data []byte) {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Auth}, ProtocolVersion: 5, ReasonCode: code,
		Properties: packets.Properties{AuthenticationMethod: p.connect.method, AuthenticationData: data},
	}
	var b bytes.Buffer
	if pk.AuthEncode(&b) == nil {
		_, _ = p.Write(b.Bytes())
	}
}

// awaitAuth reads the client's next AUTH packet, before the CONNACK, and returns its data.
func (p *peer) awaitAuth() ([]byte, error) {
	if err := p.SetReadDeadline(time.Now().Add(authTimeout)); err != nil {
		return nil, err
	}
	defer func() { _ = p.SetReadDeadline(time.Time{}) }()
	first, body, err := p.ReadPacket(maxAuthBytes)
	if err != nil {
		return nil, err
	}
	var pk packets.Packet
	switch err := p.decode(&pk, first, body); {
	case first != packets.Auth<<4:
		return nil, errors.New("another packet before CONNACK [MQTT-3.1.4-6]")
	case err != nil:
		return nil, err
	case pk.ReasonCode != codeContinue || pk.Properties.AuthenticationMethod != p.connect.method: // [MQTT-4.12.0-5]
		return nil, errors.New("an AUTH packet that does not go on with the exchange")
	}
	return pk.Properties.AuthenticationData, nil
}

// readAuth takes an AUTH packet of a client that is connected: it authenticates again, as the same user, and goes on meanwhile
// as it was [MQTT-4.12.1-1].
func (p *peer) readAuth(pk *packets.Packet) {
	switch {
	case p.connect.method == "" || pk.Properties.AuthenticationMethod != p.connect.method:
		p.disconnect(codeProtocolError)
		return
	case pk.ReasonCode == codeReauthenticate && p.again == nil:
		p.again = p.b.o.ACL.Exchange(addrOf(p.RemoteAddr()))
	case pk.ReasonCode == codeContinue && p.again != nil:
	default:
		p.disconnect(codeProtocolError)
		return
	}
	answer, user, err := p.again.Step(pk.Properties.AuthenticationData)
	if user != "" && user != p.identity.User {
		err = fmt.Errorf("authenticated again as %q: %w", user, message.ErrNotAllowed)
	}
	switch {
	case err != nil: // [MQTT-4.12.1-2]
		no := &refusedLogin{codeNotAuthorized, "credentials", err}
		if errors.Is(err, access.ErrLocked) {
			no.code, no.label = codeConnectRate, "locked"
		}
		p.b.refuseLogin(p, no)
		p.ended = true
		p.Disconnect(no.code, gate.Reason("authentication"))
	case user != "":
		p.again = nil
		p.sendAuth(codeSuccess, answer)
		p.b.audit.login("listener", p.listener.name, "client", p.client, "user", user, "remote", p.RemoteAddr().String(), "by", byMethod, "again", true)
	default:
		p.sendAuth(codeContinue, answer)
	}
}
