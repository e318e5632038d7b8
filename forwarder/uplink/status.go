package uplink

import (
	"encoding/json"
	"runtime/debug"
	"time"

	"tidegate/message"
)

// state is the payload of the status topic.
type state struct {
	State   string `json:"state"` // online or offline
	Since   string `json:"since"` // RFC 3339
	Version string `json:"version"`
}

// statusMessage is the retained message that tells the cloud whether this gateway is connected. The same with "offline" is
// the will; since is then the time of the CONNECT, as nobody can know that of the loss in advance.
func statusMessage(gateway, version, is string, now time.Time) message.Message {
	// A struct of three strings cannot fail to encode.
	payload, _ := json.Marshal(state{State: is, Since: now.UTC().Format(time.RFC3339), Version: version})
	return message.Message{
		Topic: "tidegate/" + gateway + "/status", Payload: payload, QoS: 1, Retain: true, ContentType: "application/json",
		PayloadUTF8: true, Source: message.Source{Protocol: message.Self, Client: gateway}, Received: now,
	}
}

// builtVersion is the version that this program was built as, as far as the Go tools know it.
func builtVersion() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "unknown"
}
