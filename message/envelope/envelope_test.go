package envelope

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"tidegate/message"
)

// samples are records with everything that a line can hold.
func samples() []Record {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678900000, time.UTC)
	id := message.NewID().String()
	return []Record{
		{Seq: "t8x4b2q0z1-normal-41", ID: id, Source: "press7", Topic: "plant/press7/t", Received: at, QoS: 1, Payload: []byte("21.5")},
		{Seq: "e-normal-42", ID: id, Topic: "a", Received: at, QoS: 2, Payload: []byte{}, Retain: true},
		{Seq: "e-normal-43", ID: id, Topic: "a/ü/✓", Received: at, QoS: 1, Payload: []byte{0, 0xff, 0xfe}, CorrelationData: []byte{}},
		{
			Seq: "e-urgent-1", ID: id, Source: "x\"\\\n\r\t\x01\u2028", Topic: "b", Received: at, QoS: 1, Payload: []byte("{\"v\":1,\n\"q\":\"\\\"\"}"),
			ContentType: "application/json", ResponseTopic: "r/1", CorrelationData: []byte{1, 2, 0xff}, PayloadUTF8: true,
			Properties: []message.Property{{Key: "k", Value: "v"}, {Key: "k", Value: ""}, {Key: "", Value: "<&>"}},
			SourceTime: at.Add(-time.Second), Expiry: 3600,
		},
		{Seq: "e-dead-9", ID: id, Topic: "c", Received: at, QoS: 1, Payload: []byte("x"), Reason: "refused 0x99", Uplink: "cloud", Route: "all"},
	}
}

// pack makes an envelope.
func pack(t testing.TB, c Compression, records ...Record) []byte {
	t.Helper()
	e, err := NewEncoder(c)
	if err != nil {
		t.Fatal(err)
	}
	text := AppendHeader(nil, "gw", "cloud", len(records))
	for i := range records {
		text = records[i].Append(text)
	}
	b, err := e.Append(nil, text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// line is the JSON of a Record, as a program with a common decoder reads it.
type line struct {
	Seq      string    `json:"seq"`
	ID       string    `json:"id"`
	Source   string    `json:"source"`
	Topic    string    `json:"topic"`
	Received time.Time `json:"received"`
	QoS      uint8     `json:"qos"`
	Retain   bool      `json:"retain,omitempty"`
	Payload  string    `json:"payload"`
	Encoding string    `json:"encoding"` // utf8 or base64

	ContentType     string      `json:"content_type,omitempty"`
	ResponseTopic   string      `json:"response_topic,omitempty"`
	CorrelationData *string     `json:"correlation_data,omitempty"` // base64
	PayloadUTF8     bool        `json:"payload_utf8,omitempty"`
	Properties      [][2]string `json:"user_properties,omitempty"` // order and repetition are kept
	SourceTime      *time.Time  `json:"source_time,omitempty"`
	Reason          string      `json:"reason,omitempty"`
	Uplink          string      `json:"uplink,omitempty"`
	Route           string      `json:"route,omitempty"`
	Expiry          uint32      `json:"expiry,omitempty"`
}

// TestLineIsTheJSONOfItsFields holds what Append writes and what UnmarshalJSON reads together, field by field.
func TestLineIsTheJSONOfItsFields(t *testing.T) {
	for _, want := range samples() {
		b := want.Append(nil)
		if n := bytes.Count(b, []byte("\n")); n != 1 || b[len(b)-1] != '\n' {
			t.Errorf("%d line feeds in %q", n, b)
		}
		var l line
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		var got Record
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("read back\n%+v, want\n%+v", got, want)
		}
		again, err := json.Marshal(got)
		if err == nil {
			err = json.Unmarshal(again, &got)
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("MarshalJSON: %s, %v, want %s", again, err, b)
		}
	}
	// Every field of the JSON is written by one of the samples.
	all, seen := reflect.TypeFor[line](), ""
	for _, r := range samples() {
		seen += string(r.Append(nil))
	}
	for i := range all.NumField() {
		name, _, _ := strings.Cut(all.Field(i).Tag.Get("json"), ",")
		if !strings.Contains(seen, `"`+name+`":`) {
			t.Errorf("Append never writes %q", name)
		}
	}
}

// TestGoldenLine: programs of others read these bytes.
func TestGoldenLine(t *testing.T) {
	var id message.ID
	for i := range id {
		id[i] = byte(16 * i)
	}
	m := message.Message{
		ID: id, Topic: "plant/press7/t", Payload: []byte(`{"v":21.5}`), QoS: 1, Source: message.Source{User: "u", Client: "press7"},
		Received: time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600)),
	}
	r := Of(&m, "e-normal-1")
	const want = `{"seq":"e-normal-1","id":"00820c20a1g7104gk2oc1k70u0","source":"press7","topic":"plant/press7/t",` +
		`"received":"2026-01-02T02:04:05Z","qos":1,"payload":"{\"v\":21.5}","encoding":"utf8"}` + "\n"
	if got := string(r.Append(nil)); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	if got, want := string(AppendHeader(nil, "gw", "cloud", 3)), `{"v":1,"gw":"gw","n":3,"up":"cloud"}`+"\n"; got != want {
		t.Errorf("header %s, want %s", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	d := NewDecoder(0)
	defer d.Close()
	for _, c := range []Compression{None, Gzip, Zstd} {
		for n := 1; n <= len(samples()); n++ {
			want := samples()[:n]
			b, err := d.Decode(pack(t, c, want...))
			if err != nil {
				t.Fatalf("%s, %d messages: %v", c, n, err)
			}
			if b.Gateway != "gw" || b.Uplink != "cloud" || b.N != n || b.Compression != c {
				t.Errorf("%s: header %+v", c, b)
			}
			for i := range want {
				if want[i].ID = b.Records[i].ID; !reflect.DeepEqual(b.Records[i], want[i]) {
					t.Errorf("%s: message %d: %+v, want %+v", c, i, b.Records[i], want[i])
				}
			}
		}
	}
}

// TestEncoderIsReused: what one batch left behind is not in the next.
func TestEncoderIsReused(t *testing.T) {
	for _, c := range []Compression{None, Gzip, Zstd} {
		e, err := NewEncoder(c)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			r := Record{Seq: fmt.Sprint(i), Topic: "a", Payload: bytes.Repeat([]byte("x"), i*i)}
			text := r.Append(AppendHeader(nil, "gw", "", 1))
			b, err := e.Append([]byte("front"), text)
			if err != nil || !bytes.HasPrefix(b, []byte("front")) {
				t.Fatalf("%s: %v", c, err)
			}
			got, err := Open(b[len("front"):])
			if err != nil || got.Records[0].Seq != r.Seq || !bytes.Equal(got.Records[0].Payload, r.Payload) {
				t.Fatalf("%s: batch %d: %+v, %v", c, i, got, err)
			}
		}
	}
}

// TestConcatenated: envelopes behind each other in one file, packed in every way, are taken apart one by one.
func TestConcatenated(t *testing.T) {
	var file []byte
	var want []Compression
	for i, c := range []Compression{None, Zstd, None, None, Gzip, Gzip, Zstd, Zstd, None, Gzip} {
		file = append(file, pack(t, c, samples()[i%4])...)
		want = append(want, c)
		if c == None && i%2 == 0 {
			file = append(file, '\n') // a payload that was appended as a line
		}
	}
	d := NewDecoder(0)
	defer d.Close()
	var got []Compression
	for len(file) > 0 {
		b, rest, err := d.Next(file)
		if err != nil {
			t.Fatalf("behind %d batches: %v", len(got), err)
		}
		got = append(got, b.Compression)
		file = rest
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestRefused: what is no envelope, or not whole, is told.
func TestRefused(t *testing.T) {
	whole := pack(t, Zstd, samples()...)
	packed := pack(t, Gzip, samples()...)
	plain := pack(t, None, samples()...)
	swapped := bytes.Clone(whole)
	swapped[len(swapped)-1] ^= 1 // the checksum
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":               {nil, ErrFormat},
		"a message":             {[]byte("21.5"), ErrFormat},
		"a value of OPC UA":     {[]byte(`{"v":21.5,"t":"2026-01-02T03:04:05.678Z","q":"Good"}`), ErrFormat},
		"a value of 1":          {[]byte(`{"v":1,"t":"2026-01-02T03:04:05.678Z","q":"Good"}`), ErrFormat},
		"a later version":       {[]byte(`{"v":2,"gw":"g","n":1}` + "\n{}\n"), ErrVersion},
		"no messages":           {[]byte(`{"v":1,"gw":"g","n":0}` + "\n"), ErrFormat},
		"more than it says":     {append(bytes.Clone(plain), "{}\n"...), ErrFormat},
		"fewer than it says":    {bytes.Replace(plain, []byte(`"n":5`), []byte(`"n":6`), 1), ErrFormat},
		"zstd cut":              {whole[:len(whole)-9], ErrFormat},
		"zstd with more behind": {append(bytes.Clone(whole), 'x'), ErrFormat},
		"zstd with a bit wrong": {swapped, ErrFormat},
		"gzip cut":              {packed[:len(packed)-5], ErrFormat},
		"plain cut":             {plain[:len(plain)-5], ErrFormat},
		"an odd encoding":       {[]byte(`{"v":1,"gw":"g","n":1}` + "\n" + `{"payload":"x","encoding":"rot13"}` + "\n"), ErrFormat},
		"bad base64":            {[]byte(`{"v":1,"gw":"g","n":1}` + "\n" + `{"payload":"!","encoding":"base64"}` + "\n"), ErrFormat},
	} {
		if b, err := Open(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v; want %v", name, b, err, c.want)
		}
	}
}

// TestLargeMessages: what a gateway can have in its buffer, every decoder takes, whatever is in it: a payload grows to the double at
// most, and making the line costs little more memory than the line.
func TestLargeMessages(t *testing.T) {
	const (
		largest = 16 << 20 // a record in the buffer
		most    = 1 << 20  // what is tried
	)
	if n, _ := quotedLen(bytes.Repeat([]byte{'"'}, largest)); n+1<<20 > DefaultMaxBytes {
		t.Errorf("the largest message may become %d bytes, and a decoder takes %d", n, DefaultMaxBytes)
	}
	d := NewDecoder(0)
	defer d.Close()
	for name, c := range map[string]struct {
		unit   string
		base64 bool
		grows  float64
		how    Compression
	}{
		"zeros":              {"\x00", true, 1.34, Zstd},
		"control characters": {"\x01\x7f\x02", true, 1.34, None},
		"no text":            {"\xff\x00\x01", true, 1.34, Gzip},
		"quotation marks":    {`"`, false, 2, Zstd},
		"JSON":               {`{"v":1,"q":"Good"}` + "\n", false, 1.6, None},
		"text":               {"déjà vu 21.5 °C", false, 1, Gzip},
	} {
		payload := bytes.Repeat([]byte(c.unit), most/len(c.unit))
		r := Record{Seq: "e-normal-1", Topic: "a", Payload: payload}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		line := r.Append(nil)
		runtime.ReadMemStats(&after)
		if got := float64(len(line)) / float64(len(payload)); got > c.grows+0.01 {
			t.Errorf("%s: grows to %.2f", name, got)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > uint64(len(line))*5/2 { // growing by and by would take more
			t.Errorf("%s: %d bytes allocated for a line of %d", name, used, len(line))
		}
		if bytes.HasSuffix(line, []byte(`"encoding":"base64"}`+"\n")) != c.base64 {
			t.Errorf("%s: base64 should be %t", name, c.base64)
		}
		if b, err := d.Decode(pack(t, c.how, r)); err != nil || !bytes.Equal(b.Records[0].Payload, payload) {
			t.Errorf("%s, %s: %v", name, c.how, err)
		}
	}
}

// TestWhatIsText: a payload stands as text where that is legible and not twice as long.
func TestWhatIsText(t *testing.T) {
	for payload, base64 := range map[string]bool{
		"": false, "\x00": true, "a\x00": true, "abcd\x00": false, "abcde\x00\x00": true, "\n\t\r\"\\": false, "21.5\n": false, "\x1b[31mred\x1b[0m": false, "\xff": true, "é": false, "a\xed\xa0\x80": true,
	} {
		r := Record{Payload: []byte(payload)}
		if got := bytes.Contains(r.Append(nil), []byte(`"encoding":"base64"`)); got != base64 {
			t.Errorf("%q as base64: %t", payload, got)
		}
	}
}

// TestBomb: a few bytes cannot fill the memory.
func TestBomb(t *testing.T) {
	const limit = 1 << 20
	d := NewDecoder(limit)
	defer d.Close()
	big := Record{Seq: "e-normal-1", Topic: "a", Payload: bytes.Repeat([]byte("a"), 16<<20)}
	for _, c := range []Compression{Gzip, Zstd, None} {
		b := pack(t, c, big)
		if c != None && len(b) > 200<<10 {
			t.Fatalf("%s: the bomb has %d bytes", c, len(b))
		}
		if _, err := d.Decode(b); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", c, err)
		}
		if got := testing.AllocsPerRun(1, func() { _, _ = d.Decode(b) }); got > 1000 {
			t.Errorf("%s: %v allocations", c, got)
		}
	}
	many := append([]byte(`{"v":1,"gw":"g","n":1000000}`+"\n"), bytes.Repeat([]byte(`{"encoding":"utf8"}`+"\n"), 50000)...)
	if _, err := d.Decode(many); !errors.Is(err, ErrTooLarge) {
		t.Errorf("many small lines: %v", err)
	}
	// What is within the limit passes.
	small := Record{Seq: "e-normal-1", Topic: "a", Payload: bytes.Repeat([]byte("a"), limit/2)}
	for _, c := range []Compression{Gzip, Zstd, None} {
		if _, err := d.Decode(pack(t, c, small)); err != nil {
			t.Errorf("%s: half the limit: %v", c, err)
		}
	}
}

func TestContentTypes(t *testing.T) {
	for c, want := range map[Compression]string{
		None: "application/vnd.tidegate.batch+jsonl", Gzip: "application/vnd.tidegate.batch+jsonl+gzip", Zstd: "application/vnd.tidegate.batch+jsonl+zstd",
	} {
		if c.ContentType() != want || !IsContentType(want) {
			t.Errorf("%s: %s", c, c.ContentType())
		}
		if got, err := ParseCompression(c.String()); err != nil || got != c {
			t.Errorf("%s: %v, %v", c, got, err)
		}
	}
	if IsContentType("application/json") || IsContentType("") {
		t.Error("others are batches")
	}
	if _, err := ParseCompression("lz4"); err == nil {
		t.Error("lz4 is known")
	}
}

// FuzzDecode: no bytes make the decoder fail in any other way than by an error, or unpack to more than it may; what it reads
// can be written and read again.
func FuzzDecode(f *testing.F) {
	for _, c := range []Compression{None, Gzip, Zstd} {
		f.Add(pack(f, c, samples()...))
		f.Add(append(pack(f, c, samples()[0]), pack(f, Zstd, samples()[1])...))
	}
	f.Add([]byte(`{"v":1,"gw":"g","n":1}` + "\n" + `{"encoding":"utf8"}`))
	d := NewDecoder(64 << 10)
	f.Fuzz(func(t *testing.T, data []byte) {
		for len(data) > 0 {
			b, rest, err := d.Next(data)
			if err != nil {
				if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrTooLarge) {
					t.Fatalf("untyped: %v", err)
				}
				return
			}
			if len(rest) >= len(data) || len(b.Records) != b.N {
				t.Fatalf("%d bytes left of %d, %d of %d messages", len(rest), len(data), len(b.Records), b.N)
			}
			total := 0
			text := AppendHeader(nil, b.Gateway, b.Uplink, b.N)
			for i := range b.Records {
				total += len(b.Records[i].Payload)
				text = b.Records[i].Append(text)
			}
			if total > 64<<10 {
				t.Fatalf("unpacked to %d bytes of payload", total)
			}
			again, err := NewDecoder(1 << 20).Decode(text)
			if err != nil {
				t.Fatalf("written again: %v\n%q", err, text)
			}
			for i := range b.Records {
				if !bytes.Equal(again.Records[i].Payload, b.Records[i].Payload) || again.Records[i].Topic != b.Records[i].Topic {
					t.Fatalf("message %d changed: %+v, %+v", i, b.Records[i], again.Records[i])
				}
			}
			data = rest
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	for _, c := range []Compression{None, Gzip, Zstd} {
		b.Run(c.String(), func(b *testing.B) {
			e, err := NewEncoder(c)
			if err != nil {
				b.Fatal(err)
			}
			var records []Record
			raw := 0
			for i := range 100 {
				m := message.Message{
					ID: message.NewID(), Topic: fmt.Sprintf("plant/hall3/press%d/temperature", i%50), QoS: 1, Received: time.Now(),
					Source: message.Source{Client: fmt.Sprintf("press%d", i%50)},
					Payload: fmt.Appendf(nil, `{"v":%.2f,"t":"2026-01-02T03:%02d:%02d.%03dZ","q":"Good","unit":"C","fw":"2.14.0","site":"press-hall-3","n":%d}`,
						20+float64(i*7919%1000)/100, i%60, i*13%60, i*31%1000, i),
				}
				raw += len(m.Payload) + len(m.Topic)
				records = append(records, Of(&m, fmt.Sprintf("t8x4b2q0z1-normal-%d", 100000+i)))
			}
			var text, out []byte
			for b.Loop() {
				text = AppendHeader(text[:0], "gw", "cloud", len(records))
				for i := range records {
					text = records[i].Append(text)
				}
				if out, err = e.Append(out[:0], text); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(out))/100, "B/message")
			b.ReportMetric(float64(len(text))/100, "text-B/message")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/message")
		})
	}
}
