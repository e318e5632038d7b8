package demo

import (
	"encoding/json"
	"strconv"
	"testing"

	"tidegate/message"
)

// TestTally: what was acknowledged and did not arrive is lost; what was never acknowledged is not, and what arrives twice
// is a duplicate.
func TestTally(t *testing.T) {
	c := newTally()
	a, b := topic(message.MQTT, "a"), topic(message.OPCUA, "b")
	for range 4 {
		c.sent(a)
	}
	c.sent(b)
	if c.settled() || !c.complete() {
		t.Error("settled or incomplete before any answer")
	}
	for n, acked := range map[int]bool{1: true, 2: true, 3: true, 4: false} {
		c.answered(a, n, acked)
	}
	c.answered(b, 1, true)
	c.arrived(a, []byte("1"))
	c.arrived(a, []byte("3"))
	c.arrived(a, []byte("3"))
	c.arrived(b, []byte(`{"v":0,"q":"Good"}`)) // the first value of a node, which nobody counted
	c.arrived("tidegate/demo/status", []byte(`{"state":"online"}`))
	c.arrived(a, []byte("no number"))
	if !c.settled() || c.complete() {
		t.Error("not settled or complete with two missing")
	}
	if r := c.report(); r.Lost != 2 || r.Protocols[message.MQTT] != (Count{4, 3, 2, 1, 1}) || r.Protocols[message.OPCUA] != (Count{1, 1, 0, 0, 1}) {
		t.Errorf("%+v", r)
	}
	c.arrived(a, []byte("2"))
	c.arrived(b, []byte(`{"v":1,"t":"2026-01-02T03:04:05.678Z","q":"Good"}`))
	if r := c.report(); r.Lost != 0 || !c.complete() {
		t.Errorf("%+v", r)
	}
}

// TestReportAsJSON: scripts read these names.
func TestReportAsJSON(t *testing.T) {
	c := newTally()
	for i := range 2 {
		n := c.sent(topic(message.CoAP, "m"))
		c.answered(topic(message.CoAP, "m"), n, true)
		c.arrived(topic(message.CoAP, "m"), []byte(strconv.Itoa(i+1)))
	}
	text, err := json.Marshal(c.report())
	if err != nil {
		t.Fatal(err)
	}
	const none = `{"sent":0,"acked":0,"delivered":0,"duplicates":0,"lost":0}`
	want := `{"protocols":{"coap":{"sent":2,"acked":2,"delivered":2,"duplicates":0,"lost":0},"mqtt":` + none + `,"opcua":` + none + `},"lost":0}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}
