package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidegate/message"
	"tidegate/message/envelope"
)

// batchOf makes an envelope of n messages, and the lines it has.
func batchOf(t *testing.T, c envelope.Compression, n int) (payload []byte, lines string) {
	t.Helper()
	e, err := envelope.NewEncoder(c)
	if err != nil {
		t.Fatal(err)
	}
	text := envelope.AppendHeader(nil, "gw", "cloud", n)
	from := len(text)
	for i := range n {
		m := message.Message{
			ID: message.NewID(), Topic: "plant/ü", Payload: fmt.Appendf(nil, "line %d\n\"✓\"", i), QoS: 1, Received: time.Now(),
			CorrelationData: []byte{}, Properties: []message.Property{{Key: "<", Value: "\x01"}}, Source: message.Source{Client: "press7"},
		}
		if i%3 == 1 {
			m.Payload = []byte{0xff, byte(i)}
		}
		r := envelope.Of(&m, fmt.Sprintf("e-normal-%d", i+1))
		r.Expiry = uint32(i)
		text = r.Append(text)
	}
	payload, err = e.Append(nil, text)
	if err != nil {
		t.Fatal(err)
	}
	return payload, string(text[from:])
}

// script runs scripts/decode_batch.py.
func script(t *testing.T, in []byte, args ...string) result {
	t.Helper()
	cmd := exec.Command("python3", append([]string{filepath.Join("..", "..", "scripts", "decode_batch.py")}, args...)...)
	cmd.Stdin = bytes.NewReader(in)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return result{code: cmd.ProcessState.ExitCode(), out: out.String(), err: errs.String()}
}

// The messages of every kind of envelope come out as they went in, from standard input and from files, one envelope or
// many behind each other; decode and the script print the same bytes.
func TestDecode(t *testing.T) {
	withZstd := exec.Command("python3", "-c", "from compression import zstd").Run() == nil
	dir := t.TempDir()
	var file []byte
	all := ""
	for i, c := range []envelope.Compression{envelope.None, envelope.Gzip, envelope.None, envelope.Gzip, envelope.Gzip} {
		b, lines := batchOf(t, c, i+1)
		tidegate(t, string(b), "decode").want(t, exitOK, lines, "")
		if r := script(t, b); r.code != 0 || r.out != lines {
			t.Errorf("decode_batch.py of %s: %+v\nwant %s", c, r, lines)
		}
		file, all = append(file, b...), all+lines
	}
	name := filepath.Join(dir, "some.bin")
	if err := os.WriteFile(name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := tidegate(t, "", "decode", name, name); r.code != exitOK || r.out != all+all {
		t.Errorf("decode of a file twice: %+v", r)
	}
	if r := script(t, nil, name, name); r.code != 0 || r.out != all+all {
		t.Errorf("decode_batch.py of a file twice: %+v", r)
	}

	b, lines := batchOf(t, envelope.Zstd, 100)
	if r := tidegate(t, string(append(file, b...)), "decode", "--header", "-"); r.code != exitOK || !strings.HasSuffix(r.out, lines) ||
		strings.Count(r.out, `{"v":1,"gw":"gw","n":`) != 6 {
		t.Errorf("decode --header: %+v", r)
	}
	switch r := script(t, b); {
	case withZstd && (r.code != 0 || r.out != lines):
		t.Errorf("decode_batch.py of zstd: %+v", r)
	case !withZstd && (r.code != 69 || r.out != "" || !strings.Contains(r.err, `compress = "gzip"`) || !strings.Contains(r.err, "3.14")):
		t.Errorf("decode_batch.py of zstd without zstd: %+v", r)
	}
}

// Each envelope is printed when it is there and not at the end of the input, packed in any way, with a line feed behind it as
// mosquitto_sub without -N writes it, or nothing.
func TestDecodeAsItComes(t *testing.T) {
	cmd := exec.Command("python3", filepath.Join("..", "..", "scripts", "decode_batch.py"))
	var printed syncBuffer
	cmd.Stdout, cmd.Stderr = &printed, &printed
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	in, out := io.Pipe()
	b := start(t, in, "decode")
	want := ""
	for i, between := range []string{"\n", "", "\r\n", "\n\n", "", "\n"} {
		for _, c := range []envelope.Compression{envelope.None, envelope.Gzip, envelope.Zstd} {
			payload, lines := batchOf(t, c, i+1)
			payload = append(payload, between...)
			want += lines
			if _, err := out.Write(payload); err != nil {
				t.Fatal(err)
			}
			eventually(t, "decode to print a batch of "+c.String(), func() bool { return b.out.String() == want })
			if c == envelope.Zstd { // which this Python may not have
				continue
			}
			if _, err := stdin.Write(payload); err != nil {
				t.Fatal(err)
			}
			eventually(t, "decode_batch.py to print a batch of "+c.String(), func() bool { return strings.HasSuffix(printed.String(), lines) })
		}
	}
	_ = out.Close()
	b.wait(t).want(t, exitOK, "", "")
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("decode_batch.py: %v: %s", err, printed.String())
	}

	// A stream that breaks is told as it is.
	broken, _ := batchOf(t, envelope.Gzip, 1)
	in, out = io.Pipe()
	b = start(t, in, "decode")
	if _, err := out.Write(broken[:20]); err != nil {
		t.Fatal(err)
	}
	_ = out.CloseWithError(errors.New("the cable broke"))
	b.wait(t).want(t, exitFailed, "", "standard input at byte 0: the cable broke")
}

// What is no envelope ends with 1, says where and what it wants, and does not hide what is good.
func TestDecodeRefuses(t *testing.T) {
	good, lines := batchOf(t, envelope.Gzip, 2)
	plain, _ := batchOf(t, envelope.None, 3)
	name := filepath.Join(t.TempDir(), "good.bin")
	if err := os.WriteFile(name, good, 0o600); err != nil {
		t.Fatal(err)
	}
	tidegate(t, "", "decode").want(t, exitFailed, "", "standard input is empty")
	tidegate(t, "21.5", "decode").want(t, exitFailed, "", "want the payload of a batch")
	tidegate(t, "21.5", "decode", "-", name).want(t, exitFailed, lines, "standard input at byte 0")
	tidegate(t, string(good)+"x", "decode").want(t, exitFailed, lines, fmt.Sprintf("at byte %d", len(good)))
	tidegate(t, string(good[:len(good)-3]), "decode").want(t, exitFailed, "", "gzip")
	tidegate(t, string(plain[:len(plain)-3]), "decode").want(t, exitFailed, "", "message 3 of 3")
	tidegate(t, `{"v":2,"gw":"g","n":1}`+"\n{}\n", "decode").want(t, exitFailed, "", "version 2")
	tidegate(t, "", "decode", name+".not").want(t, exitFailed, "", "no such file")
	tidegate(t, "", "decode", "--yaml").want(t, exitUsage, "", "not defined")

	for what, in := range map[string]string{
		"a message": "21.5", "more behind": string(good) + "x", "gzip cut": string(good[:len(good)-3]), "plain cut": string(plain[:len(plain)-3]),
		"a later version": `{"v":2,"gw":"g","n":1}` + "\n{}\n", "a value of OPC UA": `{"v":1,"t":"x"}`,
	} {
		if r := script(t, []byte(in)); r.code != 1 || !strings.HasPrefix(r.err, "decode_batch: -: ") || strings.Contains(r.err, "Traceback") {
			t.Errorf("decode_batch.py of %s: %+v", what, r)
		}
	}
	if r := script(t, nil, "--yaml"); r.code != 2 {
		t.Errorf("decode_batch.py --yaml: %+v", r)
	}
}
