package uplink

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"tidegate/config"
	"tidegate/message"
)

// BenchmarkSend sends 200 byte messages with QoS 1 to the sink and waits for every acknowledgement.
func BenchmarkSend(b *testing.B) {
	for _, v := range variants() {
		b.Run(v.name, func(b *testing.B) {
			server := "mqtt://" + sink(b, nil)
			if v.ws {
				server = webSocketSink(b)
			}
			c := config.Uplink{Servers: []string{server}, Protocol: v.protocol, MaxInFlight: 8192}
			client := openBench(b, c, v)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- client.Run(ctx, nil) }()
			defer func() {
				cancel()
				<-ended
			}()
			link, err := client.Connected(ctx)
			if err != nil {
				b.Fatal(err)
			}
			m := message.Message{Topic: "plant/press1/temperature/value", Payload: make([]byte, 200), QoS: 1}
			all := make(chan struct{})
			var acked atomic.Int64
			n := int64(b.N)
			done := func(err error) {
				if err != nil {
					b.Error(err)
				}
				if acked.Add(1) == n {
					close(all)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if err := link.Send(ctx, m, Identity{}, done); err != nil {
					b.Fatal(err)
				}
			}
			<-all
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

// webSocketSink is a sink that is reached over WebSocket.
func webSocketSink(b testing.TB) string {
	b.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{Subprotocols: []string{"mqtt"}, ReadBufferSize: 32 << 10, WriteBufferSize: 32 << 10}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		_ = acknowledge(newWebSocketConn(ws, ws.NetConn()), nil) // it ends with the connection
	}))
	b.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http")
}

func openBench(b *testing.B, c config.Uplink, v variant) *Client {
	b.Helper()
	client, err := New("cloud", c, "gw", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	client.driver = v.driver
	return client
}
