// Package config reads Tidegate's configuration: one TOML file, its conf.d folder, defaults and secrets by reference.
//
// It is strict: a key it does not know, a value of the wrong type, a contradiction or a key whose feature this build does
// not have is an error with file, line and column, and all of them are reported at once (validate.go). Loading has no side
// effects. The sections are plain structs with every default filled in, so that a reader of Config never asks what an
// absent key means. Start reading here; load.go turns files into a Config: parse.go makes a tree of nodes that know where
// they stand (tree.go), decode.go maps it onto the structs, defaults.go holds every default, validate.go asks what it means.
package config

// Config is one whole configuration, valid and with defaults filled in.
type Config struct {
	// File is the main file it came from; empty for the built-in default.
	File string `toml:"-"`
	// Version of the file's face; 1.
	Version int `toml:"version"`

	Gateway   Gateway             `toml:"gateway"`
	Log       Log                 `toml:"log"`
	Listeners map[string]Listener `toml:"listener"`
	Auth      Auth                `toml:"auth"`
	Broker    Broker              `toml:"broker"`
	CoAP      *CoAP               `toml:"coap"` // nil: off
	OPCUA     map[string]OPCUA    `toml:"opcua"`
	Routes    map[string]Route    `toml:"route"`
	Uplinks   map[string]Uplink   `toml:"uplink"`
	Admin     *Admin              `toml:"admin"` // nil: off

	// Warnings are the problems that do not keep the gateway from running.
	Warnings Problems `toml:"-"`
}

// Gateway names this gateway and its folder.
type Gateway struct {
	// ID stands in client identifiers, topics and metrics. Default: the host name.
	ID string `toml:"id"`
	// DataDir holds everything that must survive a restart; absolute after loading.
	DataDir string `toml:"data_dir"`
}

// Log says what is logged on standard error.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn or error
	Format string `toml:"format"` // text or json
}

// Which client identifiers a user may have.
const (
	ClientIDAny  = "any"
	ClientIDUser = "user" // the user's name, or that, a slash and anything
)

// Auth says who may connect and what they may do.
type Auth struct {
	// Anonymous admits clients without a user name. Default: true while every listener is on loopback. Never nil after
	// loading.
	Anonymous *bool `toml:"anonymous"`
	// UsersFile is the file of hashed users that `tidegate passwd` writes; empty: no users.
	UsersFile string `toml:"users_file"`
	// HideReasons answers what a rule refuses with "unspecified error" instead of "not authorized" on MQTT 5.
	HideReasons bool `toml:"hide_reasons"`
	// ClientID says which client identifiers a user may have: ClientIDAny or ClientIDUser.
	ClientID string `toml:"client_id"`
	// Rules are read in order; none at all: every authenticated user may do everything but $-topics and tidegate/#.
	Rules []Rule `toml:"rule"`
}

// Rule is one [[auth.rule]]. {user} and {client} in a filter stand for the connected identity.
type Rule struct {
	User          string   `toml:"user"`
	Publish       []string `toml:"publish"`
	Subscribe     []string `toml:"subscribe"`
	DenyPublish   []string `toml:"deny_publish"`
	DenySubscribe []string `toml:"deny_subscribe"`
	// At is where the rule stands.
	At Place `toml:"-"`
}

// Broker bounds the embedded MQTT broker, or says which one stands in its place.
type Broker struct {
	Mode          string   `toml:"mode"` // embedded or external
	MaxClients    int      `toml:"max_clients"`
	MaxPacket     Size     `toml:"max_packet"`
	SessionExpiry Duration `toml:"session_expiry"` // upper bound for what a client may ask for
	SessionQueue  Size     `toml:"session_queue"`  // undelivered QoS 1/2 kept for one session
	SessionStore  Size     `toml:"session_store"`  // the same for all sessions together, on disk
	MaxKeepAlive  Duration `toml:"max_keep_alive"`
	RetainedLimit int      `toml:"retained_limit"` // retained messages, at most
	// MaxConnectRate is how many connections a second one source address may open before it is slowed down; 0 is "off".
	MaxConnectRate ConnectRate `toml:"max_connect_rate"`
	// MaxClientsPerSource bounds the connections from one source address; 0: as many as MaxClients.
	MaxClientsPerSource int `toml:"max_clients_per_source"`
	// EncryptionKey encrypts what is on disk of sessions and retained messages; see Keys. Not set: it is not encrypted.
	EncryptionKey Secret `toml:"encryption_key"`
	// External is the broker to attach to, with the mode external; nil: none is named.
	External *External `toml:"external"`
}

// Route says what goes up and in what shape.
type Route struct {
	From   []string `toml:"from"`
	Except []string `toml:"except"`
	// To names uplinks; after loading it lists all of them when the key was absent.
	To     []string `toml:"to"`
	Topic  string   `toml:"topic"`  // template, default "{topic}"
	QoS    int      `toml:"qos"`    // 1 or 2
	Retain string   `toml:"retain"` // keep or clear
	Lane   string   `toml:"lane"`   // normal or urgent
	// Expire is how long after its arrival a message is worth sending; 0 is "off".
	Expire Age `toml:"expire"`
}

// Uplink is one cloud broker (or several addresses of it) and the buffer in front of it.
type Uplink struct {
	// Preset names a cloud service whose demands are filled in and checked; empty: none. See preset.go.
	Preset   string   `toml:"preset"`
	Servers  []string `toml:"servers"`   // mqtt://, mqtts://, ws:// or wss:// URLs, tried in order
	Protocol string   `toml:"protocol"`  // "5" or "3.1.1"
	ClientID string   `toml:"client_id"` // template of {gateway} and {uplink}; expanded after loading
	Username string   `toml:"username"`
	Password Secret   `toml:"password"`
	CA       string   `toml:"ca"`
	Cert     string   `toml:"cert"`
	Key      string   `toml:"key"`
	// ServerName is asked for in the TLS handshake and checked in the certificate; empty: the host of the server.
	ServerName string `toml:"server_name"`
	// ALPN lists the protocols offered in the TLS handshake; none: what the scheme needs.
	ALPN []string `toml:"alpn"`
	// SASKey is the base64 key of an Azure IoT Hub device, with which the password is made again for every connection.
	SASKey Secret `toml:"sas_key"`
	// SASLifetime is how long such a password is valid.
	SASLifetime Duration `toml:"sas_lifetime"`
	// Proxy is the way out to the servers.
	Proxy Proxy `toml:"proxy"`
	// Failback is how long an earlier server must have answered before a working connection moves back to it; 0 is "off".
	Failback Age `toml:"failback"`
	// Retain says what becomes of the retain flag on this uplink: keep or strip.
	Retain string `toml:"retain"`

	KeepAlive Duration `toml:"keep_alive"`
	// MaxInFlight bounds unacknowledged messages; 0 is "auto": what the broker grants, at most 8192.
	MaxInFlight InFlight `toml:"max_in_flight"`
	// AckTimeout: no acknowledgement for the oldest message for that long drops the connection.
	AckTimeout Duration `toml:"ack_timeout"`

	// MaxRate bounds what is sent, so that it leaves room on the line or keeps to what is paid for.
	MaxRate MaxRate `toml:"max_rate"`
	// Batch sends many messages in one PUBLISH; nil: each one in its own.
	Batch *Batch `toml:"batch"`
	// LiveFirst lets fresh messages overtake the backlog while it drains: order then holds within each of the two.
	LiveFirst bool      `toml:"live_first"`
	Buffer    Buffer    `toml:"buffer"`
	Commands  []Command `toml:"command"`
	// ServersAt is where each of Servers stands.
	ServersAt []Place `toml:"-"`
	// ServerALPN is ALPN for each of Servers; a preset may want another one for another port.
	ServerALPN [][]string `toml:"-"`
	// Limits are what the preset's service demands of each message.
	Limits Limits `toml:"-"`
}

// MaxRate bounds what an uplink sends; 0 is no bound.
type MaxRate struct {
	Messages MessageRate `toml:"messages"`
	Bytes    ByteRate    `toml:"bytes"` // of the records, which are about as large as their PUBLISH packets, or of batches as sent
}

// Batch says how an uplink gathers messages.
type Batch struct {
	MaxMessages int      `toml:"max_messages"` // 1 to 10000
	MaxDelay    Duration `toml:"max_delay"`    // how long a message waits for others, at most 1 h
	// MaxBytes bounds the text of a batch before it is packed, 1 KiB to 1 MiB. A message that is larger travels alone.
	MaxBytes Size   `toml:"max_bytes"`
	Compress string `toml:"compress"` // zstd, gzip or none
	Topic    string `toml:"topic"`    // template of {gateway} and {uplink}; expanded after loading
}

// Buffer bounds what is kept on disk for one uplink.
type Buffer struct {
	MaxBytes Size   `toml:"max_bytes"`
	WhenFull string `toml:"when_full"` // drop-oldest or refuse
	// MaxAge is how long a record is kept; 0 is "off".
	MaxAge Age `toml:"max_age"`
	// Sync is 0 for "always": an acknowledgement means it is on disk; else at most that much time is at risk.
	Sync SyncInterval `toml:"sync"`
	// EncryptionKey encrypts the records on disk; see Keys. Not set: they are not encrypted.
	EncryptionKey Secret `toml:"encryption_key"`
	// Compress is "auto" (where it pays) or "off".
	Compress string `toml:"compress"`
}

// Command maps topics of the cloud to local ones.
type Command struct {
	From string `toml:"from"` // filter at the cloud broker; {gateway} is expanded after loading
	To   string `toml:"to"`   // template of the local topic

	// ID is where a command has its identity: the name of a user property, or CorrelationData. A command without one can be repeated.
	ID string `toml:"id"`
	// RequireID refuses commands without an identity.
	RequireID bool `toml:"require_id"`
	// ReplayWindow is how long an identity is remembered; 0 is "off": not at all.
	ReplayWindow Age `toml:"replay_window"`
	// Time is the name of the user property that says when a command was made.
	Time string `toml:"time"`
	// MaxAge refuses what was made longer ago, or does not say when; 0 is "off".
	MaxAge Age `toml:"max_age"`
	// Expire is how long a command that says nothing of it is worth delivering after it came; 0 is "off": without end.
	Expire Age `toml:"expire"`
}

// CorrelationData as Command.ID: the correlation data is the identity.
const CorrelationData = "correlation-data"

// Admin is the surface for metrics, health and administration.
type Admin struct {
	Listen string `toml:"listen"` // http://HOST:PORT or https://HOST:PORT
	// Cert and Key are PEM files for https; ClientCA asks every visitor for a certificate of one of its authorities.
	Cert     string `toml:"cert"`
	Key      string `toml:"key"`
	ClientCA string `toml:"client_ca"`
}
