// Package envelope reads and writes batches: many messages in the payload of one PUBLISH.
//
// A batch is text, one JSON object a line, compressed or not. The first line is the Header; every other line is a Record,
// which is also what `tidegate buffer export` and `tidegate decode` print. docs/envelope.md describes the format.
//
// A program on the cloud side needs Open, a Decoder where batches come in numbers, or a Reader where they come in a stream:
//
//	batch, err := envelope.Open(payload)
//	for _, r := range batch.Records { … r.Topic, r.Payload … }
//
// The gateway's side is AppendHeader, Record.Append and an Encoder. The package knows messages and nothing else of the gateway.
//
// Limits: a decoder holds a whole batch in memory. How much an envelope may unpack to is bounded, by DefaultMaxBytes unless
// the Decoder says otherwise, so that a few kilobytes cannot fill the memory. Lines that a later version adds fields to are
// read; fields that are not known are left out. What is known is read strictly (fields.go).
package envelope

import (
	"errors"
	"fmt"
	"strconv"
)

// Version is that of the format that this package writes.
const Version = 1

// contentType is the MQTT 5 content type of a batch without compression.
const contentType = "application/vnd.tidegate.batch+jsonl"

// Compression is how the text of a batch is packed.
type Compression uint8

// The ways to pack a batch.
const (
	None Compression = iota
	Gzip
	Zstd
)

// ParseCompression reads the name of a compression: zstd, gzip or none.
func ParseCompression(name string) (Compression, error) {
	for _, c := range []Compression{None, Gzip, Zstd} {
		if c.String() == name {
			return c, nil
		}
	}
	return None, fmt.Errorf("envelope: compression %q: want zstd, gzip or none", name)
}

// String is the name as the configuration writes it.
func (c Compression) String() string {
	switch c {
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return "none"
}

// ContentType is the MQTT 5 content type of a batch that is packed like that. Over MQTT 3.1.1 there is none; a reader tells
// the compressions apart by the first bytes of the payload.
func (c Compression) ContentType() string {
	if c == None {
		return contentType
	}
	return contentType + "+" + c.String()
}

// IsContentType reports whether a PUBLISH with this content type carries a batch.
func IsContentType(s string) bool {
	return s == None.ContentType() || s == Gzip.ContentType() || s == Zstd.ContentType()
}

// Header is the first line of a batch.
type Header struct {
	V       int    `json:"v"`
	Gateway string `json:"gw"`
	N       int    `json:"n"` // messages in the batch
	// Uplink is the one of the gateway that sent the batch. With Gateway it says whose sequences the records have.
	Uplink string `json:"up,omitempty"`
}

// AppendHeader appends the first line of a batch of n messages to b.
func AppendHeader(b []byte, gateway, uplink string, n int) []byte {
	b = append(b, `{"v":`...)
	b = strconv.AppendInt(b, Version, 10)
	b = append(b, `,"gw":`...)
	b = appendString(b, gateway)
	b = append(b, `,"n":`...)
	b = strconv.AppendInt(b, int64(n), 10)
	if uplink != "" {
		b = append(b, `,"up":`...)
		b = appendString(b, uplink)
	}
	return append(b, "}\n"...)
}

// Batch is an envelope that was taken apart.
type Batch struct {
	Header
	Compression Compression
	Records     []Record
}

// Errors that tell why something is no batch. What is wrong stands behind them.
var (
	// ErrFormat: the bytes are no envelope, or a damaged one.
	ErrFormat = errors.New("no valid batch envelope")
	// ErrVersion: an envelope of a version that this package does not know.
	ErrVersion = errors.New("batch envelope of an unknown version")
	// ErrTooLarge: it unpacks to more than the decoder allows.
	ErrTooLarge = errors.New("batch envelope unpacks to too much")
)
