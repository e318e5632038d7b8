package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"tidegate/forwarder/uplink/simple"
	"tidegate/message"
)

// cmdSub prints what it receives, a message a line, like mosquitto_sub. It ends with 0 after -C messages, on an
// interrupt, or when -W ran out and no -C was given; with 1 when -W ran out before -C messages came (mosquitto_sub: 27),
// a subscription was refused or the connection was lost; with 69 when the broker cannot be reached.
func cmdSub(args []string, std stdio) int {
	var f mqttFlags
	var filters listFlag
	fs := std.flagSet("sub", "-t FILTER [-t FILTER]… [-h HOST] [-p PORT] [-q QOS] [-v] [-C COUNT] [-W SECONDS] [-V VERSION] [-u USER] [-P PASSWORD]")
	f.register(fs)
	fs.Var(&filters, "t", "topic `filter`; may be repeated")
	verbose := fs.Bool("v", false, "print the topic before the payload")
	want := fs.Int("C", 0, "end after this `count` of messages; 0: never")
	wait := fs.Float64("W", 0, "end after this many `seconds`; 0: never")
	if code, done := std.parse(fs, args); done {
		return code
	}
	err := f.check()
	switch {
	case err != nil:
	case fs.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case len(filters) == 0:
		err = errors.New("-t FILTER is missing")
	case *want < 0:
		err = fmt.Errorf("-C %d: want 0 or more", *want)
	case *wait < 0 || *wait > 1e9:
		err = fmt.Errorf("-W %g: want 0 to 1000000000 seconds", *wait)
	}
	for _, filter := range filters {
		err = errors.Join(err, message.ValidFilter(filter))
	}
	if err != nil {
		return std.fail(exitUsage, "sub: %v; see tidegate sub --help", err)
	}
	return subscribe(std, f, filters, *want, *verbose, time.Duration(*wait*float64(time.Second)))
}

// subscribe receives until one of the ends that cmdSub names.
func subscribe(std stdio, f mqttFlags, filters []string, want int, verbose bool, wait time.Duration) int {
	ctx, stop := interruptible()
	defer stop()
	p := &printer{std: std, verbose: verbose, want: want, full: make(chan struct{})}
	c, err := f.dial(ctx, p.print)
	if err != nil {
		return f.dialFailed(std, "sub", err)
	}
	defer c.Close()

	var timeout <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timeout = t.C
	}
	if err := c.Subscribe(ctx, filters, message.QoS(f.qos)); err != nil {
		var refused *simple.RefusedError
		if errors.As(err, &refused) {
			return std.fail(exitFailed, "sub: %v", refused)
		}
		if ctx.Err() != nil {
			return exitOK
		}
		return std.fail(exitFailed, "sub: broker %s: %v", f.address(), err)
	}
	select {
	case <-p.full:
		return exitOK
	case <-ctx.Done():
		return exitOK
	case <-timeout:
		if want == 0 {
			return exitOK
		}
		return std.fail(exitFailed, "sub: %d of %d messages came within %v", p.printed(), want, wait)
	case <-c.Lost():
		return std.fail(exitFailed, "sub: broker %s: the connection was lost", f.address())
	}
}

// printer writes messages and counts them.
type printer struct {
	std     stdio
	verbose bool
	want    int           // 0: no end
	full    chan struct{} // closed when want messages were printed

	mu sync.Mutex
	n  int
}

// print writes one message and its line feed with one Write; after the last wanted one it writes nothing more.
func (p *printer) print(m message.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.want > 0 && p.n == p.want {
		return
	}
	var line []byte
	if p.verbose {
		line = append(append(line, m.Topic...), ' ')
		if len(m.Payload) == 0 {
			line = append(line, "(null)"...)
		}
	}
	line = append(append(line, m.Payload...), '\n')
	_, _ = p.std.out.Write(line)
	if p.n++; p.n == p.want {
		close(p.full)
	}
}

func (p *printer) printed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// listFlag collects a flag that may be repeated.
type listFlag []string

func (l *listFlag) String() string { return strings.Join(*l, " ") }

// Set implements flag.Value.
func (l *listFlag) Set(s string) error {
	*l = append(*l, s)
	return nil
}
