package edge

import (
	"testing"
	"time"
)

// What the library's decoder passes over. There is no return code for it in version 3.1.1: [MQTT-3.2.2-6] of 3.1.1.
func TestConformanceWellFormedConnect(t *testing.T) {
	id, topic, body := text("c"), text("w"), text("x")
	refuseConnects(t, []wrong{
		{"3 reserved flag [MQTT-3.1.2-3] of 3.1.1", three("\x03", id)},
		{"3 will QoS without a will [MQTT-3.1.2-11] [MQTT-3.1.2-13] of 3.1.1", three("\x0a", id)},
		{"3 will QoS 3 [MQTT-3.1.2-14] of 3.1.1", three("\x1e", id+topic+body)},
		{"3 will retain without a will [MQTT-3.1.2-11] [MQTT-3.1.2-15] of 3.1.1", three("\x22", id)},
		{"3 user name without its flag [MQTT-3.1.2-18] of 3.1.1", three("\x02", id+text("user"))},
		{"3 password without its flag [MQTT-3.1.2-20] of 3.1.1", three("\x82", id+text("user")+text("password"))},
		{"3 password flag without user name flag [MQTT-3.1.2-22] of 3.1.1", three("\x42", id+text("password"))},
		{"3 user name not UTF-8 [MQTT-3.1.3-11] of 3.1.1", three("\x82", id+text("\xff"))},
		{"5 user name without its flag [MQTT-3.1.2-16]", five("\x02", "", id+text("user"))},
		{"5 password without its flag [MQTT-3.1.2-18]", five("\x82", "", id+text("user")+text("password"))},
		{"5 user name not UTF-8 [MQTT-3.1.3-12]", five("\x82", "", id+text("\xff"))},
		{"5 Receive Maximum 0", five("\x02", "\x21\x00\x00", id)},
		{"5 Maximum Packet Size 0", five("\x02", "\x27\x00\x00\x00\x00", id)},
		{"5 Request Problem Information 2", five("\x02", "\x17\x02", id)},
		{"5 Request Response Information 2", five("\x02", "\x19\x02", id)},
		{"5 Session Expiry Interval twice", five("\x02", "\x11\x00\x00\x00\x01\x11\x00\x00\x00\x02", id)},
		{"5 Authentication Data without a method", five("\x02", "\x16"+text("x"), id)},
		{"5 properties that end in the middle", five("\x02", "\x11\x00", id)},
	})
}

func TestConformanceWellFormed(t *testing.T) {
	refusePackets(t, []wrong{
		{"5 PUBLISH, Topic Alias twice", frame(0x30, text("a")+"\x06\x23\x00\x01\x23\x00\x02")},
		{"5 SUBSCRIBE, reserved bits [MQTT-3.8.3-5]", frame(0x82, "\x00\x01\x00"+text("a")+"\x40")},
	})
}

// One and a half times an odd keep alive is no whole number of seconds: [MQTT-3.1.2-22]; [MQTT-3.1.2-24] of 3.1.1.
func TestConformanceKeepAliveHalfSeconds(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		t.Parallel()
		begin := time.Now()
		c := connect(t, b.addr, rawOptions{ID: "c", V: v, Clean: true, KeepAlive: 1})
		closed(t, c)
		if d := time.Since(begin); d < 1500*time.Millisecond {
			t.Errorf("closed after %v, want 1.5 s or more", d)
		}
	})
}
