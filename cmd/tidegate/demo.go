package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"tidegate/config"
	"tidegate/forwarder/uplink/simple"
	"tidegate/internal/demo"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// cmdDemo is `tidegate demo`: the main job in one process, through an outage of the line to the cloud. The story goes to
// standard output, with --json the counts alone; logs go to standard error.
func cmdDemo(args []string, std stdio) int {
	fs := std.flagSet("demo", "[--keep] [--json]")
	keep := fs.Bool("keep", false, "leave the folder with the gateway's configuration and data behind, to look around in it")
	asJSON := fs.Bool("json", false, "print the counts as one JSON object, and nothing else")
	if code, done := std.parse(fs, args); done {
		return code
	}
	if fs.NArg() > 0 {
		return std.fail(exitUsage, "demo: unexpected argument %q", fs.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return runDemo(ctx, std, *keep, *asJSON, nil)
}

// runDemo plays the demo. cloud, if not nil, stands between the cloud broker and the counting; a test puts one there.
func runDemo(ctx context.Context, std stdio, keep, asJSON bool, cloud func(topic string, payload []byte) bool) int {
	dir, err := os.MkdirTemp("", "tidegate-demo-")
	if err != nil {
		return std.fail(exitFailed, "demo: make a folder: %v", err)
	}
	if !keep {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	say := std.out
	if asJSON {
		say = io.Discard
	}
	log, _ := newLogger(config.Log{Level: "warn", Format: "text"}, std.err)
	d := demoParts{log: log, pass: cloud}
	report, err := demo.Run(ctx, demo.Options{
		Gateway: d.startGateway, Cloud: d.startCloud, MQTT: dialDevice, Dir: dir, Say: say, Log: log,
	})
	if asJSON {
		if code := std.printJSON(report); code != exitOK {
			return code
		}
	} else {
		printReport(std.out, report, err == nil)
	}
	if keep {
		fmt.Fprintf(std.err, "tidegate: demo: the gateway's folder is %s; look around with tidegate buffer ls --config %s/tidegate.toml\n", dir, dir)
	}
	switch {
	case ctx.Err() != nil:
		return std.fail(exitFailed, "demo: interrupted before the cloud had everything; the rest was on disk")
	case err != nil:
		return std.fail(exitFailed, "demo: %v", err)
	case report.Lost > 0:
		return std.fail(exitFailed, "demo: %d messages were acknowledged and did not arrive", report.Lost)
	}
	return exitOK
}

// printReport writes the counts for people. whole says that the demo was played to its end.
func printReport(w io.Writer, r demo.Report, whole bool) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\nPROTOCOL\tSENT\tACKNOWLEDGED\tDELIVERED\tDUPLICATES\tLOST\t")
	for _, p := range []message.Protocol{message.MQTT, message.CoAP, message.OPCUA} {
		c := r.Protocols[p]
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t\n", p, c.Sent, c.Acked, c.Delivered, c.Duplicates, c.Lost)
	}
	_ = t.Flush()
	if r.Lost == 0 && whole {
		fmt.Fprintln(w, "\nNothing that was acknowledged was lost.")
	}
}

// demoParts hands the real parts of the gateway to the demo.
type demoParts struct {
	log  *slog.Logger
	pass func(topic string, payload []byte) bool
}

// demoGateway is a gateway in this process.
type demoGateway struct {
	*gateway
	cancel context.CancelFunc
	done   chan error
}

func (d demoParts) startGateway(ctx context.Context, file string) (demo.Gateway, error) {
	c, err := config.Load(file)
	if err != nil {
		return nil, err
	}
	g, err := build(ctx, c, d.log, seams{})
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	dg := &demoGateway{gateway: g, cancel: cancel, done: make(chan error, 1)}
	go func() { dg.done <- g.run(life, nil) }() // ends with Stop, which waits for it
	return dg, nil
}

// Addr returns the bound address of listener.NAME or of a bridge. Everything is bound before a gateway runs.
func (g *demoGateway) Addr(name string) string {
	for listener, addr := range g.broker.Addrs() {
		if "listener."+listener == name {
			return addr.String()
		}
	}
	for _, b := range g.bridges.all() {
		if addrs := b.bridge.Addrs(); b.bridge.Name() == name && len(addrs) > 0 {
			return addrs[0].String()
		}
	}
	return ""
}

// Stop ends the gateway in order.
func (g *demoGateway) Stop() error {
	g.cancel()
	return <-g.done
}

// demoCloud is a cloud broker that keeps nothing but the counting.
type demoCloud struct{ *testpeer.Cloud }

func (d demoParts) startCloud(_ context.Context, got func(string, []byte)) (demo.Broker, error) {
	c, err := testpeer.Listen(testpeer.Options{CountOnly: true})
	if err != nil {
		return nil, err
	}
	c.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer {
		if d.pass == nil || d.pass(r.Topic, r.Payload) {
			got(r.Topic, r.Payload)
		}
		return testpeer.Answer{}
	}})
	return demoCloud{c}, nil
}

// Stop ends the broker and its connections.
func (c demoCloud) Stop() error {
	c.Close()
	return nil
}

// demoDevice is an MQTT device: the client behind `tidegate pub`.
type demoDevice struct{ client *simple.Client }

func dialDevice(ctx context.Context, addr, client string) (demo.Client, error) {
	c, err := simple.Dial(ctx, simple.Options{Address: addr, ClientID: client, Version: simple.V5})
	if err != nil {
		return nil, err
	}
	return demoDevice{c}, nil
}

func (d demoDevice) Publish(ctx context.Context, topic string, payload []byte, acked func(error)) error {
	return d.client.Publish(ctx, message.Message{Topic: topic, Payload: payload, QoS: 1}, acked)
}

func (d demoDevice) Close() { d.client.Close() }
