package envelope

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// driver is what runs in Python: it reads inputs, each behind its length, and writes for each a line of JSON.
const driver = `
import base64, io, json, struct, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import decode_batch as d
while head := sys.stdin.buffer.read(4):
    stream = d.Stream(io.BytesIO(sys.stdin.buffer.read(struct.unpack(">I", head)[0])))
    out, why = [], ""
    try:
        while stream.skip_line_feeds():
            h, _, objects = d.next_envelope(stream)
            out.append(["%s %s %d" % (h["gw"], h.get("up", ""), h["n"])])
            out[-1] += [" ".join([m["seq"], m["topic"], str(m["qos"]), base64.b64encode(m["payload"]).decode(),
                str(m.get("expiry", 0)), str(len(m.get("user_properties", [])))]) for m in objects]
    except d.Malformed as e:
        why = "malformed: " + str(e)
    except d.NoZstd:
        why = "zstd"
    sys.stdout.write(json.dumps([why, out]) + "\n")
    sys.stdout.flush()
`

// python is the decoder of scripts/decode_batch.py.
type python struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func startPython(t *testing.T) *python {
	t.Helper()
	cmd := exec.Command("python3", "-c", driver, filepath.Join("..", "..", "scripts"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("python: %v: %s", err, errs.String())
		}
	})
	return &python{in, bufio.NewReader(out)}
}

// decode returns what is in the envelopes of data, and why it ended before their end.
func (p *python) decode(t *testing.T, data []byte) (batches [][]string, why string) {
	t.Helper()
	if _, err := p.in.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)); err != nil {
		t.Fatal(err)
	}
	line, err := p.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &[]any{&why, &batches})
	}
	if err != nil {
		t.Fatalf("python of %q: %q, %v", data, line, err)
	}
	return batches, why
}

// decodeAll is the same in Go.
func decodeAll(t *testing.T, data []byte) (batches [][]string, failed error) {
	t.Helper()
	r := NewReader(bytes.NewReader(data), 0)
	defer r.Close()
	for {
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			return batches, nil
		}
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("untyped: %v", err)
			}
			return batches, err
		}
		out := []string{fmt.Sprintf("%s %s %d", b.Gateway, b.Uplink, b.N)}
		for _, r := range b.Records {
			out = append(out, fmt.Sprintf("%s %s %d %s %d %d", r.Seq, r.Topic, r.QoS, base64.StdEncoding.EncodeToString(r.Payload), r.Expiry, len(r.Properties)))
		}
		batches = append(batches, out)
	}
}

// agree holds the two decoders together on one input and returns how many batches it has.
func agree(t *testing.T, p *python, name string, data []byte) (batches int, failed error) {
	t.Helper()
	ours, err := decodeAll(t, data)
	theirs, why := p.decode(t, data)
	if why == "zstd" {
		return len(ours), err
	}
	if fmt.Sprint(ours) != fmt.Sprint(theirs) || (err == nil) != (why == "") {
		t.Errorf("%s: %q\nin Go     %v, %v\nin Python %v, %s", name, data, ours, err, theirs, why)
	}
	return len(ours), err
}

const (
	goodHeader = `{"v":1,"gw":"g","n":1,"up":"u"}` + "\n"
	goodLine   = `{"seq":"e-normal-1","id":"i","source":"s","topic":"a","received":"2026-01-02T03:04:05Z","qos":1,"payload":"x","encoding":"utf8"}` + "\n"
)

// TestDecodersAgree: the decoder here and scripts/decode_batch.py take and refuse the same, and read the same.
func TestDecodersAgree(t *testing.T) {
	p := startPython(t)
	line := func(old, with string) string { return goodHeader + strings.Replace(goodLine, old, with, 1) }
	head := func(old, with string) string { return strings.Replace(goodHeader, old, with, 1) + goodLine }
	more := func(field string) string { return line(`"utf8"`, `"utf8",`+field) }
	packed := string(pack(t, Gzip, samples()...))
	flags := func(c byte) string { return packed[:3] + string(c) + packed[4:] }
	squeeze := func(text string) string {
		e, err := NewEncoder(Gzip)
		if err != nil {
			t.Fatal(err)
		}
		b, err := e.Append(nil, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, good := range map[string]string{
		"one":                            goodHeader + goodLine,
		"without the last line feed":     strings.TrimSuffix(goodHeader+goodLine, "\n"),
		"two with line feeds":            goodHeader + goodLine + "\n\r\n\n" + goodHeader + goodLine + "\n",
		"packed with line feeds":         packed + "\n" + packed + "\n\n" + goodHeader + goodLine + packed + "\r\n",
		"line feeds in front":            "\n\n" + packed,
		"blank lines":                    goodHeader + " \t\r\n\n" + goodLine,
		"blanks around a line":           goodHeader + " \t" + strings.TrimSpace(goodLine) + " \r\n",
		"blanks within":                  line(`:"a",`, " : \t\"a\" ,"),
		"packed, with blanks at its end": squeeze(goodHeader + goodLine + " \r\n\t"),
		"unknown fields":                 more(`"x":{"y":[1,-0.5e3,null,true,"\ud83d\ude00"]},"n":-1`),
		"unknown, large numbers":         more(`"x":[1e999,123456789012345678901234567890` + strings.Repeat("0", 5000) + `]`),
		"another spelling is unknown":    more(`"Topic":7,"QOS":"x","TOPIC":null`),
		"the last of two":                more(`"topic":"b"`),
		"the wrong first of two":         line(`{"seq"`, `{"topic":7,"seq"`),
		"escapes":                        line(`"payload":"x"`, `"payload":"\"\\\/\b\f\n\r\t\u0000\u00e4\ud83d\ude00"`),
		"escaped names":                  line(`"topic"`, `"t\u006fpic"`),
		"base64":                         strings.Replace(line(`"payload":"x"`, `"payload":"/+8="`), "utf8", "base64", 1),
		"base64 of nothing":              strings.Replace(line(`"payload":"x"`, `"payload":""`), "utf8", "base64", 1),
		"no uplink":                      head(`,"up":"u"`, ""),
		"a leap day":                     line("2026-01-02T03:04:05Z", "2024-02-29T23:59:59.123456789012+23:59"),
		"the year 0":                     line("2026-01-02T03:04:05Z", "0000-02-29T00:00:00Z"),
		"everything":                     string(pack(t, None, samples()...)),
		"thirty levels":                  more(`"x":` + strings.Repeat("[", 31) + strings.Repeat("]", 31)),
		"brackets in text":               line(`"payload":"x"`, `"payload":"`+strings.Repeat("[{", 40)+`\"`+strings.Repeat("[", 40)+`"`),
		"a line feed as a property":      more(`"user_properties":[["a","\n"],["",""]]`),
	} {
		if _, err := agree(t, p, name, []byte(good)); err != nil {
			t.Errorf("%s is refused: %v", name, err)
		}
	}
	for name, bad := range map[string]string{
		"a message":              "21.5",
		"a space in front":       " " + goodHeader + goodLine,
		"a mark in front":        "\ufeff" + goodHeader + goodLine,
		"a mark in a line":       goodHeader + "\ufeff" + goodLine,
		"something behind":       goodHeader + goodLine + "x",
		"behind packed":          packed + "x",
		"more lines":             goodHeader + goodLine + goodLine,
		"more lines, packed":     squeeze(goodHeader + goodLine + goodLine),
		"fewer lines":            head(`"n":1`, `"n":2`),
		"only a header":          goodHeader,
		"n of 0":                 head(`"n":1`, `"n":0`),
		"n of -1":                head(`"n":1`, `"n":-1`),
		"n of -0":                head(`"n":1`, `"n":-0`),
		"n of 1.0":               head(`"n":1`, `"n":1.0`),
		"n of 1e0":               head(`"n":1`, `"n":1e0`),
		"n of true":              head(`"n":1`, `"n":true`),
		"n as text":              head(`"n":1`, `"n":"1"`),
		"n of null":              head(`"n":1`, `"n":null`),
		"N":                      head(`"n":1`, `"N":1`),
		"no n":                   head(`,"n":1`, ``),
		"too many":               head(`"n":1`, `"n":70000`),
		"far too many":           head(`"n":1`, `"n":99999999999999999999999`),
		"v of 2":                 head(`"v":1`, `"v":2`),
		"v of 1.0":               head(`"v":1`, `"v":1.0`),
		"v of true":              head(`"v":1`, `"v":true`),
		"no gw":                  head(`"gw":"g",`, ``),
		"gw of nothing":          head(`"gw":"g"`, `"gw":""`),
		"gw of 7":                head(`"gw":"g"`, `"gw":7`),
		"GW":                     head(`"gw"`, `"GW"`),
		"up of 7":                head(`"up":"u"`, `"up":7`),
		"up of null":             head(`"up":"u"`, `"up":null`),
		"a header of an array":   squeeze("[]\n" + goodLine),
		"a header of null":       squeeze("null\n" + goodLine),
		"packed nothing":         squeeze(""),
		"packed blanks":          squeeze(" \n"),
		"a vertical tab":         squeeze(goodHeader + "\v" + goodLine),
		"a hard space":           squeeze(goodHeader + goodLine + "\u00a0"),
		"not JSON":               line(`"qos":1`, `"qos":01`),
		"a comma at the end":     more(``),
		"single quotes":          line(`"a"`, `'a'`),
		"NaN":                    more(`"x":NaN`),
		"-Infinity":              more(`"x":[-Infinity]`),
		"a control character":    line(`"x"`, "\"\x01\""),
		"no UTF-8":               line(`"x"`, "\"\xff\""),
		"no UTF-8, unknown":      more("\"x\":\"\xc0\x80\""),
		"a surrogate in UTF-8":   line(`"x"`, "\"\xed\xa0\x80\""),
		"half a pair":            line(`"payload":"x"`, `"payload":"\ud83d"`),
		"the other half":         line(`"payload":"x"`, `"payload":"\ude00x"`),
		"a pair apart":           line(`"payload":"x"`, `"payload":"\ud83d \ude00"`),
		"a pair turned round":    line(`"payload":"x"`, `"payload":"\ude00\ud83d"`),
		"two high halves":        line(`"payload":"x"`, `"payload":"\ud83d\ud83d\ude00"`),
		"half a pair, unknown":   more(`"x":"\uDBFF"`),
		"half a pair, not read":  line(`{"seq"`, `{"topic":"\ud83d","seq"`),
		"forty levels":           more(`"x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40)),
		"many levels":            more(`"x":` + strings.Repeat(`{"y":`, 20000) + "1" + strings.Repeat("}", 20000)),
		"a line of an array":     goodHeader + "[]\n",
		"a line of null":         goodHeader + "null\n",
		"an empty object":        goodHeader + "{}\n",
		"Topic":                  line(`"topic"`, `"Topic"`),
		"no topic":               line(`"topic":"a",`, ``),
		"no seq":                 line(`"seq":"e-normal-1",`, ``),
		"no payload":             line(`"payload":"x",`, ``),
		"no received":            line(`"received":"2026-01-02T03:04:05Z",`, ``),
		"no encoding":            line(`,"encoding":"utf8"`, ``),
		"topic of null":          line(`"topic":"a"`, `"topic":null`),
		"topic of 7":             line(`"topic":"a"`, `"topic":7`),
		"payload of an object":   line(`"payload":"x"`, `"payload":{}`),
		"qos of 3":               line(`"qos":1`, `"qos":3`),
		"qos of -0":              line(`"qos":1`, `"qos":-0`),
		"qos of 1.0":             line(`"qos":1`, `"qos":1.0`),
		"qos of false":           line(`"qos":1`, `"qos":false`),
		"an odd encoding":        line(`"utf8"`, `"UTF8"`),
		"retain of 1":            more(`"retain":1`),
		"retain of null":         more(`"retain":null`),
		"payload_utf8 as text":   more(`"payload_utf8":"true"`),
		"expiry of -1":           more(`"expiry":-1`),
		"expiry too large":       more(`"expiry":4294967296`),
		"expiry as text":         more(`"expiry":"7"`),
		"content_type of 7":      more(`"content_type":7`),
		"properties of null":     more(`"user_properties":null`),
		"properties of objects":  more(`"user_properties":[{}]`),
		"properties of one":      more(`"user_properties":[["a"]]`),
		"properties of three":    more(`"user_properties":[["a","b","c"]]`),
		"properties of numbers":  more(`"user_properties":[["a",1]]`),
		"properties with null":   more(`"user_properties":[["a",null]]`),
		"a null of properties":   more(`"user_properties":[null]`),
		"base64 with a hole":     strings.Replace(line(`"payload":"x"`, `"payload":"QU\nJD"`), "utf8", "base64", 1),
		"base64 without an end":  strings.Replace(line(`"payload":"x"`, `"payload":"QQ"`), "utf8", "base64", 1),
		"base64 with more":       strings.Replace(line(`"payload":"x"`, `"payload":"QQ==QQ=="`), "utf8", "base64", 1),
		"base64 with bits left":  strings.Replace(line(`"payload":"x"`, `"payload":"QR=="`), "utf8", "base64", 1),
		"base64 of the web":      strings.Replace(line(`"payload":"x"`, `"payload":"-_8="`), "utf8", "base64", 1),
		"base64 of letters":      strings.Replace(line(`"payload":"x"`, `"payload":"äöüß"`), "utf8", "base64", 1),
		"odd correlation data":   more(`"correlation_data":"!"`),
		"a day too many":         line("2026-01-02", "2026-02-29"),
		"month 13":               line("2026-01-02", "2026-13-02"),
		"day 0":                  line("2026-01-02", "2026-01-00"),
		"hour 24":                line("03:04:05", "24:00:00"),
		"a leap second":          line("03:04:05", "23:59:60"),
		"no zone":                line("05Z", "05"),
		"a small z":              line("05Z", "05z"),
		"a space for the T":      line("02T03", "02 03"),
		"a comma":                line("05Z", "05,5Z"),
		"a point alone":          line("05Z", "05.Z"),
		"a zone of 24 h":         line("05Z", "05+24:00"),
		"a zone of 60 min":       line("05Z", "05+00:60"),
		"a zone without colon":   line("05Z", "05+0100"),
		"other digits":           line("2026", "٢٠٢٦"),
		"a short hour":           line("T03", "T3"),
		"source_time of 7":       more(`"source_time":7`),
		"gzip cut":               packed[:len(packed)-5],
		"gzip cut in its header": packed[:7],
		"gzip of two bytes":      packed[:2],
		"gzip with a bit wrong":  packed[:len(packed)-6] + string(packed[len(packed)-6]^1) + packed[len(packed)-5:],
		"gzip of another kind":   packed[:2] + "\x07" + packed[3:],
		"reserved flags":         flags(0x20),
		"a header checksum":      flags(0x02),
		"a name without end":     flags(0x08),
		"plain cut":              strings.TrimSuffix(goodHeader+goodLine, "}\n"),
		"a bomb":                 squeeze(goodHeader + strings.Repeat(" ", DefaultMaxBytes)),
	} {
		if _, err := agree(t, p, name, []byte(bad)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}

	// Changed at random, most are refused, some not; all in the same way.
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	texts := []string{goodHeader + goodLine, string(pack(t, None, samples()...)), goodHeader + goodLine + "\n" + goodHeader + goodLine}
	pieces := []string{
		`"`, `\`, `{`, `}`, `[`, `]`, `,`, `:`, " ", "\n", "\r", "0", "1", "-", ".", "e9", `null`, `true`, `false`, `\ud800`, `\udc00`, `\u0000`, "\xff", "ü",
		`"seq"`, `"n":2,`, `"qos":`, `"base64"`, `"x":[],`, `""`, "NaN", "==", "\x00", "Z", `\"`,
	}
	taken := 0
	for i := 0; i < 1500 && !t.Failed(); i++ {
		b := []byte(texts[rnd.IntN(len(texts))])
		for range 1 + rnd.IntN(3) {
			at := rnd.IntN(len(b))
			switch rnd.IntN(5) {
			case 0:
				b = append(b[:at], b[min(at+1+rnd.IntN(3), len(b)):]...)
			case 1:
				b[at] ^= 1 << rnd.IntN(8)
			case 2: // another case
				b[at] ^= 0x20
			default:
				b = append(b[:at], append([]byte(pieces[rnd.IntN(len(pieces))]), b[at:]...)...)
			}
			if len(b) == 0 {
				break
			}
		}
		if rnd.IntN(4) == 0 {
			b = []byte(squeeze(string(b)))
			if rnd.IntN(4) == 0 {
				b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
			}
		}
		if _, err := agree(t, p, "at random", b); err == nil {
			taken++
		}
	}
	t.Logf("%d of 1500 taken", taken)
}
