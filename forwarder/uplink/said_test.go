package uplink

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
	"unicode"

	"tidegate/config"
	"tidegate/internal/testpeer"
)

// answering is a server that answers whatever is asked first with text.
func answering(t *testing.T, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4<<10))
			_, _ = io.WriteString(c, text)
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c) // until the other side has read it and closed
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

const rude = "\x1b[2J\x1b]0;owned\x07\n"

// harmless checks what a person or a terminal gets to see.
func harmless(t *testing.T, what, text string) {
	t.Helper()
	if strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) {
		t.Errorf("%s: %.300q", what, text)
	}
	if len(text) > maxTold+200 {
		t.Errorf("%s: %d bytes", what, len(text))
	}
}

// TestWhatPeersSayIsBounded: the words of a proxy, of a WebSocket server and of a broker are short and printable in status and log.
func TestWhatPeersSayIsBounded(t *testing.T) {
	long := strings.Repeat("x", 60000)
	for what, answer := range map[string]string{
		"status": "HTTP/1.1 403 " + strings.ReplaceAll(rude, "\n", "") + long + "\r\n\r\n", "no HTTP": rude + long + "\r\n\r\n",
		"extension": "HTTP/1.1 407 x\r\nProxy-Authenticate: " + strings.Repeat("\x1bA, ", 10000) + "\r\n\r\n",
	} {
		addr := answering(t, answer)
		for _, way := range []struct {
			server string
			proxy  config.Proxy
		}{{server: "ws://" + addr}, {server: "mqtt://b:1", proxy: config.Proxy{URL: "http://" + addr}}, {server: "mqtt://b:1", proxy: config.Proxy{URL: "socks5://" + addr}}} {
			c := config.Uplink{Servers: []string{way.server}, Proxy: way.proxy, Protocol: "5"}
			err := Reach(within(t, 60*time.Second), "cloud", c, "gw", 0)
			if err == nil {
				t.Fatalf("%s: reached", what)
			}
			harmless(t, what+" "+way.server+" "+way.proxy.URL, err.Error())
		}
	}
	for what, err := range map[string]error{
		"connack":    &refusal{version: version5, code: 0x87, reason: rude + long},
		"puback":     &RefusedError{Code: 0x99, Reason: rude + long},
		"disconnect": parseDisconnect(append([]byte{0x8B, 0xC7, 0x01, 0x1F, 0x00, 0xC4}, []byte((rude + long)[:0xC4])...)),
		"close":      webSocketEnd(fmt.Errorf("x: %w", closeError(1008, rude))),
	} {
		harmless(t, what, err.Error())
		if !strings.Contains(err.Error(), "owned") {
			t.Errorf("%s: nothing is left of it: %v", what, err)
		}
	}
	peer := cloud(t, testpeer.Options{})
	peer.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting {
		return testpeer.Greeting{Code: 0x88, Reason: rude}
	}})
	h := run(t, variants()[0], nil, nil, peer.URL())
	eventually(t, "refused", func() bool { return strings.Contains(h.Status().LastError, "owned") })
	harmless(t, "last error", h.Status().LastError)
}

func TestTold(t *testing.T) {
	inner := errors.New("a\x00\n" + strings.Repeat("ö", maxTold) + "\xff")
	got := told{inner}
	if text := got.Error(); !strings.HasPrefix(text, "a??ö") || len(text) > maxTold+3 || !errors.Is(got, inner) {
		t.Errorf("%q", text)
	}
	if text := said(strings.Repeat("ö", maxSaid)); len(text) > maxSaid+5 || !strings.HasSuffix(text, `ö"...`) {
		t.Errorf("%q", text)
	}
}
