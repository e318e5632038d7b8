package forwarder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/message"
)

// TestIngestWith: records of somebody else go with a message, also one that no route wants; those that may be left out are where
// there is no room, and the message is counted once; those that must go along keep it from being taken.
func TestIngestWith(t *testing.T) {
	r := open(t, t.TempDir(), testConfig(map[string]config.Route{"a": {From: []string{"a/#"}}}, "cloud"),
		map[string]*fakeCloud{"cloud": newFakeCloud(takeAll)})
	defer r.close()
	free, err := r.f.log.Queue("other/free", buffer.QueueOptions{})
	if err != nil {
		t.Fatal(err)
	}
	small, err := r.f.log.Queue("other/small", buffer.QueueOptions{Bound: r.f.log.NewBound(100, buffer.DropOldest)})
	if err != nil {
		t.Fatal(err)
	}
	for i, topic := range []string{"a/x", "b"} {
		must := []buffer.Record{{Queue: free, Data: []byte("must")}}
		may := []buffer.Record{{Queue: small, Data: []byte("may")}}
		tk, err := r.f.IngestWith(message.Message{Topic: topic}, Riders{Must: must, May: may})
		if err != nil || must[0].Seq != buffer.Seq(2*i+1) || may[0].Seq != buffer.Seq(i+1) || tk.Pos() == 0 || tk.Wait(context.Background()) != nil {
			t.Errorf("%s: %v, sequences %d and %d", topic, err, must[0].Seq, may[0].Seq)
		}
		large := []buffer.Record{{Queue: small, Data: make([]byte, 500)}}
		if _, err = r.f.IngestWith(message.Message{Topic: topic}, Riders{Must: must, May: large}); err != nil || large[0].Seq != 0 || must[0].Seq != buffer.Seq(2*i+2) {
			t.Errorf("%s, a record too large: %v, sequences %d and %d", topic, err, must[0].Seq, large[0].Seq)
		}
		if _, err = r.f.IngestWith(message.Message{Topic: topic}, Riders{Must: large}); !errors.Is(err, message.ErrTooLarge) {
			t.Errorf("%s, one that must go along: %v", topic, err)
		}
	}
	l := r.f.Ledger()
	if l.Unrouted != 2 {
		t.Errorf("%d unrouted", l.Unrouted)
	}
	r.balance()
}

// TestRiderEndsWithTheMessage: what sessions keep of a message has its bytes at the end, whether its copy for an uplink has the same, or a part
// of them, or there is none, and also when that is gone.
func TestRiderEndsWithTheMessage(t *testing.T) {
	cloud := newFakeCloud(takeAll)
	cloud.setOffline(true)
	routes := map[string]config.Route{
		"plain":  {From: []string{"plain/#", "both/#", "letter/#"}, Retain: "clear"},
		"shaped": {From: []string{"shaped/#", "both/#"}, Topic: "elsewhere/{topic}", Retain: "clear"},
		"user":   {From: []string{"letter/#"}, Topic: "{user}"}, // there is none
	}
	r := open(t, t.TempDir(), testConfig(routes, "cloud"), map[string]*fakeCloud{"cloud": cloud})
	defer r.close()
	sessions, err := r.f.log.Queue("sessions", buffer.QueueOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[buffer.Seq]string{}
	same := 0 // copies that differ in nothing but the ID
	for i := range 200 {
		m := message.Message{
			ID: message.NewID(), Topic: []string{"plain/x", "shaped/x", "both/x", "none/x", "letter/x"}[i%5], Received: time.Now(), QoS: message.QoS(i % 3), Retain: i%4 == 0,
			Payload: []byte(strings.Repeat(fmt.Sprint(i, " "), i)), Source: message.Source{Protocol: message.MQTT, Client: "dev"},
		}
		if i%7 == 0 {
			m.Properties = []message.Property{{Key: "k", Value: "v"}}
		}
		if i%5 == 0 && m.QoS == 1 && !m.Retain {
			same++
		}
		head := fmt.Sprint("those who take ", i)
		data, err := m.AppendBinary([]byte(head))
		if err != nil {
			t.Fatal(err)
		}
		with := Riders{
			Must: []buffer.Record{{Queue: sessions, Data: []byte("must")}}, Message: true,
			May: []buffer.Record{{Queue: sessions, Data: []byte(head), Lifetime: time.Hour}, {Queue: sessions, Data: []byte("retained")}},
		}
		tk, err := r.f.IngestWith(m, with)
		if err != nil || tk.Wait(t.Context()) != nil || with.Must[0].Seq == 0 || with.May[1].Seq == 0 || string(with.May[0].Data) != head {
			t.Fatal(err)
		}
		want[with.Must[0].Seq], want[with.May[0].Seq], want[with.May[1].Seq] = "must", string(data), "retained"
	}
	for _, when := range []string{"beside the copies", "alone"} {
		n, shared := 0, 0
		if err := sessions.Scan(0, func(rec buffer.Rec) bool {
			got, ofCopy := original(rec.Data)
			if n++; got != want[rec.Seq] {
				t.Errorf("%s: record %d is %.40q, want %.40q", when, rec.Seq, got, want[rec.Seq])
			}
			if ofCopy {
				shared++
			}
			if strings.HasPrefix(got, "those who take ") && rec.Lifetime() != time.Hour {
				t.Errorf("%s: record %d is good for %s", when, rec.Seq, rec.Lifetime())
			}
			return true
		}); err != nil || n != len(want) {
			t.Fatalf("%d of %d: %v", n, len(want), err)
		}
		if shared != same {
			t.Errorf("%s: %d have the message of a copy, want %d", when, shared, same)
		}
		r.f.outs[0].queues[0].Purge()
	}
}

// original is the rider with the ID of the message itself, and whether it had that of a copy.
func original(rider []byte) (data string, ofCopy bool) {
	if !bytes.HasPrefix(rider, []byte("those who take ")) {
		return string(rider), false
	}
	number := len(rider) - len(message.Rest(rider[bytes.IndexByte(rider, 1):])) - 2 // of the copy, the end of the ID
	ofCopy = rider[number]|rider[number+1] != 0
	rider[number], rider[number+1] = 0, 0
	return string(rider), ofCopy
}
