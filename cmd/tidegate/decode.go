package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"tidegate/message/envelope"
)

// cmdDecode writes the messages of batch envelopes as JSON lines, each batch as soon as it is there.
func cmdDecode(args []string, std stdio) int {
	fs := std.flagSet("decode", "[--header] [FILE...]")
	header := fs.Bool("header", false, "print the first line of each batch as well")
	if code, done := std.parse(fs, args); done {
		return code
	}
	names := fs.Args()
	if len(names) == 0 {
		names = []string{"-"}
	}
	w := bufio.NewWriter(std.out)
	code := exitOK
	for _, name := range names {
		if err := decodeFile(w, std, name, *header); err != nil {
			// What was good in front of it goes out first, and the other files are read all the same.
			_ = w.Flush()
			code = std.fail(exitFailed, "decode: %v", err)
		}
	}
	if err := w.Flush(); err != nil {
		return std.fail(exitFailed, "decode: %v", err)
	}
	return code
}

// decodeFile writes what is in one file; "-" is standard input.
func decodeFile(w *bufio.Writer, std stdio, name string, header bool) error {
	r, called := std.in, "standard input"
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		r, called = f, name
	}
	e := envelope.NewReader(r, 0)
	defer e.Close()
	for n := 0; ; n++ {
		b, err := e.Next()
		switch {
		case errors.Is(err, io.EOF) && n == 0:
			return fmt.Errorf("%s is empty: want the payload of a batch", called)
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, envelope.ErrFormat):
			return fmt.Errorf("%s at byte %d: %w; want the payload of a batch, as a broker hands it out (docs/envelope.md)", called, e.Offset(), err)
		case err != nil:
			return fmt.Errorf("%s at byte %d: %w", called, e.Offset(), err)
		}
		if err := printBatch(w, b, header); err != nil {
			return err
		}
	}
}

func printBatch(w *bufio.Writer, b *envelope.Batch, header bool) error {
	var text []byte
	if header {
		text = envelope.AppendHeader(text, b.Gateway, b.Uplink, b.N)
	}
	for i := range b.Records {
		text = b.Records[i].Append(text)
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	return w.Flush() // the next one may take its time
}
