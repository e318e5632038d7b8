package config

import (
	"os"
	"path/filepath"
	"strings"
	"time"
)

// defaults fills sections with what absent keys mean. All defaults of the file are here.
type defaults struct{}

const defaultFailback = Age(5 * time.Minute)

// Bounds that come from MQTT itself.
const (
	maxInFlight  = 65535     // receive maximum is a two-byte number [MQTT-3.1.2.11.3]
	maxKeepAlive = 65535     // seconds, likewise
	maxPacket    = 268435460 // the largest remaining length with its fixed header
)

func (defaults) config() *Config {
	return &Config{
		Version: 1,
		Gateway: Gateway{ID: defaultGatewayID(), DataDir: defaultDataDir()},
		Log:     Log{Level: "info", Format: "text"},
		Auth:    Auth{ClientID: ClientIDAny},
		Broker: Broker{
			Mode:          ModeEmbedded,
			MaxClients:    10000,
			MaxPacket:     1 << 20,
			SessionExpiry: Duration(7 * day),
			SessionQueue:  64 << 20,
			SessionStore:  256 << 20,
			MaxKeepAlive:  Duration(5 * time.Minute),
			RetainedLimit: 100000,
		},
		Listeners: map[string]Listener{},
		OPCUA:     map[string]OPCUA{},
		Routes:    map[string]Route{},
		Uplinks:   map[string]Uplink{},
	}
}

// fill sets the defaults of a section that stands in the file.
func (defaults) fill(section any) {
	switch s := section.(type) {
	case *Listener:
		*s = Listener{Identity: IdentityCN, MinTLS: "1.2"}
	case *Route:
		*s = Route{Topic: "{topic}", QoS: 1, Retain: "keep", Lane: "normal"}
	case *Uplink:
		*s = Uplink{
			Protocol:   "5",
			ClientID:   "{gateway}-{uplink}",
			KeepAlive:  Duration(30 * time.Second),
			AckTimeout: Duration(30 * time.Second),
			Buffer:     Buffer{MaxBytes: 512 << 20, WhenFull: "drop-oldest", Compress: "auto"},
		}
		s.Failback, s.Retain, s.SASLifetime = defaultFailback, "keep", Duration(time.Hour)
	case *External:
		*s = External{
			ClientID: "{gateway}-broker", Group: "tidegate", QoS: 1, ReceiveMaximum: 1024,
			SessionExpiry: Duration(7 * day), KeepAlive: Duration(30 * time.Second),
		}
	case *Batch:
		*s = Batch{
			MaxMessages: 100, MaxDelay: Duration(time.Second), MaxBytes: 128 << 10, Compress: "zstd",
			Topic: "tidegate/{gateway}/uplink/{uplink}/batch",
		}
	case *Command:
		*s = Command{ID: "tg-id", ReplayWindow: Age(7 * day), Time: "tg-time"}
	case *CoAP:
		*s = CoAP{Listen: []string{"coap://127.0.0.1:5683"}}
	case *OPCUA:
		*s = OPCUA{
			Security:           "None",
			PublishingInterval: Duration(time.Second),
			SamplingInterval:   Duration(500 * time.Millisecond),
			OutageBudget:       Duration(time.Minute),
			Format:             "json",
		}
	case *Admin:
		*s = Admin{Listen: "http://127.0.0.1:8080"}
	}
}

// listener returns the one that is there when the file names none.
func (defaults) listener() (name string, l Listener) {
	return "mqtt", Listener{Listen: "mqtt://127.0.0.1:1883", ClientAuth: ClientAuthNone, Identity: IdentityCN, MinTLS: "1.2"}
}

// defaultGatewayID returns the host name, with what cannot be part of a topic replaced.
func defaultGatewayID() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "tidegate"
	}
	id := strings.Map(func(c rune) rune {
		if isBare(c) || c == '.' {
			return c
		}
		return '-'
	}, host)
	return id[:min(len(id), maxGatewayID)]
}

// defaultDataDir returns the folder of a service when systemd runs this as one, else one in the user's home, root's as well.
func defaultDataDir() string {
	const service = "/var/lib/tidegate"
	if dirs := os.Getenv("STATE_DIRECTORY"); dirs != "" {
		first, _, _ := strings.Cut(dirs, ":") // systemd lists all of them
		return first
	}
	if os.Getenv("INVOCATION_ID") != "" && os.Geteuid() == 0 {
		return service
	}
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "tidegate")
	}
	home, err := os.UserHomeDir()
	if err != nil || home == "" {
		return service
	}
	return filepath.Join(home, ".local", "state", "tidegate")
}
