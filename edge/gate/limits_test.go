package gate

import (
	"net"
	"testing"
)

// Limits that two listeners have together count the connections of both.
func TestSharedLimits(t *testing.T) {
	limits := NewLimits(5, 3, 0, 0)
	var refused []Reason
	listen := func() *Listener {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return NewListener(inner, ListenerOptions{Limits: limits, OnRefuse: func(_ net.Addr, why Reason) { refused = append(refused, why) }})
	}
	a, b := listen(), listen()
	defer a.Close()
	defer b.Close()
	from := func(l *Listener, ip string) *Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		cl, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cl.Close() })
		raw, err := l.inner.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return l.admit(raw)
	}
	first := from(a, "127.0.0.1")
	for _, s := range []struct {
		l    *Listener
		ip   string
		good bool
	}{{a, "127.0.0.1", true}, {b, "127.0.0.1", true}, {b, "127.0.0.1", false}, {b, "127.0.0.2", true}, {a, "127.0.0.2", true}, {a, "127.0.0.3", false}} {
		if c := from(s.l, s.ip); (c != nil) != s.good {
			t.Errorf("%s: %t", s.ip, c != nil)
		}
	}
	if len(refused) != 2 || refused[0] != ReasonTooManyPerAddr || refused[1] != ReasonTooMany {
		t.Errorf("refused %v", refused)
	}
	first.Kill("test")
	first.Wait()
	if from(b, "127.0.0.1") == nil {
		t.Error("a place that became free is not given away")
	}
}
