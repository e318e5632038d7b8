package demo

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uacp"
	"github.com/gopcua/opcua/uasc"

	"tidegate/message"
)

// The simulated controller: a few counters below one namespace.
const (
	plcNodes     = 5
	plcEvery     = 50 * time.Millisecond
	plcNamespace = "urn:tidegate:demo"
	plcIndex     = 1
)

// plc is a small OPC UA server without security: as much of the services as a client needs that subscribes (plcservices.go),
// and counters that queue every value until a subscription took it (plcsubscription.go). The library's own server keeps only
// the newest value of a node, so values would be lost that no gateway could be blamed for.
type plc struct {
	tally    *tally
	log      *slog.Logger
	listener *uacp.Listener
	life     context.Context // ends with close
	end      context.CancelFunc
	running  sync.WaitGroup

	mu       sync.Mutex
	conns    map[*uacp.Conn]struct{}
	channels uint32
	sessions map[string]*plcSession // by authentication token
	subs     map[uint32]*plcSubscription
	ids      uint32
	values   [plcNodes]int
}

// newPLC starts a server on a free port of 127.0.0.1.
func newPLC(ctx context.Context, t *tally, log *slog.Logger) (*plc, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	l, err := uacp.Listen(ctx, fmt.Sprintf("opc.tcp://127.0.0.1:%d", port), nil)
	if err != nil {
		return nil, err
	}
	p := &plc{
		tally: t, log: log, listener: l, conns: map[*uacp.Conn]struct{}{}, sessions: map[string]*plcSession{}, subs: map[uint32]*plcSubscription{},
	}
	p.life, p.end = context.WithCancel(context.WithoutCancel(ctx))
	p.running.Go(p.accept) // ends with the listener
	return p, nil
}

// freePort finds one: the library listens on a URL, and its answers name that.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (p *plc) addr() string { return p.listener.Addr().String() }

func (p *plc) url() string { return "opc.tcp://" + p.addr() }

// nodesTOML is the part of the gateway's configuration that lists the counters.
func (p *plc) nodesTOML() string {
	var b strings.Builder
	for i := range plcNodes {
		fmt.Fprintf(&b, "  [[opcua.plc.node]]\n    id    = \"nsu=%s;s=%s\"\n    topic = %q\n", plcNamespace, counterName(i), counterTopic(i))
	}
	return b.String()
}

func counterName(i int) string { return fmt.Sprintf("counter%d", i+1) }

func counterTopic(i int) string { return topic(message.OPCUA, counterName(i)) }

// count raises every counter until ctx ends. A value counts as sent once a subscription has it in its queue.
func (p *plc) count(ctx context.Context) {
	for pause(ctx, plcEvery) {
		p.mu.Lock()
		watched := make([]bool, plcNodes)
		for _, s := range p.subs {
			s.watches(watched)
		}
		for i := range p.values {
			if !watched[i] {
				continue
			}
			p.values[i] = p.tally.sent(counterTopic(i))
			for _, s := range p.subs {
				s.offer(i, p.values[i])
			}
		}
		p.mu.Unlock()
	}
}

// idle reports whether the client has acknowledged everything.
func (p *plc) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.subs {
		if !s.idle() {
			return false
		}
	}
	return true
}

// close ends the server and waits for everything it started.
func (p *plc) close() {
	p.end()
	_ = p.listener.Close()
	p.mu.Lock()
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.running.Wait()
}

func (p *plc) accept() {
	for {
		conn, err := p.listener.Accept(p.life)
		if p.life.Err() != nil {
			return
		}
		if err != nil {
			continue // a client that failed its handshake
		}
		p.mu.Lock()
		p.conns[conn] = struct{}{}
		p.channels++
		id := p.channels
		p.mu.Unlock()
		p.running.Go(func() { p.serve(conn, id) }) // ends with the connection
	}
}

// serve answers the requests of one connection.
func (p *plc) serve(conn *uacp.Conn, id uint32) {
	defer func() {
		_ = conn.Close()
		p.mu.Lock()
		delete(p.conns, conn)
		p.mu.Unlock()
	}()
	cfg := &uasc.Config{
		SecurityPolicyURI: ua.SecurityPolicyURINone, SecurityMode: ua.MessageSecurityModeNone,
		Lifetime: uint32(time.Hour / time.Millisecond),
	}
	channel, err := uasc.NewServerSecureChannel("", conn, cfg, make(chan error, 1), id, 1, id)
	if err != nil {
		p.log.Warn("the demo's OPC UA server made no channel", "err", err)
		return
	}
	for {
		m := channel.Receive(p.life)
		if m.Err != nil {
			return
		}
		if m.Request() == nil {
			continue
		}
		if response := p.answer(channel, m.RequestID, m.Request()); response != nil {
			if err := channel.SendResponseWithContext(p.life, m.RequestID, response); err != nil {
				return
			}
		}
	}
}
