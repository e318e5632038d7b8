package admin

// Status is the state of a gateway at one moment, as `status --json` and /api/v1/status show it.
type Status struct {
	Gateway string         `json:"gateway"`
	Version string         `json:"version"`
	Ready   bool           `json:"ready"`
	UptimeS int64          `json:"uptime_s"`
	Uplinks []UplinkStatus `json:"uplinks"` // by name; empty, never null
	Bridges []BridgeStatus `json:"bridges"` // by name; empty, never null
	Clients int            `json:"clients"` // connected now
	// Sessions counts the sessions of connected and of offline clients.
	Sessions int          `json:"sessions"`
	Buffer   BufferStatus `json:"buffer"`
	// LastError says why the gateway is not ready; empty when it is.
	LastError string `json:"last_error"`
	// Warnings are what somebody has to look at though the gateway works, such as a certificate that is about to expire.
	Warnings []string `json:"warnings,omitempty"`
	// Reload is how the last reload of the configuration ended; nil: there was none.
	Reload *Reload `json:"reload,omitempty"`
}

// UplinkStatus is one uplink and its buffer, all lanes together.
type UplinkStatus struct {
	Name      string `json:"name"`
	Connected bool   `json:"connected"`
	Server    string `json:"server"` // in use, or the last one that was tried
	InFlight  int64  `json:"in_flight"`
	// Window is how many messages may be in flight: the lesser of max_in_flight and Granted, the Receive Maximum that the broker announced.
	// 0 is not known, or not announced.
	Window  int    `json:"window"`
	Granted int    `json:"granted"`
	Records uint64 `json:"records"`
	Bytes   int64  `json:"bytes"`
	// OldestS is the age of the oldest record in seconds; 0 when there is none.
	OldestS   float64 `json:"oldest_s"`
	Delivered uint64  `json:"delivered"` // since the start
	Evicted   uint64  `json:"evicted"`
	Dead      uint64  `json:"dead"` // dead letters kept
	LastError string  `json:"last_error"`
	Note      string  `json:"note,omitempty"` // how it stands with the servers in front of the one in use
}

// WindowFull reports that the window bounds the rate at this moment: as much is in flight as may be, and more waits.
func (u UplinkStatus) WindowFull() bool {
	return u.Connected && u.Window > 0 && u.InFlight > int64(u.Window)*9/10 && u.Records > uint64(u.InFlight)
}

// BridgeStatus is one bridge.
type BridgeStatus struct {
	Name      string `json:"name"`
	Up        bool   `json:"up"`
	LastError string `json:"last_error"`
}

// BufferStatus is the disk below every uplink.
type BufferStatus struct {
	// Writable is false while the disk fails; nothing is acknowledged to devices then.
	Writable bool `json:"writable"`
	// NoSpace is true while the disk is full: every bound acts as if it were reached, so that old records are evicted or
	// new ones refused.
	NoSpace   bool  `json:"no_space"`
	DiskBytes int64 `json:"disk_bytes"`
	// WrittenPerByte is how many bytes the disk was given for each byte of the records, since the start; 0 before there was a MiB of them.
	WrittenPerByte float64 `json:"written_per_byte"`
	Damaged        uint64  `json:"damaged"` // records lost to damage, since the data folder exists
	LastError      string  `json:"last_error"`
}
