package simple

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"tidegate/internal/testpeer"
	"tidegate/message"
)

func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

func dial(t *testing.T, address, version string) *Client {
	t.Helper()
	c, err := Dial(ctx(t), Options{Address: address, Version: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func cloud(t *testing.T, s testpeer.Script) *testpeer.Cloud {
	t.Helper()
	c, err := testpeer.Listen(testpeer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.SetScript(s)
	return c
}

func versions(t *testing.T, test func(t *testing.T, version string)) {
	for _, v := range []string{V311, V5} {
		t.Run(v, func(t *testing.T) { test(t, v) })
	}
}

// Messages leave in the order of the calls, many in flight, and each answer comes once.
func TestPublishInOrder(t *testing.T) {
	versions(t, func(t *testing.T, version string) {
		peer := cloud(t, testpeer.Script{})
		c := dial(t, peer.Addr(), version)
		const n = 300
		var wg sync.WaitGroup
		for i := range n {
			wg.Add(1)
			m := message.Message{Topic: "t", Payload: fmt.Appendf(nil, "%d", i), QoS: message.QoS(1 + i%2)}
			err := c.Publish(ctx(t), m, func(err error) {
				defer wg.Done()
				if err != nil {
					t.Errorf("message %d: %v", i, err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		wg.Wait()
		got := peer.Received()
		if len(got) != n {
			t.Fatalf("%d messages came, want %d", len(got), n)
		}
		for i, r := range got {
			if string(r.Payload) != fmt.Sprint(i) {
				t.Fatalf("message %d is %q", i, r.Payload)
			}
		}
	})
}

// A connection that ends answers everything in flight with ErrLost, once.
func TestLost(t *testing.T) {
	versions(t, func(t *testing.T, version string) {
		peer := cloud(t, testpeer.Script{Publish: func(testpeer.Received) testpeer.Answer { return testpeer.Answer{Drop: true} }})
		c := dial(t, peer.Addr(), version)
		answers := make(chan error, 10)
		for range 5 {
			if err := c.Publish(ctx(t), message.Message{Topic: "t", QoS: 1}, func(err error) { answers <- err }); err != nil {
				t.Fatal(err)
			}
		}
		if err := peer.Wait(ctx(t), func(p *testpeer.Cloud) bool { return p.Count() == 5 }); err != nil {
			t.Fatal(err)
		}
		peer.DropAll()
		for range 5 {
			if err := <-answers; !errors.Is(err, ErrLost) {
				t.Errorf("answer %v, want ErrLost", err)
			}
		}
		<-c.Lost()
		if err := c.Publish(ctx(t), message.Message{Topic: "t", QoS: 1}, func(error) { t.Error("answered") }); !errors.Is(err, ErrLost) {
			t.Errorf("publish on a lost connection: %v", err)
		}
		c.Close()
		if len(answers) > 0 {
			t.Error("a message was answered twice")
		}
	})
}

// Publish stops at the window and goes on when an answer comes; ctx ends the wait.
func TestWindow(t *testing.T) {
	versions(t, func(t *testing.T, version string) {
		peer := cloud(t, testpeer.Script{Publish: func(testpeer.Received) testpeer.Answer { return testpeer.Answer{Drop: true} }})
		c := dial(t, peer.Addr(), version)
		for range window {
			if err := c.Publish(ctx(t), message.Message{Topic: "t", QoS: 1}, func(error) {}); err != nil {
				t.Fatal(err)
			}
		}
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := c.Publish(short, message.Message{Topic: "t", QoS: 1}, func(error) { t.Error("answered") })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("publish beyond the window: %v", err)
		}
	})
}

// Close answers what is in flight.
func TestCloseAnswers(t *testing.T) {
	versions(t, func(t *testing.T, version string) {
		peer := cloud(t, testpeer.Script{Publish: func(testpeer.Received) testpeer.Answer { return testpeer.Answer{Drop: true} }})
		c := dial(t, peer.Addr(), version)
		answers := make(chan error, 1)
		if err := c.Publish(ctx(t), message.Message{Topic: "t", QoS: 2}, func(err error) { answers <- err }); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if err := <-answers; !errors.Is(err, ErrLost) {
			t.Errorf("answer %v, want ErrLost", err)
		}
	})
}

func TestDial(t *testing.T) {
	peer := cloud(t, testpeer.Script{})
	address := peer.Addr()
	if _, err := Dial(ctx(t), Options{Address: address, Version: "4"}); err == nil {
		t.Error("version 4 is accepted")
	}
	peer.Close()
	versions(t, func(t *testing.T, version string) {
		_, err := Dial(ctx(t), Options{Address: address, Version: version})
		var refused *RefusedError
		if err == nil || errors.As(err, &refused) {
			t.Errorf("nobody listens: %v", err)
		}
	})
}

// refuser is a broker that answers every connection, and every subscription with code.
func refuser(t *testing.T, version string, code byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { _ = l.Close() })
	serving.Go(func() { // ends with the one connection it takes, or the listener
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = nc.Close() }()
		r := bufio.NewReader(nc)
		for {
			head := make([]byte, 2) // packets here are shorter than 128 bytes
			if _, err := io.ReadFull(r, head); err != nil {
				return
			}
			body := make([]byte, head[1])
			if _, err := io.ReadFull(r, body); err != nil {
				return
			}
			var answer []byte
			switch head[0] >> 4 {
			case 1: // CONNECT
				answer = []byte{0x20, 2, 0, 0}
				if version == V5 {
					answer = []byte{0x20, 3, 0, 0, 0}
				}
			case 8: // SUBSCRIBE
				answer = []byte{0x90, 3, body[0], body[1], code}
				if version == V5 {
					answer = []byte{0x90, 4, body[0], body[1], 0, code}
				}
			}
			if _, err := nc.Write(answer); err != nil {
				return
			}
		}
	})
	return l.Addr().String()
}

// A refused subscription is an error that says so, with whatever code the broker gives; a granted one is not.
func TestRefusedSubscription(t *testing.T) {
	versions(t, func(t *testing.T, version string) {
		for _, code := range []byte{0, 1, 0x80, 0x87, 0x8F, 0xA2} {
			t.Run(fmt.Sprintf("%#x", code), func(t *testing.T) {
				c := dial(t, refuser(t, version, code), version)
				err := c.Subscribe(ctx(t), []string{"$SYS/#"}, 1)
				var refused *RefusedError
				switch {
				case code < 0x80 && err != nil:
					t.Errorf("granted: %v", err)
				case code >= 0x80 && (!errors.As(err, &refused) || refused.Code != code):
					t.Errorf("refused: error %v", err)
				}
			})
		}
	})
}
