package uplink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"tidegate/config"
	"tidegate/message"
)

func closeError(code int, text string) error { return &websocket.CloseError{Code: code, Text: text} }

// TestReasonOfAClosedWebSocket: a server closes with a code and a reason while messages flow. That is why the connection ended,
// whether the reader or the writer meets it first, and the server ended it.
func TestReasonOfAClosedWebSocket(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(ws *websocket.Conn) error
		want string
	}{
		"close": {func(ws *websocket.Conn) error {
			text := websocket.FormatCloseMessage(websocket.ClosePolicyViolation, "no such topic here")
			return ws.WriteControl(websocket.CloseMessage, text, time.Now().Add(time.Minute))
		}, `the server closed the websocket (1008 "no such topic here")`},
		"text":       {func(ws *websocket.Conn) error { return ws.WriteMessage(websocket.TextMessage, []byte("x")) }, "a text message over websocket"},
		"bad opcode": {func(ws *websocket.Conn) error { _, err := ws.NetConn().Write([]byte("\x83\x01a")); return err }, "bad opcode 3"},
	} {
		t.Run(name, func(t *testing.T) {
			up := websocket.Upgrader{Subprotocols: []string{"mqtt"}}
			url := handshakeServer(t, func(w http.ResponseWriter, r *http.Request) {
				ws, err := up.Upgrade(w, r, nil)
				if err != nil {
					return
				}
				defer ws.Close()
				_, _, err = ws.ReadMessage() // CONNECT
				if err == nil {
					err = ws.WriteMessage(websocket.BinaryMessage, []byte{0x20, 3, 0, 0, 0})
				}
				for i := 0; i < 20 && err == nil; i++ {
					_, _, err = ws.ReadMessage()
				}
				if err == nil {
					err = c.end(ws)
				}
				for err == nil { // until the other side has closed
					_, _, err = ws.ReadMessage()
				}
			})
			for range 20 {
				h := open(t, variants()[0], nil, url)
				cn, err := pipelinedDriver{}.connect(within(t, 60*time.Second), &h.settings, hello{server: h.settings.servers[0], will: h.will(0)})
				if err != nil {
					t.Fatal(err)
				}
				l := &link{conn: cn}
				payload := bytes.Repeat([]byte("x"), 2000)
				for i := 0; err == nil; i++ {
					err = l.Send(context.Background(), message.Message{Topic: "a", Payload: payload, QoS: 1}, identity(i), func(error) {})
				}
				<-l.Lost()
				if !strings.Contains(cn.cause().Error(), c.want) || l.ClosedByPeer() != (name == "close") {
					t.Fatalf("ended with %q, closed by the peer: %t", cn.cause(), l.ClosedByPeer())
				}
			}
		})
	}
}

// TestRefusalsInHTTP: what a person has to do about them differs, and so does when it is tried again.
func TestRefusalsInHTTP(t *testing.T) {
	for code, c := range map[int]struct {
		label, advice string
		slow          bool
	}{
		401: {endRefused, "it does not let this gateway in", true},
		403: {endRefused, "it does not let this gateway in", true},
		404: {endNetwork, "check the path in servers", false},
		426: {endNetwork, "check the path in servers", false},
		429: {endNetwork, "it wants fewer connections", true},
		503: {endNetwork, "the broker behind it is not there", false},
	} {
		url := handshakeServer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
		h := open(t, variants()[0], nil, url+"/mqtt?token=s3cret")
		_, _, err := dial(within(t, 60*time.Second), &h.settings, h.settings.servers[0])
		if err == nil || endLabel(err) != c.label || !strings.Contains(err.Error(), c.advice) || !strings.Contains(err.Error(), fmt.Sprintf(`"%d `, code)) {
			t.Errorf("%d: %s %v", code, endLabel(err), err)
			continue
		}
		if wait := h.pace.wait(0, err); (wait >= h.pace.slow) != c.slow {
			t.Errorf("%d: tried again after %s", code, wait)
		}
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%d: the query is told: %v", code, err)
		}
	}
}

// TestExtensionNobodyAskedFor: a server that uses one anyway must be failed (RFC 6455, 4.1).
func TestExtensionNobodyAskedFor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				sum := sha1.Sum([]byte(req.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
				fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: mqtt\r\n"+
					"Sec-WebSocket-Accept: %s\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n\r\n",
					base64.StdEncoding.EncodeToString(sum[:]))
				_, _ = io.Copy(io.Discard, c)
			}
			_ = c.Close()
		}
	}()
	h := open(t, variants()[0], nil, "ws://"+l.Addr().String())
	_, _, err = dial(within(t, 60*time.Second), &h.settings, h.settings.servers[0])
	if err == nil || endLabel(err) != endProtocol || !strings.Contains(err.Error(), "permessage-deflate") {
		t.Errorf("ended with %v", err)
	}
}

// TestNameOfAServerBehindAnAddress: server_name is what the server is known by: in the handshake, in the Host field of a request, by
// which a shared front end chooses as by SNI, and in the login of a hub.
func TestNameOfAServerBehindAnAddress(t *testing.T) {
	asked := make(chan string, 1)
	a := newAuthority(t)
	a.leaf(t, "cloud", "broker.test")
	conf := a.server(t, "cloud")
	conf.ClientAuth = tls.NoClientCert
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.TLS.ServerName + " " + r.Host
		w.WriteHeader(http.StatusNotFound)
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	defer func() { _ = srv.Close(); <-ended }()
	named := func(u *config.Uplink) { u.CA, u.ServerName = a.path("ca.crt"), "broker.test" }
	h := open(t, variants()[0], named, "wss://"+l.Addr().String()+"/mqtt", "ws://10.0.0.5")
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if _, _, err = dial(within(t, 60*time.Second), &h.settings, h.settings.servers[0]); err == nil {
		t.Fatal("connected to something that is not there")
	}
	select {
	case got := <-asked:
		if got != "broker.test broker.test:"+port {
			t.Errorf("asked for %q", got)
		}
	default:
		t.Errorf("nobody asked: %v", err)
	}
	if sv := h.settings.servers[1]; sv.host != "10.0.0.5" {
		t.Errorf("without TLS the name is %s", sv.host)
	}
	hub := hubSettings(t, func(c *config.Uplink) {
		c.Servers, c.ServerName = []string{"mqtts://10.0.0.5"}, "contoso.azure-devices.net"
	})
	if got, err := hub.login(hub.servers[0], time.Now()); err != nil || !strings.HasPrefix(got.username, "contoso.azure-devices.net/") || hub.servers[0].addr != "10.0.0.5:8883" {
		t.Errorf("logs in as %q at %s: %v", got.username, hub.servers[0].addr, err)
	}
}

// TestQueryIsNotTold: a token in it is in no log, no status and no error.
func TestQueryIsNotTold(t *testing.T) {
	h := run(t, variants()[0], nil, nil, "ws://"+unusedAddr(t)+"/mqtt?token=s3cret")
	eventually(t, "failed", func() bool { return h.Status().LastError != "" })
	h.stop()
	if all := h.log.String() + fmt.Sprintf("%+v", h.Status()); strings.Contains(all, "s3cret") || !strings.Contains(all, "/mqtt?...") {
		t.Errorf("log and status:\n%s", all)
	}
	for _, server := range []string{"ws://h/%zz?token=s3cret", "http://h?token=s3cret", "ws://:80?token=s3cret"} {
		if _, err := parseServer(server); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", server, err)
		}
	}
}
