package message

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"
)

func full() Message {
	return Message{
		ID:              ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
		Topic:           "plant/press1/temp",
		Payload:         []byte(`{"v":21.5}`),
		QoS:             2,
		Retain:          true,
		ContentType:     "application/json",
		ResponseTopic:   "reply/1",
		CorrelationData: []byte{0, 1, 2},
		PayloadUTF8:     true,
		Properties:      []Property{{"unit", "C"}, {"unit", "again"}, {"", ""}},
		Source:          Source{Protocol: MQTT, Client: "press1", User: "press-1"},
		Received:        time.Unix(1767323045, 678_000_001),
		SourceTime:      time.Unix(-5, 0),
		Expires:         time.Unix(1767323145, 0),
	}
}

func encode(m Message) ([]byte, error) { return m.AppendBinary(nil) }

func TestCodecRoundTrip(t *testing.T) {
	for name, m := range map[string]Message{
		"full":                            full(),
		"empty":                           {Payload: []byte{}},
		"present but empty correlation":   {CorrelationData: []byte{}, Payload: []byte{}},
		"payload that looks like a field": {Topic: "a", Payload: []byte{1, 0xff, 0xff}},
		"a time at 1970":                  {Received: time.Unix(0, 0), Payload: []byte{}},
	} {
		b, err := m.AppendBinary([]byte("before"))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := Decode(b[len("before"):])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, m)
		}
	}
}

// TestCodecGolden holds the bytes that are on users' disks already. It may only ever gain cases.
func TestCodecGolden(t *testing.T) {
	b, err := encode(full())
	if err != nil {
		t.Fatal(err)
	}
	const whole = "01fe0f0102030405060708090a0b0c0d0e0f10829efdcfc8bce5863111706c616e742f7072657373312f74656d70046d717474067072657373310770726573732d31ffc7afa02580e8e8d0acc2e58631106170706c69636174696f6e2f6a736f6e077265706c792f31030001020304756e6974014304756e697405616761696e00007b2276223a32312e357d"
	if got := hex.EncodeToString(b); got != whole {
		t.Errorf("bytes on disk changed:\n got %s\nwant %s", got, whole)
	}
}

func TestDecodeRefusesEveryCut(t *testing.T) {
	m := full()
	m.Payload = nil
	b, err := m.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range b {
		if _, err := Decode(b[:n]); err == nil {
			t.Errorf("%d of %d bytes decoded", n, len(b))
		}
	}
}

func TestDecodeRefusesWhatItDoesNotKnow(t *testing.T) {
	for name, b := range map[string][]byte{
		"version":     {2, 0},
		"flag":        append([]byte{1, 0x80, 0x80, 0x01}, make([]byte, 40)...),
		"QoS 3":       append([]byte{1, 3}, make([]byte, 40)...),
		"huge length": append(append([]byte{1, 0}, make([]byte, 16)...), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01),
	} {
		if m, err := Decode(b); err == nil {
			t.Errorf("%s: decoded %+v", name, m)
		}
	}
}

func TestTooLongTopicIsNotEncoded(t *testing.T) {
	if _, err := encode(Message{Topic: strings.Repeat("a", 65536)}); err == nil {
		t.Error("encoded a topic of 65,536 bytes")
	}
}

// TestRest: two messages that differ in ID, QoS and the retain flag only have the same bytes behind their heads.
func TestRest(t *testing.T) {
	a, b := full(), full()
	b.ID, b.QoS, b.Retain = NewID(), 2-a.QoS, !a.Retain
	for _, m := range []*Message{&a, &b, {}} {
		all, err := m.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		if again := append(m.AppendHead(nil), Rest(all)...); !bytes.Equal(again, all) {
			t.Errorf("%x, want %x", again, all)
		}
	}
	x, _ := a.AppendBinary(nil)
	y, _ := b.AppendBinary(nil)
	if !bytes.Equal(Rest(x), Rest(y)) || len(Rest(x)) == 0 {
		t.Error("their rests differ")
	}
	for n := range len(x) - len(Rest(x)) {
		if Rest(x[:n]) != nil {
			t.Errorf("%d bytes have a rest", n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	whole, _ := encode(full())
	f.Add(whole)
	small, _ := encode(Message{Topic: "a"})
	f.Add(small)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		again, err := m.AppendBinary(nil)
		if err != nil {
			return // a topic longer than MQTT allows
		}
		m2, err := Decode(again)
		if err != nil {
			t.Fatalf("decode of our own bytes: %v", err)
		}
		final, _ := m2.AppendBinary(nil)
		if !bytes.Equal(again, final) {
			t.Errorf("not stable:\n%x\n%x", again, final)
		}
	})
}

func BenchmarkCodec(b *testing.B) {
	m := full()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = m.AppendBinary(buf[:0])
		if _, err := Decode(buf); err != nil {
			b.Fatal(err)
		}
	}
}
