package config

// What client_auth says about certificates of clients.
const (
	ClientAuthNone     = "none"     // none is asked for
	ClientAuthOptional = "optional" // one that is shown must be good; who shows none logs in by name and password
	ClientAuthRequire  = "require"  // no connection without a good one
)

// Which part of a client certificate is the user name.
const (
	IdentityCN     = "cn"      // the common name of the subject
	IdentitySANDNS = "san-dns" // the first DNS name among the subject alternative names
	IdentitySANURI = "san-uri" // the first URI among them
)

// Listener is one address on which devices speak MQTT.
type Listener struct {
	// Listen is a URL: mqtt://, mqtts://, ws:// or wss://HOST:PORT; port 0 picks a free one, an empty host means every
	// address. The path of ws and wss is the one that is served; /mqtt stands for / as well.
	Listen string `toml:"listen"`
	// Anonymous admits clients without a user name on this listener; filled in from [auth] when absent.
	Anonymous *bool `toml:"anonymous"`

	// Cert and Key are PEM files, for mqtts and wss.
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
	// ClientCA is a PEM file of the authorities whose certificates clients may show.
	ClientCA string `toml:"client_ca"`
	// CRL are revocation lists of those authorities, in PEM or DER form.
	CRL Paths `toml:"crl"`
	// ClientAuth is none, optional or require; filled in when absent: require where there is a ClientCA, else none.
	ClientAuth string `toml:"client_auth"`
	// Identity is cn, san-dns or san-uri.
	Identity string `toml:"identity"`
	// MinTLS is 1.2 or 1.3.
	MinTLS string `toml:"min_tls"`
	// Origins are the web pages whose scripts may connect over WebSocket, as https://HOST:PORT; "*" is every page. None: pages
	// of the address that is connected to. Clients that are no browser say no origin and are always let through.
	Origins []string `toml:"origins"`
}

// TLS are the files and rules of a TLS server; the zero value is a plain one.
type TLS struct {
	Cert, Key  string
	ClientCA   string
	CRL        []string
	ClientAuth string
	MinTLS     string
}

// TLS returns what the listener needs for TLS; false for a plain one.
func (l Listener) TLS() (TLS, bool) {
	return TLS{l.Cert, l.Key, l.ClientCA, l.CRL, l.ClientAuth, l.MinTLS}, l.Cert != ""
}

// TLS returns what the surface needs for TLS; false for a plain one. Whoever has no certificate of a ClientCA is not let in.
func (a Admin) TLS() (TLS, bool) {
	t := TLS{Cert: a.Cert, Key: a.Key, ClientCA: a.ClientCA, ClientAuth: ClientAuthNone, MinTLS: "1.2"}
	if a.ClientCA != "" {
		t.ClientAuth = ClientAuthRequire
	}
	return t, a.Cert != ""
}
