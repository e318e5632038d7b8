package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"tidegate/forwarder/uplink/simple"
	"tidegate/message"
)

// maxPayload is the largest payload an MQTT packet can carry, nearly [MQTT-1.5.5-1].
const maxPayload = 256 << 20

// cmdPub publishes like mosquitto_pub: one message of -m, or one for every line of standard input with -l.
func cmdPub(args []string, std stdio) int {
	var f mqttFlags
	fs := std.flagSet("pub", "-t TOPIC (-m MESSAGE | -l | -n | -s) [-h HOST] [-p PORT] [-q QOS] [-r] [-V VERSION] [-u USER] [-P PASSWORD]")
	f.register(fs)
	topic := fs.String("t", "", "`topic` name to publish to")
	text := fs.String("m", "", "`message` to publish")
	retain := fs.Bool("r", false, "retain the message")
	lines := fs.Bool("l", false, "one message for every line of standard input")
	null := fs.Bool("n", false, "an empty message; with -r it clears what is retained")
	whole := fs.Bool("s", false, "all of standard input as one message")
	if code, done := std.parse(fs, args); done {
		return code
	}
	given := setFlags(fs)
	err := f.check()
	switch {
	case err != nil:
	case fs.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case *topic == "":
		err = errors.New("-t TOPIC is missing")
	case count(given["m"], *lines, *null, *whole) != 1:
		err = errors.New("want exactly one of -m, -l, -n and -s")
	default:
		err = message.ValidName(*topic)
	}
	if err != nil {
		return std.fail(exitUsage, "pub: %v; see tidegate pub --help", err)
	}

	m := message.Message{Topic: *topic, Payload: []byte(*text), QoS: message.QoS(f.qos), Retain: *retain}
	next := once(m)
	switch {
	case *lines:
		next = eachLine(std.in, m)
	case *whole:
		payload, err := io.ReadAll(io.LimitReader(std.in, maxPayload))
		if err != nil {
			return std.fail(exitFailed, "pub: read standard input: %v", err)
		}
		m.Payload = payload
		next = once(m)
	}

	ctx, stop := interruptible()
	defer stop()
	c, err := f.dial(ctx, nil)
	if err != nil {
		return f.dialFailed(std, "pub", err)
	}
	defer c.Close()
	return publishAll(ctx, std, c, next)
}

// publishAll publishes what next gives until io.EOF and waits for every acknowledgement. One line of error is written
// for every refused message, one for all that were left without an answer.
func publishAll(ctx context.Context, std stdio, c *simple.Client, next func() (message.Message, error)) int {
	var mu sync.Mutex // guards refused, unanswered and standard error, as the answers come from goroutines
	var refused, unanswered int
	var lost error
	var wg sync.WaitGroup
	answer := func(err error) {
		defer wg.Done()
		mu.Lock()
		defer mu.Unlock()
		var no *simple.RefusedError
		switch {
		case err == nil:
		case errors.As(err, &no):
			refused++
			std.fail(0, "pub: %v", no)
		default:
			unanswered++
			lost = err
		}
	}
	failed := error(nil)
	for failed == nil {
		m, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			failed = fmt.Errorf("read standard input: %w", err)
			break
		}
		wg.Add(1)
		if err := c.Publish(ctx, m, answer); err != nil {
			answer(err)
			var no *simple.RefusedError
			if !errors.As(err, &no) {
				break
			}
		}
	}
	wg.Wait()
	switch {
	case failed != nil:
		return std.fail(exitFailed, "pub: %v", failed)
	case unanswered > 0:
		return std.fail(exitFailed, "pub: %d messages were not acknowledged: %v; publish them again", unanswered, lost)
	case refused > 0:
		return exitFailed
	}
	return exitOK
}

// once gives m and then io.EOF.
func once(m message.Message) func() (message.Message, error) {
	given := false
	return func() (message.Message, error) {
		if given {
			return m, io.EOF
		}
		given = true
		return m, nil
	}
}

// eachLine gives m with one line of in after the other as its payload, without its line feed.
func eachLine(in io.Reader, m message.Message) func() (message.Message, error) {
	s := bufio.NewScanner(in)
	s.Buffer(nil, maxPayload)
	return func() (message.Message, error) {
		if !s.Scan() {
			if err := s.Err(); err != nil {
				return m, err
			}
			return m, io.EOF
		}
		m.Payload = append([]byte{}, s.Bytes()...)
		return m, nil
	}
}

// count returns how many of the conditions hold.
func count(conditions ...bool) int {
	n := 0
	for _, c := range conditions {
		if c {
			n++
		}
	}
	return n
}
