package testpeer

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// say writes bytes and reads back as many as want has.
func say(t *testing.T, c net.Conn, out, want string) {
	t.Helper()
	if _, err := c.Write([]byte(out)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("said %q, got %q (%v), want %q", out, got, err, want)
	}
}

const (
	connect311   = "\x10\x0d\x00\x04MQTT\x04\x00\x00\x3c\x00\x01c" // clean session off
	connect5     = "\x10\x13\x00\x04MQTT\x05\x02\x00\x3c\x05\x11\x00\x00\x00\x3c\x00\x01c"
	publishQoS1  = "\x32\x06\x00\x01t\x00\x07x"
	publish5QoS1 = "\x32\x07\x00\x01t\x00\x07\x00x"
)

func listen(t *testing.T) *Cloud {
	t.Helper()
	c, err := Listen(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestCloudAnswersAsScripted(t *testing.T) {
	cloud := listen(t)
	n := 0
	cloud.SetScript(Script{
		Connect: func(Connect) Greeting { return Greeting{ReceiveMaximum: 5} },
		Publish: func(Received) Answer {
			n++
			switch n {
			case 1:
				return Answer{Code: 0x97}
			case 2:
				return Answer{Drop: true}
			case 3:
				return Answer{Delay: 30 * time.Millisecond}
			}
			return Answer{Then: Fault{Kind: Tear}}
		},
	})
	c := dial(t, cloud.Addr())
	say(t, c, connect5, "\x20\x06\x00\x00\x03\x21\x00\x05")
	say(t, c, publish5QoS1, "\x40\x03\x00\x07\x97")
	say(t, c, publish5QoS1, "")
	started := time.Now()
	say(t, c, publish5QoS1, "\x40\x02\x00\x07")
	if d := time.Since(started); d < 30*time.Millisecond {
		t.Errorf("acknowledged after %s, want 30 ms", d)
	}
	say(t, c, publish5QoS1, "\x40\x02") // half of it
	if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
		t.Errorf("then %q, %v, want the end", b, err)
	}
	if r := cloud.Received(); len(r) != 4 || r[0].Topic != "t" || string(r[0].Payload) != "x" || r[0].ID != 7 {
		t.Errorf("recorded %+v", r)
	}
}

func TestCloudKeepsCommandsForASession(t *testing.T) {
	cloud := listen(t)
	c := dial(t, cloud.Addr())
	say(t, c, connect311, "\x20\x02\x00\x00")
	say(t, c, "\x82\x08\x00\x01\x00\x03a/#\x01", "\x90\x03\x00\x01\x01")
	cloud.DropAll()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := cloud.Wait(ctx, func(c *Cloud) bool { return c.Open() == 0 }); err != nil {
		t.Fatal(err)
	}
	if n := cloud.Send(Command{Topic: "a/b", Payload: []byte("y"), QoS: 1}); n != 1 {
		t.Fatalf("queued for %d sessions", n)
	}
	c = dial(t, cloud.Addr())
	say(t, c, connect311, "\x20\x02\x01\x00\x32\x08\x00\x03a/b\x00\x01y")
	_ = c.Close() // unacknowledged: it comes again, with DUP
	if err := cloud.Wait(ctx, func(c *Cloud) bool { return c.Open() == 0 }); err != nil {
		t.Fatal(err)
	}
	c = dial(t, cloud.Addr())
	say(t, c, connect311, "\x20\x02\x01\x00\x3a\x08\x00\x03a/b\x00\x01y")
	say(t, c, "\x40\x02\x00\x01", "")
	if err := cloud.Wait(ctx, func(c *Cloud) bool { return len(c.CommandAcks()) == 1 }); err != nil {
		t.Fatal(err)
	}
}

func TestCloudHoldsQoS2IdentifiersUntilReleased(t *testing.T) {
	cloud := listen(t)
	c := dial(t, cloud.Addr())
	say(t, c, connect311, "\x20\x02\x00\x00")
	publish, received := "\x34\x06\x00\x01t\x00\x07x", "\x50\x02\x00\x07"
	say(t, c, publish, received)
	say(t, c, publish, received) // a retransmission, whatever it carries [MQTT-4.3.3-2]
	say(t, c, "\x62\x02\x00\x07", "\x70\x02\x00\x07")
	say(t, c, publish, received)
	var resent []bool
	for _, r := range cloud.Received() {
		resent = append(resent, r.Resent)
	}
	if len(resent) != 3 || resent[0] || !resent[1] || resent[2] {
		t.Errorf("resent %v, want only the second", resent)
	}
}

func TestCloudGoesDownAndUpOnItsAddress(t *testing.T) {
	cloud := listen(t)
	say(t, dial(t, cloud.Addr()), connect311, "\x20\x02\x00\x00")
	cloud.Down()
	if c, err := net.Dial("tcp", cloud.Addr()); err == nil {
		_ = c.Close()
		t.Fatal("still listening")
	}
	if err := cloud.Up(); err != nil {
		t.Fatal(err)
	}
	c := dial(t, cloud.Addr())
	say(t, c, connect311, "\x20\x02\x01\x00")
	say(t, c, publishQoS1, "\x40\x02\x00\x07")
	cloud.KickAll(0x8B) // there is no DISCONNECT on 3.1.1
	if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
		t.Errorf("then %q, %v, want the end", b, err)
	}
}
