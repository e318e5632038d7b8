package simple

import (
	"context"
	"errors"
	"fmt"
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
