package coap

import (
	"fmt"
	"slices"
	"testing"
	"time"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp"

	"tidegate/internal/testpeer"
)

// BenchmarkConfirmablePublish measures confirmable POSTs of 64 bytes in a closed loop, against a plain echo of datagrams that
// gets the same load in the same run, in turns. of-echo is the median ratio of the rates of neighbouring turns. Both sides and
// all clients share the processors, so that a gateway with clients elsewhere does better.
//
// The bus is in memory: direct, every record is durable at once; later, by a goroutine that makes durable what has gathered,
// as the committer of the log does.
func BenchmarkConfirmablePublish(b *testing.B) {
	for _, mode := range []string{"direct", "later"} {
		for _, clients := range []int{1, 10, 100, 1000} {
			b.Run(fmt.Sprintf("%s/clients=%d", mode, clients), func(b *testing.B) {
				g := start(b, nil)
				g.bus.forgetful = true
				if mode == "later" {
					g.bus.disk.commits(b)
				}
				compareWithEcho(b, g.Addrs()[0].String(), clients)
			})
		}
	}
}

func compareWithEcho(b *testing.B, gateway string, clients int) {
	b.Helper()
	echo, err := testpeer.NewUDPEcho()
	if err != nil {
		b.Fatal(err)
	}
	defer echo.Close()
	load := testpeer.CoAPLoad{Clients: clients, Topic: "plant/press1/temp", Payload: 64}
	const requests = 10_000
	measure := func(to string, code byte) testpeer.CoAPResult {
		r, err := load.Run(to, requests, code)
		if err != nil || r.Answered != requests {
			b.Fatalf("%d of %d answered: %v", r.Answered, requests, err)
		}
		return r
	}
	var ratios, rates, floor []float64
	var p99 time.Duration
	for b.Loop() {
		e := measure(echo.Addr(), 0x02)
		g := measure(gateway, 0x44)
		rates = append(rates, requests/g.Elapsed.Seconds())
		floor = append(floor, requests/e.Elapsed.Seconds())
		ratios = append(ratios, e.Elapsed.Seconds()/g.Elapsed.Seconds())
		p99 = g.P99
	}
	b.ReportMetric(median(ratios), "of-echo")
	b.ReportMetric(median(rates), "requests/s")
	b.ReportMetric(median(floor), "echoes/s")
	b.ReportMetric(float64(p99.Microseconds()), "p99-µs")
	b.ReportMetric(0, "ns/op")
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// BenchmarkGoCoAPServer gives the same load to the server of the library whose codec is used here, with a handler that does
// nothing: what the message layer of our own is measured against.
func BenchmarkGoCoAPServer(b *testing.B) {
	for _, clients := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			conn, err := coapnet.NewListenUDP("udp4", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			server := udp.NewServer(options.WithMux(mux.HandlerFunc(func(w mux.ResponseWriter, _ *mux.Message) {
				_ = w.SetResponse(codes.Changed, option.TextPlain, nil)
			})), options.WithErrors(func(error) {}))
			done := make(chan error, 1)
			go func() { done <- server.Serve(conn) }()
			defer func() {
				server.Stop()
				<-done
				_ = conn.Close()
			}()
			compareWithEcho(b, conn.LocalAddr().String(), clients)
		})
	}
}
