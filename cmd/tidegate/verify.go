package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"tidegate/config"
	"tidegate/forwarder/uplink/simple"
	"tidegate/message"
)

// gapsFilter selects the reports of sequences that will never come.
const gapsFilter = "tidegate/+/uplink/+/gaps"

// verifyFlags are what `verify` was asked for.
type verifyFlags struct {
	server, ca, cert, key  string
	user, password, client string
	version                versionFlag
	qos                    int
	filters                listFlag
	length                 time.Duration
	count                  uint64
	asJSON                 bool
	unordered              bool

	broker string // HOST:PORT of server
	tls    *tls.Config
}

// cmdVerify is a consumer on the cloud side that says what of the gateways' messages is missing, came twice or out of order.
// It ends with 0 when nothing is missing or out of order beyond what the gateways announced; with 1 when something is, or is not
// known, something could not be read, the connection was lost, or fewer than --count messages came; with 69 when the broker cannot be
// reached.
func cmdVerify(args []string, std stdio) int {
	var f verifyFlags
	fs := std.flagSet("verify", "--server URL --filter FILTER [--filter FILTER]… [--for DURATION] [--count N] [--json] [--unordered] "+
		"[-u USER] [-P PASSWORD] [-V VERSION] [-q QOS] [-i ID] [--ca FILE] [--cert FILE --key FILE]")
	f.register(fs)
	if code, done := std.parse(fs, args); done {
		return code
	}
	err := f.check(fs)
	if err != nil {
		return std.fail(exitUsage, "verify: %v; see tidegate verify --help", err)
	}
	return verify(std, f)
}

func (f *verifyFlags) register(fs *flag.FlagSet) {
	f.version = simple.V5
	fs.StringVar(&f.server, "server", "", "`URL` of the broker: mqtt://HOST:PORT or mqtts://HOST:PORT")
	fs.Var(&f.filters, "filter", "topic `filter`; may be repeated. All that an uplink sends must be in it, or it is missing")
	fs.Func("for", "end after this `duration`, such as 10m; default: when interrupted", func(s string) error {
		d, err := config.ParseDuration(s)
		if f.length = d.D(); err == nil && f.length <= 0 {
			err = errors.New("want more than nothing")
		}
		return err
	})
	fs.Uint64Var(&f.count, "count", 0, "end after `N` different messages; 0: never")
	fs.BoolVar(&f.asJSON, "json", false, "as JSON")
	fs.BoolVar(&f.unordered, "unordered", false, "messages may overtake each other, as with live_first")
	fs.StringVar(&f.user, "u", "", "user `name`")
	fs.StringVar(&f.password, "P", "", "`password`")
	fs.StringVar(&f.client, "i", "", "client `identifier`; a random one when not given")
	fs.Var(&f.version, "V", "`version` of MQTT: mqttv5 (5) or mqttv311 (3.1.1), which carries no identity but in batches")
	fs.IntVar(&f.qos, "q", 1, "quality of service: 1 or 2")
	fs.StringVar(&f.ca, "ca", "", "`file` of the authorities of an mqtts:// broker; default: the system's")
	fs.StringVar(&f.cert, "cert", "", "`file` of a client certificate")
	fs.StringVar(&f.key, "key", "", "`file` of its key")
}

// check completes the flags.
func (f *verifyFlags) check(fs *flag.FlagSet) error {
	switch {
	case fs.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case f.server == "":
		return errors.New("--server URL is missing")
	case len(f.filters) == 0:
		return errors.New("--filter FILTER is missing")
	case f.qos != 1 && f.qos != 2:
		return fmt.Errorf("-q %d: want 1 or 2, as QoS 0 may lose messages on the way here", f.qos)
	case f.password != "" && f.user == "" && f.version == simple.V311:
		return errors.New("-P without -u: MQTT 3.1.1 has no password without a user name")
	case (f.cert == "") != (f.key == ""):
		return errors.New("--cert and --key belong together")
	}
	for _, filter := range f.filters {
		if err := message.ValidFilter(filter); err != nil {
			return err
		}
	}
	return f.reach()
}

// reach reads --server and what belongs to it.
func (f *verifyFlags) reach() error {
	u, err := url.Parse(f.server)
	if err != nil || u.Hostname() == "" || u.Scheme != "mqtt" && u.Scheme != "mqtts" || u.User != nil || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("--server %q: want mqtt://HOST:PORT or mqtts://HOST:PORT", f.server)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"mqtt": "1883", "mqtts": "8883"}[u.Scheme]
	}
	f.broker = net.JoinHostPort(u.Hostname(), port)
	if u.Scheme == "mqtt" {
		if f.ca != "" || f.cert != "" {
			return errors.New("--ca, --cert and --key are only for mqtts://")
		}
		return nil
	}
	f.tls = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return err
		}
		f.tls.RootCAs = x509.NewCertPool()
		if !f.tls.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("--ca %s holds no certificate in PEM form", f.ca)
		}
	}
	if f.cert != "" {
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return err
		}
		f.tls.Certificates = []tls.Certificate{pair}
	}
	return nil
}

// verify watches until one of the ends that cmdVerify names, and reports.
func verify(std stdio, f verifyFlags) int {
	ctx, stop := interruptible()
	defer stop()
	w := newWatcher(f.count, f.unordered)
	c, err := f.dial(ctx, w.see)
	if err != nil {
		var refused *simple.RefusedError
		if errors.As(err, &refused) {
			return std.fail(exitFailed, "verify: broker %s: %v; check -u and -P", f.broker, refused)
		}
		return std.fail(exitUnavailable, "verify: cannot reach the broker at %s: %v; check --server, and that it runs", f.broker, err)
	}
	defer c.Close()
	if err := c.Subscribe(ctx, f.subscriptions(), message.QoS(f.qos)); err != nil && ctx.Err() == nil {
		return std.fail(exitFailed, "verify: broker %s: %v", f.broker, err)
	}
	fmt.Fprintf(std.err, "tidegate: watching %s for %s\n", f.broker, strings.Join(f.filters, ", "))
	var timeout <-chan time.Time
	if f.length > 0 {
		t := time.NewTimer(f.length)
		defer t.Stop()
		timeout = t.C
	}
	code := exitOK
	select {
	case <-ctx.Done():
		if n, full := w.count(); f.count > 0 && !full {
			code = std.fail(exitFailed, "verify: interrupted when %d of %d different messages had come", n, f.count)
		}
	case <-w.full:
		w.settle(ctx, c.Lost())
	case <-timeout:
		if n, full := w.count(); f.count > 0 && !full {
			code = std.fail(exitFailed, "verify: %d of %d different messages came within %v", n, f.count, f.length)
		}
		w.settle(ctx, c.Lost())
	case <-c.Lost():
		code = std.fail(exitFailed, "verify: broker %s: the connection was lost; what came meanwhile is not known", f.broker)
	}
	return max(code, w.finish(std, f))
}

// subscriptions are the filters and the gap reports, unless one of the filters selects these already: some brokers send a
// message once for each subscription that selects it.
func (f *verifyFlags) subscriptions() []string {
	covered := slices.ContainsFunc(f.filters, func(have string) bool { return message.Covers(have, gapsFilter) })
	if covered {
		return f.filters
	}
	return append(slices.Clone(f.filters), gapsFilter)
}

func (f *verifyFlags) dial(ctx context.Context, see func(message.Message)) (*simple.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return simple.Dial(ctx, simple.Options{
		Address: f.broker, Version: string(f.version), ClientID: f.client, Username: f.user, Password: f.password, TLS: f.tls, OnMessage: see,
	})
}

// finish prints the report and returns the exit code.
func (w *watcher) finish(std stdio, f verifyFlags) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.account.report()
	if f.asJSON {
		if code := std.printJSON(r); code != exitOK {
			return code
		}
	} else {
		printAccount(std.out, r)
	}
	if r.Earlier > 0 {
		fmt.Fprintf(std.err, "tidegate: %d sequences did not come that may have come before this watch began\n", r.Earlier)
	}
	switch {
	case r.Missing > 0:
		return std.fail(exitFailed, "verify: %d messages are missing that no gateway announced as lost", r.Missing)
	case r.Reordered > 0 && !f.unordered:
		return std.fail(exitFailed, "verify: %d messages came behind later ones of the same device and topic; with live_first that is as it should be: say --unordered", r.Reordered)
	case r.Unreadable > 0:
		return std.fail(exitFailed, "verify: %d batches or gap reports cannot be read; what was in them is not known", r.Unreadable)
	case r.Unsure > 0:
		return std.fail(exitFailed, "verify: %d messages did not come, and there were more gaps than verify remembers: whether they were announced is not known; watch for a shorter time", r.Unsure)
	case r.Beyond > 0:
		return std.fail(exitFailed, "verify: there are more than %d lanes and epochs; %d messages of others were not looked at; use narrower filters", maxLanes, r.Beyond)
	case r.Received == 0 && r.Unidentified > 0:
		return std.fail(exitFailed, "verify: none of %d messages had an identity (tg-id), so nothing was verified; use MQTT 5, or batches, and leave identity of the uplink on", r.Unidentified)
	case r.Received == 0:
		fmt.Fprintln(std.err, "tidegate: no message with an identity came, so nothing was verified")
	}
	return exitOK
}

// printAccount is the report for people.
func printAccount(w io.Writer, r accountReport) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "UPLINK\tEPOCH\tLANE\tFIRST\tLAST\tRECEIVED\tMISSING\tANNOUNCED\tDUPLICATES\tREORDERED")
	for _, l := range r.Lanes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", l.Gateway+"/"+l.Uplink, l.Epoch, l.Lane, l.First, l.Last,
			l.Received, l.Missing, l.Announced, l.Duplicates, l.Reordered)
	}
	fmt.Fprintln(t, "\nDEVICE\tUPLINK\tLANE\tFIRST\tLAST\tRECEIVED\tDUPLICATES\tREORDERED")
	for _, l := range r.Lanes {
		for _, d := range l.Devices {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\n", d.Source, l.Gateway+"/"+l.Uplink, l.Lane, d.First, d.Last,
				d.Received, d.Duplicates, d.Reordered)
		}
	}
	_ = t.Flush()
	for _, l := range r.Lanes {
		for _, x := range l.MissingRanges[:min(len(l.MissingRanges), 20)] {
			fmt.Fprintf(w, "missing: %s/%s %s-%s-%d to %d\n", l.Gateway, l.Uplink, l.Epoch, l.Lane, x[0], x[1])
		}
	}
	fmt.Fprintf(w, "%d messages, %d batches: %d different, %d missing, %d announced, %d again, %d out of order, %d without identity, %d unreadable\n",
		r.Messages, r.Batches, r.Received, r.Missing, r.Announced, r.Duplicates, r.Reordered, r.Unidentified, r.Unreadable)
	if r.Earlier > 0 || r.Unsure > 0 || r.Beyond > 0 {
		fmt.Fprintf(w, "%d that may have come earlier, %d not sure, %d beyond what is watched\n", r.Earlier, r.Unsure, r.Beyond)
	}
}
