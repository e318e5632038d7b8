package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/bridges/coap"
	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// BenchmarkCoAPPublish measures confirmable POSTs of 64 bytes from 100 clients in a closed loop into the whole gateway, against
// a plain echo of datagrams under the same load in the same run, in turns. of-echo is the median ratio of neighbouring turns.
// subscribed: a local subscriber hears every message and nothing is stored; stored: each record is on disk before its 2.04.
func BenchmarkCoAPPublish(b *testing.B) {
	for name, route := range map[string]string{
		"subscribed": "",
		"stored":     "[route.up]\nfrom = [\"plant/#\"]\n[uplink.cloud]\nservers = [\"mqtt://127.0.0.1:9\"]\n",
	} {
		for _, clients := range []int{100, 1000} {
			b.Run(fmt.Sprintf("%s/clients=%d", name, clients), func(b *testing.B) {
				to := coapGateway(b, route)
				echo, err := testpeer.NewUDPEcho()
				if err != nil {
					b.Fatal(err)
				}
				defer echo.Close()
				load := testpeer.CoAPLoad{Clients: clients, Topic: "plant/press1/temp", Payload: 64}
				const requests = 10_000
				measure := func(to string, code byte) (time.Duration, time.Duration) {
					r, err := load.Run(to, requests, code)
					if err != nil || r.Answered != requests {
						b.Fatalf("%d of %d answered: %v", r.Answered, requests, err)
					}
					return r.Elapsed, r.P99
				}
				var ratios, rates []float64
				var p99 time.Duration
				for b.Loop() {
					floor, _ := measure(echo.Addr(), 0x02)
					var took time.Duration
					took, p99 = measure(to, 0x44)
					ratios = append(ratios, floor.Seconds()/took.Seconds())
					rates = append(rates, requests/took.Seconds())
				}
				slices.Sort(ratios)
				slices.Sort(rates)
				b.ReportMetric(ratios[len(ratios)/2], "of-echo")
				b.ReportMetric(rates[len(rates)/2], "requests/s")
				b.ReportMetric(float64(p99.Microseconds()), "p99-µs")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// coapGateway runs log, forwarder, broker and CoAP bridge, and returns the bridge's address.
func coapGateway(b *testing.B, route string) string {
	b.Helper()
	text := fmt.Sprintf("version = 1\n[gateway]\ndata_dir = %q\n%s%s", filepath.Join(b.TempDir(), "data"), oneListener, route)
	c, err := config.Parse("bench.toml", []byte(text))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g, err := build(ctx, c, slog.New(slog.DiscardHandler), seams{})
	if err != nil {
		b.Fatal(err)
	}
	bridge, err := coap.New(config.CoAP{Listen: []string{"coap://127.0.0.1:0"}}, coap.Options{
		Bus: g.broker, ACL: g.users, Anonymous: true, MaxPayload: int(c.Broker.MaxPacket), Metrics: prometheus.NewRegistry(), Log: g.log,
	})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := g.broker.Subscribe("plant/#", func(context.Context, message.Message) error { return nil }); err != nil {
		b.Fatal(err)
	}
	var parts sync.WaitGroup
	parts.Go(func() { _ = g.forwarder.Run(ctx, g.broker.Deliver) })
	parts.Go(func() { _ = g.broker.Run(ctx) })
	parts.Go(func() { _ = bridge.Run(ctx) })
	b.Cleanup(func() {
		cancel()
		parts.Wait()
		_ = g.close()
	})
	return bridge.Addrs()[0].String()
}
