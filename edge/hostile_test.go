package edge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
)

// bystander is a client that is to notice nothing of what others do.
type bystander struct {
	t  *testing.T
	c  *rawClient
	id uint16
}

func newBystander(t *testing.T, b *testBroker) *bystander {
	t.Helper()
	s := &bystander{t: t, c: connect(t, b.addr, rawOptions{ID: "bystander", V: 5, Clean: true})}
	subscribe(t, s.c, "bystander", 1)
	return s
}

// works publishes to itself.
func (s *bystander) works() {
	s.t.Helper()
	s.id++
	if err := s.c.Publish(s.id, "bystander", 1, number(int(s.id))); err != nil {
		s.t.Fatal(err)
	}
	for acked, came := false, false; !acked || !came; {
		pk, err := s.c.Recv(30 * time.Second)
		switch {
		case err != nil:
			s.t.Fatalf("the bystander: %v", err)
		case pk.FixedHeader.Type == packets.Puback:
			acked = true
		case pk.FixedHeader.Type == packets.Publish:
			came = true
			_ = s.c.Ack(packets.Puback, pk.PacketID)
		}
	}
}

// memory returns the bytes of the heap and of stacks in use.
func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// halfOpen is how many connections TestHalfOpen makes: 10,000, or what file descriptors allow for both ends of each.
func halfOpen(t *testing.T) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = limit.Max // as a service has it
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return min(10_000, (int(limit.Max)-1000)/2)
}

// TestHalfOpen: connections that say nothing, a byte, or most of a CONNECT cost little, and nobody else notices them.
func TestHalfOpen(t *testing.T) {
	n := halfOpen(t)
	b := startBroker(t, func(o *Options) { o.Broker.MaxClients = 10_000 })
	by := newBystander(t, b)
	before := memory()
	connectPacket := []byte("\x10\x7f\x00\x04MQTT\x05\x02\x00\x00")
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for i := range n {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
		_, _ = c.Write([][]byte{nil, connectPacket[:1], connectPacket}[i%3])
		if i%1000 == 0 {
			by.works()
		}
	}
	each := (memory() - before) / int64(n)
	by.works()
	t.Logf("%d connections, %d bytes each, both ends", n, each)
	if each > 16<<10 {
		t.Errorf("a connection that says nothing costs %d bytes", each)
	}
	connect(t, b.addr, rawOptions{ID: "fresh"})
	if got := b.Clients(); got != 2 {
		t.Errorf("%d clients", got)
	}
}

// TestOneSourceCannotTakeAll: connections from one address are closed above their share, and other addresses come in.
func TestOneSourceCannotTakeAll(t *testing.T) {
	for _, c := range []struct{ maxConns, refused int }{{0, 400 - 198}, {100, 400 - 75}} { // of 264, or of 100
		oneSource(t, c.maxConns, c.refused)
	}
}

func oneSource(t *testing.T, maxConns, refused int) {
	t.Helper()
	b := startBroker(t, func(o *Options) { o.Broker.MaxClients, o.MaxConns = 100, maxConns })
	from := func(ip string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		return d.Dial("tcp", b.addr)
	}
	for range 400 {
		c, err := from("127.0.0.2")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, "some are closed", func() bool { return b.metric(t, "tidegate_refused_connections_total") == float64(refused) })
	connect(t, b.addr, rawOptions{ID: "other"}) // from 127.0.0.1
}

// TestClientsPerSource: a client too many from one address is told; one that comes back is none.
func TestClientsPerSource(t *testing.T) {
	log := &logBuffer{}
	b := startBroker(t, func(o *Options) {
		o.Broker.MaxClientsPerSource = 3
		o.Log = slog.New(slog.NewTextHandler(log, nil))
	})
	for i := range 3 {
		connect(t, b.addr, rawOptions{ID: fmt.Sprint("c", i), V: 5})
	}
	for v, want := range map[byte]string{4: "0x3", 5: "0x89"} {
		if _, err := rawDial(b.addr, rawOptions{ID: "more", V: v}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("one more: %v, want %s", err, want)
		}
	}
	again := connect(t, b.addr, rawOptions{ID: "c1", V: 5})
	if !strings.Contains(log.String(), "reason=max_clients_per_source") {
		t.Errorf("log: %s", log.String())
	}
	again.Disconnect()
	eventually(t, "there is room again", func() bool {
		c, err := rawDial(b.addr, rawOptions{ID: "more"})
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// TestConnectRate: one source that connects too fast waits for its turn and is not refused.
func TestConnectRate(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.MaxConnectRate = config.ConnectRate(50 * 1000) })
	begin := time.Now()
	for i := range 35 { // ten at once, 25 in half a second
		c, err := rawDial(b.addr, rawOptions{ID: fmt.Sprint("c", i)})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	if d := time.Since(begin); d < 450*time.Millisecond {
		t.Errorf("35 connections in %v", d)
	}
}

// TestHugeConnect: a CONNECT is refused for what its header says, before its bytes have come.
func TestHugeConnect(t *testing.T) {
	b := startBroker(t, nil)
	by := newBystander(t, b)
	for name, header := range map[string][]byte{
		"the longest":     {0x10, 0xff, 0xff, 0xff, 0x7f},
		"a little more":   {0x10, 0x81, 0xc0, 0x04}, // 72 KiB and one
		"five bytes long": {0x10, 0xff, 0xff, 0xff, 0xff, 0x01},
	} {
		before := memory()
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(header)
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection stays open", name)
		}
		_ = c.Close()
		if grown := memory() - before; grown > 4<<20 {
			t.Errorf("%s: %d bytes more", name, grown)
		}
		by.works()
	}
	// The largest that is taken: a will of 65,535 bytes.
	connect(t, b.addr, rawOptions{ID: "will", V: 5, Mod: func(pk *packets.Packet) {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, "w", make([]byte, 65535)
	}})
}

// TestSlowConnect: a CONNECT that comes byte by byte is waited for until its time is over, while others connect.
func TestSlowConnect(t *testing.T) {
	b := startBroker(t, nil)
	by := newBystander(t, b)
	var buf bytes.Buffer
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4,
		Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: "slow"},
	}
	if err := rawEncode(&pk, &buf); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, one := range buf.Bytes() {
		if _, err := c.Write([]byte{one}); err != nil {
			t.Fatal(err)
		}
		by.works()
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(c, answer); err != nil || !bytes.Equal(answer, []byte{0x20, 2, 0, 0}) {
		t.Errorf("answer %x, %v", answer, err)
	}
}

// TestGarbage: packets of every type with bodies and flags of all kinds, over the wire. Each ends its own connection at most.
func TestGarbage(t *testing.T) {
	b := startBroker(t, nil)
	by := newBystander(t, b)
	var wg sync.WaitGroup
	for typ := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(typ), 3))
			for i := range 60 {
				c, err := rawDial(b.addr, rawOptions{ID: fmt.Sprint("bad", typ), V: byte(4 + i%2), Clean: true})
				if err != nil {
					t.Errorf("type %d, try %d: %v", typ, i, err)
					return
				}
				for range 8 {
					if c.Raw(garbage(rnd, byte(typ))) != nil {
						break
					}
				}
				_ = c.Close()
			}
		})
	}
	wg.Go(func() { // instead of a CONNECT
		rnd := rand.New(rand.NewPCG(99, 3))
		for range 200 {
			c, err := net.Dial("tcp", b.addr)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = c.Write(append(garbage(rnd, byte(rnd.IntN(2))), garbage(rnd, 1)...))
			_ = c.Close()
		}
	})
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	for {
		by.works()
		select {
		case <-finished:
			by.works()
			eventually(t, "everybody else is gone", func() bool { return b.Clients() == 1 })
			return
		default:
		}
	}
}

// garbage makes one packet of that type: a body that is random, one that begins well, or a length that lies.
func garbage(rnd *rand.Rand, typ byte) []byte {
	body := make([]byte, rnd.IntN(40))
	for i := range body {
		body[i] = byte(rnd.Uint32())
	}
	switch rnd.IntN(4) {
	case 0: // text of a plausible length in front
		body = append([]byte{0, byte(rnd.IntN(4)), 'a', 'b', 'c'}, body...)
	case 1: // an identifier and properties
		body = append([]byte{0, 1, byte(rnd.IntN(12)), byte(rnd.IntN(45))}, body...)
	case 2:
		if typ == 1 {
			body = append([]byte("\x00\x04MQTT\x05\xc6\x00\x00"), body...)
		}
	}
	n := len(body)
	if rnd.IntN(8) == 0 {
		n += rnd.IntN(100)
	}
	return append([]byte{typ<<4 | byte(rnd.IntN(16)), byte(n & 0x7f)}, body...)
}

// TestSubscribeFlood: subscriptions are bounded for each session, and so is the depth of topics.
func TestSubscribeFlood(t *testing.T) {
	b := startBroker(t, nil)
	by := newBystander(t, b)
	c := connect(t, b.addr, rawOptions{ID: "flood", V: 5, Clean: true})
	granted := 0
	for i := range 12 {
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: uint16(i + 1)}
		for k := range 1000 {
			pk.Filters = append(pk.Filters, packets.Subscription{Filter: fmt.Sprint("f/", i, "/", k, "/#")})
		}
		if err := c.Send(pk); err != nil {
			t.Fatal(err)
		}
		for _, code := range expect(t, c, packets.Suback).ReasonCodes {
			switch {
			case code == 0:
				granted++
			case code != codeQuota:
				t.Fatalf("code %#x", code)
			}
		}
		by.works()
	}
	if granted != maxFilters {
		t.Errorf("%d subscriptions, want %d", granted, maxFilters)
	}

	deep := connect(t, b.addr, rawOptions{ID: "deep", V: 5, Clean: true})
	limit := strings.Repeat("/", maxLevels-1)
	if code := subscribe(t, deep, limit, 1); code != 1 {
		t.Errorf("%d levels: %#x", maxLevels, code)
	}
	if code := subscribe(t, deep, limit+"/", 1); code != codeFilterInvalid {
		t.Errorf("one more: %#x", code)
	}
	for n, want := range map[int]byte{maxFilterBytes: 1, maxFilterBytes + 1: codeQuota} {
		if code := subscribe(t, deep, strings.Repeat("x", n), 1); code != want {
			t.Errorf("a filter of %d bytes: %#x", n, code)
		}
	}
	_ = deep.Publish(1, limit+"/", 1, nil)
	if ack := expect(t, deep, packets.Puback); ack.ReasonCode != codeTopicInvalid {
		t.Errorf("published one more: %#x", ack.ReasonCode)
	}
	_, err := rawDial(b.addr, rawOptions{ID: "will", V: 5, Mod: func(pk *packets.Packet) {
		pk.Connect.WillFlag, pk.Connect.WillTopic = true, limit+"/"
	}})
	if err == nil || !strings.Contains(err.Error(), "0x90") {
		t.Errorf("a will of one more: %v", err)
	}
}

// TestAuditIsBounded: a flood of refusals and of logins writes so many lines and no more, and none is long.
func TestAuditIsBounded(t *testing.T) {
	log := &logBuffer{}
	no := false
	b := startBroker(t, func(o *Options) {
		o.Listeners["test"] = config.Listener{Listen: "mqtt://127.0.0.1:0", Anonymous: &no}
		o.Log = slog.New(slog.NewTextHandler(log, nil))
	})
	const n = 600
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for k := range n / 4 {
				_, _ = rawDial(b.addr, rawOptions{ID: fmt.Sprint(i, "-", k, strings.Repeat("x", 20_000)), User: strings.Repeat("y", 20_000), Pass: "secret", V: 5})
			}
		})
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	refused := 0
	for _, l := range lines {
		if strings.Contains(l, "client refused") {
			refused++
		}
		if len(l) > 1500 {
			t.Fatalf("a line of %d bytes", len(l))
		}
		if strings.Contains(l, "secret") {
			t.Fatal("a password is in the log")
		}
	}
	if got := b.metric(t, "tidegate_refused_logins_total", "reason", "credentials"); got != n {
		t.Errorf("%v counted, want %d", got, n)
	}
	if most := 201 + 5*int(time.Since(begin).Seconds()+1); refused < 200 || refused > most {
		t.Errorf("%d of %d refusals are in the log", refused, n)
	}
}
