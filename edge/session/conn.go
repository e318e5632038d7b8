package session

// Conn is the outgoing side of one connection as a session needs it; *gate.Conn is one.
type Conn interface {
	// Write takes over one or more whole packets. It copies them, keeps their order with
	// everything else written to the connection and never waits for the peer.
	Write(p []byte) (int, error)
	// WaitWritable returns nil as soon as few enough bytes wait for the peer (about 64 KiB,
	// bytes held for a ticket not counted) and an error when the connection is closed.
	// A session calls it after every batch, so what waits in the connection stays bounded
	// and everything else waits in the session's own queue, where it is counted.
	WaitWritable() error
	// Fail ends the connection because the store failed: the client is expected to come back. It does not wait.
	Fail(err error)
}
