package config

// CoAP is the CoAP server (RFC 7252) for devices.
type CoAP struct {
	// Listen are URLs, coap://HOST:PORT, one UDP socket each; port 0 picks a free one.
	Listen []string `toml:"listen"`
}

// OPCUA is one OPC UA server that the gateway reads from and writes to.
type OPCUA struct {
	Endpoint string `toml:"endpoint"` // opc.tcp://HOST:PORT/PATH
	// Security is the least that is accepted: "None", or POLICY/MODE, such as "Basic256Sha256/SignAndEncrypt".
	Security string `toml:"security"`
	Username string `toml:"username"` // empty: anonymous
	Password Secret `toml:"password"`

	PublishingInterval Duration `toml:"publishing_interval"`
	SamplingInterval   Duration `toml:"sampling_interval"`
	// OutageBudget is how long the server is to keep values for us: it sizes the queues of its monitored items.
	OutageBudget Duration `toml:"outage_budget"`
	// Format of a value: json, {"v","t","q"}, or value, the bare value.
	Format string `toml:"format"`
	// Topic is the template for nodes that have none of their own: {path}, {name}, {id}, {ns}.
	Topic string `toml:"topic"`

	Nodes  []OPCUANode  `toml:"node"`
	Writes []OPCUAWrite `toml:"write"`
}

// OPCUANode is one [[opcua.NAME.node]]: a node whose value is published.
type OPCUANode struct {
	// ID is the node ID: nsu=URI;s=TEXT or ns=N;s=TEXT, also i=, g= and b=.
	ID string `toml:"id"`
	// Topic is a topic name or a template; empty: that of the server.
	Topic    string   `toml:"topic"`
	Deadband Deadband `toml:"deadband"`
	At       Place    `toml:"-"`
}

// OPCUAWrite is one [[opcua.NAME.write]]: a local topic whose messages are written to a node.
type OPCUAWrite struct {
	Topic string `toml:"topic"`
	ID    string `toml:"id"`
	At    Place  `toml:"-"`
}

// Deadband is how far a value has to move before it is sent; zero: every change counts.
type Deadband struct {
	By float64
	// Percent: By is a share of the node's engineering unit range (OPC UA part 8), not an absolute difference.
	Percent bool
}
