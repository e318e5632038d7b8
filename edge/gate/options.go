package gate

import (
	"time"
)

// Defaults of Options; each stands for a zero field.
const (
	defaultConnectTimeout = 10 * time.Second
	defaultWriteTimeout   = 10 * time.Second
	defaultLingerTimeout  = 2 * time.Second
	defaultDrainTimeout   = 2 * time.Second
	defaultMaxHeld        = 1 << 20
	defaultMaxHeldAcks    = 16384
	defaultMaxQueued      = 1 << 20
	defaultHardQueued     = 8 << 20
	defaultMaxPacket      = 1 << 20
	// The largest will payload (65,535 bytes) and 8 KiB for everything else.
	defaultMaxConnectBytes = 72 << 10
)

// Options are the bounds of one connection. A zero field means its default.
type Options struct {
	// ConnectTimeout: the CONNECT packet must have arrived whole that long after Wrap, TLS handshake included. 0 means 10 s.
	ConnectTimeout time.Duration
	// WriteTimeout: a peer that takes no byte that long while some are waiting for it is cut off. 0 means 10 s.
	WriteTimeout time.Duration
	// LingerTimeout: how long Close waits in the background for the disk and for the peer to take what was written before
	// it. What is not durable then never leaves. 0 means 2 s.
	LingerTimeout time.Duration
	// DrainTimeout: how long a closed connection goes on throwing away what the peer still sends, so that the peer's kernel
	// does not drop our last packet on a reset; Listener.Shutdown lets it be 250 ms at most. 0 means 2 s.
	DrainTimeout time.Duration

	// MaxHeld bounds the bytes that wait for the disk. Above it Read blocks until a commit released some; the read deadline
	// stands still meanwhile. 0 means 1 MiB.
	MaxHeld int
	// MaxHeldAcks bounds the number of tickets that are waited for, in the same way. 0 means 16,384.
	MaxHeldAcks int
	// MaxQueued: above so many bytes that the peer has not taken yet, Full reports true: whoever paces itself stops
	// sending, whoever cannot drops QoS 0 and counts it. 0 means 1 MiB.
	MaxQueued int
	// HardQueued: a Write that would bring queued and held bytes above it fails with ErrQueueFull and ends the connection
	// (ReasonQueue). One packet of any size is always taken when nothing is queued. 0 means 8 MiB.
	HardQueued int

	// MaxConnectBytes bounds the CONNECT packet, header included, in bytes: it is read before anybody is authenticated.
	// 0 means 72 KiB, which holds the largest will payload.
	MaxConnectBytes int
	// MaxPacket bounds every other packet from the peer, header included, in bytes. 0 means 1 MiB.
	MaxPacket int

	// OnClose is called once per connection when its socket is closed and its goroutines have ended, with the first cause
	// (err may be nil). It must not block. Nil: nobody is told.
	OnClose func(c *Conn, why Reason, err error)
	// OnPause is called each time Read begins to wait because too much waits for the disk. It must not block. Nil: nobody
	// is told.
	OnPause func(c *Conn)
}

// withDefaults returns o with every zero field replaced.
func (o Options) withDefaults() *Options {
	setDefault(&o.ConnectTimeout, defaultConnectTimeout)
	setDefault(&o.WriteTimeout, defaultWriteTimeout)
	setDefault(&o.LingerTimeout, defaultLingerTimeout)
	setDefault(&o.DrainTimeout, defaultDrainTimeout)
	setDefault(&o.MaxHeld, defaultMaxHeld)
	setDefault(&o.MaxHeldAcks, defaultMaxHeldAcks)
	setDefault(&o.MaxQueued, defaultMaxQueued)
	setDefault(&o.HardQueued, defaultHardQueued)
	setDefault(&o.MaxConnectBytes, defaultMaxConnectBytes)
	setDefault(&o.MaxPacket, defaultMaxPacket)
	return &o
}

func setDefault[T int | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// Reason says in one word why a connection ended or was refused; the set is small enough to label a metric. Kill and
// Disconnect take the caller's own words too.
type Reason string

// Reasons the gate gives by itself.
const (
	ReasonClosed          Reason = "closed"            // Close was called and nothing else was wrong
	ReasonPeer            Reason = "peer"              // the peer closed, reset or vanished
	ReasonKeepAlive       Reason = "keep_alive"        // the read deadline passed
	ReasonDisk            Reason = "disk"              // a ticket failed
	ReasonQueue           Reason = "queue_full"        // HardQueued
	ReasonWriteTimeout    Reason = "write_timeout"     // WriteTimeout
	ReasonWriteError      Reason = "write_error"       // the socket refused bytes
	ReasonConnectTimeout  Reason = "connect_timeout"   // ConnectTimeout
	ReasonHandshake       Reason = "handshake"         // TLS or the layer above could not be opened
	ReasonNotConnect      Reason = "not_connect"       // ErrNotConnect
	ReasonConnectTooLarge Reason = "connect_too_large" // ErrConnectTooLarge
	ReasonPacketTooLarge  Reason = "packet_too_large"  // ErrPacketTooLarge
	ReasonMalformed       Reason = "malformed"         // ErrMalformed
	ReasonShutdown        Reason = "shutdown"          // Listener.Shutdown
	ReasonTooMany         Reason = "too_many"          // refused by ListenerOptions.MaxConns
	ReasonTooManyPerAddr  Reason = "too_many_per_addr" // refused by ListenerOptions.MaxPerAddr
)
