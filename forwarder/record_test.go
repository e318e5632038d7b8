package forwarder

import (
	"bytes"
	"testing"

	"tidegate/message"
)

func TestRecordGolden(t *testing.T) {
	m := message.Message{ID: message.ID{1, 2, 3}, Topic: "a/b", Payload: []byte("p"), QoS: 1, Source: message.Source{Protocol: message.MQTT, Client: "c"}}
	body, err := m.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	rec, _, err := appendRecord([]byte("before"), "route", &m)
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte("before\x05route"), body...)
	if !bytes.Equal(rec, want) {
		t.Fatalf("got %q, want %q", rec, want)
	}
	letter := appendDeadLetter(nil, "why", rec[6:])
	if !bytes.Equal(letter, append([]byte("\x03why"), rec[6:]...)) {
		t.Fatalf("got %q", letter)
	}
	s, err := ReadDeadLetter(letter)
	if err != nil || s.Reason != "why" || s.Route != "route" || s.Message.Topic != "a/b" || string(s.Message.Payload) != "p" {
		t.Fatalf("got %+v, %v", s, err)
	}
}

func TestCutRecords(t *testing.T) {
	rec, _, err := appendRecord(nil, "route", &message.Message{Topic: "a", Payload: []byte("p")})
	if err != nil {
		t.Fatal(err)
	}
	letter := appendDeadLetter(nil, "reason", rec)
	for i := range len(rec) - 1 { // without its payload a record is whole
		if _, err := ReadRecord(rec[:i]); err == nil {
			t.Errorf("a record cut at %d was read", i)
		}
	}
	for i := range len(letter) - 1 {
		if _, err := ReadDeadLetter(letter[:i]); err == nil {
			t.Errorf("a dead letter cut at %d was read", i)
		}
	}
}

func FuzzReadRecord(f *testing.F) {
	rec, _, err := appendRecord(nil, "route", &message.Message{Topic: "a", Payload: []byte("p"), Properties: []message.Property{{Key: "k", Value: "v"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rec)
	f.Add(appendDeadLetter(nil, "reason", rec))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ReadRecord(b); err == nil {
			again, _, err := appendRecord(nil, s.Route, &s.Message)
			if err != nil {
				return // a topic longer than MQTT allows cannot be written again
			}
			if r, err := ReadRecord(again); err != nil || r.Route != s.Route || r.Message.Topic != s.Message.Topic {
				t.Fatalf("written again: %+v, %v", r, err)
			}
		}
		_, _ = ReadDeadLetter(b)
	})
}
