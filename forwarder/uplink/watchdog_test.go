package uplink

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// What follows are the ways in which a connection can look alive and take nothing. Each must end with a new connection, the
// reason in status, log and metric, and every message delivered.

// revived checks that a connection was given up for want of progress, that everybody was told, and that nothing was lost.
func (h *harness) revived(t *testing.T, l *ledger) {
	t.Helper()
	err := l.drain(within(t, 60*time.Second), h.Client, func(i int) message.Message { return reading(i, 1) })
	if err != nil {
		t.Fatalf("%v, %+v\n%s", err, h.Status(), h.log)
	}
	l.once(t, success)
	h.told(t, endAckTimeout, "no acknowledgement for the oldest message for")
}

func (h *harness) told(t *testing.T, reason, text string) {
	t.Helper()
	eventually(t, "tidegate_uplink_reconnects_total counts "+reason, func() bool { return h.reconnects(reason) > 0 })
	eventually(t, "the status says "+text, func() bool {
		s := h.Status()
		return strings.Contains(s.LastError, text) && !s.LastErrorAt.IsZero()
	})
	eventually(t, "the log says "+text, func() bool {
		log := h.log.String()
		return strings.Contains(log, "reason="+reason) && strings.Contains(log, text)
	})
}

func quick(c *config.Uplink) { c.AckTimeout = config.Duration(300 * time.Millisecond) }

// A broker that answers every PINGREQ, sends commands with QoS 0 all the time, and takes no message.
func TestWatchdogTalkativeBroker(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		peer.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer {
			return testpeer.Answer{Drop: r.Conn == 1}
		}})
		h := run(t, v, func(c *config.Uplink) {
			withCommands(c)
			quick(c)
			c.KeepAlive = config.Duration(time.Second)
		}, (&taker{}).handle, peer.URL())
		stop := make(chan struct{})
		talked := make(chan struct{})
		go func() {
			defer close(talked)
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
					peer.Send(testpeer.Command{Topic: "cmd/gw/x", Payload: []byte("hello")})
				}
			}
		}()
		defer func() { close(stop); <-talked }()
		h.revived(t, newLedger(50))
	})
}

// The window is full and nothing is acknowledged any more; with a Receive Maximum of 1 one message is enough.
func TestWatchdogFullWindow(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		for _, grant := range []uint16{1, 20} {
			peer := cloud(t, testpeer.Options{})
			peer.SetScript(testpeer.Script{
				Connect: func(testpeer.Connect) testpeer.Greeting { return testpeer.Greeting{ReceiveMaximum: grant} },
				Publish: func(r testpeer.Received) testpeer.Answer { return testpeer.Answer{Drop: r.Conn == 1 && r.N > 5} },
			})
			h := run(t, v, func(c *config.Uplink) {
				quick(c)
				c.MaxInFlight = config.InFlight(grant)
			}, nil, peer.URL())
			h.revived(t, newLedger(100))
			arrivals(t, peer, 100)
			h.stop()
		}
	})
}

// The gateway's own status is all there is to send, and nobody acknowledges it.
func TestWatchdogStatusAlone(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		peer.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer { return testpeer.Answer{Drop: r.Conn == 1} }})
		h := run(t, v, quick, nil, peer.URL())
		eventually(t, "connected again", func() bool {
			return h.reconnects(endAckTimeout) > 0 && h.Status().Connected && h.Status().InFlight == 0
		})
		h.told(t, endAckTimeout, "no acknowledgement for the oldest message for")
	})
}

// QoS 2 stops half way: PUBREC comes, PUBCOMP does not.
func TestWatchdogHalfWayQoS2(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		var releases atomic.Int32
		peer.SetScript(testpeer.Script{Release: func(uint16) testpeer.Answer {
			return testpeer.Answer{Drop: releases.Add(1) == 3}
		}})
		h := run(t, v, quick, nil, peer.URL())
		l := newLedger(20)
		if err := l.drain(within(t, 60*time.Second), h.Client, func(i int) message.Message { return reading(i, 2) }); err != nil {
			t.Fatalf("%v\n%s", err, h.log)
		}
		l.once(t, success)
		h.told(t, endAckTimeout, "no acknowledgement for the oldest message for")
	})
}

// The socket takes no more bytes: the peer stopped reading, and what is written stands in buffers.
func TestWatchdogBlockedWrite(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		line, err := testpeer.NewProxy(peer.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(line.Close)
		h := run(t, v, func(c *config.Uplink) { c.AckTimeout = config.Duration(time.Second) }, nil, "mqtt://"+line.Addr())
		first := connected(t, h)
		line.BlackHole(true)
		l := newLedger(400)
		ended := make(chan error, 1)
		go func() {
			ended <- l.drain(within(t, 60*time.Second), h.Client, func(i int) message.Message {
				m := reading(i, 1)
				m.Payload = append(make([]byte, 64<<10), m.Payload...) // 25 MB altogether: more than all buffers on the way
				return m
			})
		}()
		select {
		case <-first.Lost():
		case <-time.After(60 * time.Second):
			t.Fatal("a connection that takes no bytes was not given up")
		}
		h.told(t, endAckTimeout, "no acknowledgement for the oldest message for")
		line.Cut()
		line.BlackHole(false)
		if err := <-ended; err != nil {
			t.Fatalf("%v\n%s", err, h.log)
		}
		l.once(t, success)
	})
}

// Nothing is in flight, the line is dead, and the broker wants no keep alive worth the name: it is asked as configured anyway.
func TestWatchdogIdleBehindALongServerKeepAlive(t *testing.T) {
	t.Parallel()
	peer := cloud(t, testpeer.Options{})
	peer.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting {
		return testpeer.Greeting{ServerKeepAlive: 65535}
	}})
	line, err := testpeer.NewProxy(peer.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(line.Close)
	h := run(t, variants()[0], func(c *config.Uplink) { c.KeepAlive = config.Duration(time.Second) }, nil, "mqtt://"+line.Addr())
	first := connected(t, h)
	eventually(t, "status acknowledged", func() bool { return h.Status().InFlight == 0 })
	line.BlackHole(true)
	select {
	case <-first.Lost():
	case <-time.After(60 * time.Second):
		t.Fatal("a dead connection was not noticed")
	}
	h.told(t, endKeepAlive, "nothing was heard for 1.5s")
}

// The broker takes messages and never answers the subscription: commands would not come, and nobody would know.
func TestWatchdogSubscriptionWithoutAnswer(t *testing.T) {
	for _, protocol := range []string{"5", "3.1.1"} {
		v := variant{protocol: protocol, driver: pipelinedDriver{}}
		h := run(t, v, func(c *config.Uplink) {
			withCommands(c)
			quick(c)
		}, nil, "mqtt://"+sink(t, nil))
		eventually(t, "given up", func() bool { return h.reconnects(endAckTimeout) > 0 })
		h.told(t, endAckTimeout, "no answer to the subscription of commands for")
		h.stop()
	}
}
