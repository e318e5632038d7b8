package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"tidegate/message/envelope"
)

// maxDecodeInput bounds one file of envelopes: it is read as a whole, because where an envelope ends is known only from
// what is in it.
const maxDecodeInput = 1 << 30

// cmdDecode writes the messages of batch envelopes as JSON lines.
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
	data, err := io.ReadAll(io.LimitReader(r, maxDecodeInput+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", called, err)
	case len(data) > maxDecodeInput:
		return fmt.Errorf("%s has more than %d bytes; split it", called, maxDecodeInput)
	case len(data) == 0:
		return fmt.Errorf("%s is empty: want the payload of a batch", called)
	}
	d := envelope.NewDecoder(0)
	defer d.Close()
	for at := 0; at < len(data); {
		b, rest, err := d.Next(data[at:])
		if err != nil {
			if errors.Is(err, envelope.ErrFormat) {
				err = fmt.Errorf("%w; want the payload of a batch, as a broker hands it out (docs/envelope.md)", err)
			}
			return fmt.Errorf("%s at byte %d: %w", called, at, err)
		}
		at = len(data) - len(rest)
		if err := printBatch(w, b, header); err != nil {
			return err
		}
	}
	return nil
}

func printBatch(w io.Writer, b *envelope.Batch, header bool) error {
	var text []byte
	if header {
		text = envelope.AppendHeader(text, b.Gateway, b.Uplink, b.N)
	}
	for i := range b.Records {
		text = b.Records[i].Append(text)
	}
	_, err := w.Write(text)
	return err
}
