package config

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"slices"
	"strings"
	"time"
)

// listenerSchemes are the ways in which devices speak MQTT.
func listenerSchemes() []string { return []string{"mqtt", "mqtts", "ws", "wss"} }

// fileKey is a key that names a file.
type fileKey struct {
	key   string
	value *string
}

// secure checks what a listener's keys for TLS mean together with its scheme, fills in client_auth and makes paths absolute.
func (v *validator) secure(key string, l *Listener, e endpoint) {
	v.oneOf(key+".client_auth", orElse(l.ClientAuth, ClientAuthNone), ClientAuthNone, ClientAuthOptional, ClientAuthRequire)
	v.oneOf(key+".identity", l.Identity, IdentityCN, IdentitySANDNS, IdentitySANURI)
	v.oneOf(key+".min_tls", l.MinTLS, "1.2", "1.3")
	v.origins(key+".origins", l.Origins, e)
	files := []fileKey{{key + ".cert", &l.Cert}, {key + ".key", &l.Key}, {key + ".client_ca", &l.ClientCA}}
	v.files(files)
	v.crlPaths(key+".crl", l.CRL)
	if !e.encrypted() {
		for _, k := range []string{".cert", ".key", ".client_ca", ".crl", ".client_auth", ".identity", ".min_tls"} {
			if v.given(key + k) {
				v.wrong(key+k, "is only for mqtts:// and wss://; write %s, or remove it", encryptedScheme(e))
			}
		}
		l.Cert, l.ClientAuth = "", ClientAuthNone
		return
	}
	v.serverCertificate(key, l.Cert, l.Key)
	authorities := v.authorities(key+".client_ca", l.ClientCA)
	v.clientAuth(key, l)
	for i, file := range l.CRL {
		v.crl(key+".crl", i, file, authorities)
	}
}

func encryptedScheme(e endpoint) string {
	if e.scheme == "ws" {
		return "wss://"
	}
	return e.scheme + "s://"
}

func orElse(value, other string) string {
	if value == "" {
		return other
	}
	return value
}

// files makes the paths that are given absolute, and reports those that are empty.
func (v *validator) files(files []fileKey) {
	for _, f := range files {
		switch {
		case *f.value != "":
			*f.value = v.absolute(*f.value)
		case v.empty(f.key, stringKind, 0):
			v.emptyPath(f.key)
		}
	}
}

func (v *validator) crlPaths(key string, paths []string) {
	for i, p := range paths {
		if p == "" {
			v.wrongItem(key, i, "is empty; leave the key out when there is no such file")
			continue
		}
		paths[i] = v.absolute(p)
	}
}

// serverCertificate checks the pair that a server shows.
func (v *validator) serverCertificate(key, cert, private string) {
	if cert == "" && !v.given(key+".cert") {
		v.need(key+".cert", "TLS needs a certificate; `tidegate cert init` makes one for a site that has no authority of its own")
	}
	if private == "" && !v.given(key+".key") {
		v.need(key+".key", "TLS needs the key that belongs to the certificate")
	}
	v.certificate(key, cert, private)
	pair, err := tls.LoadX509KeyPair(cert, private)
	if err != nil {
		return // said already
	}
	switch leaf := pair.Leaf; {
	case len(leaf.DNSNames)+len(leaf.IPAddresses) == 0:
		v.warn(key+".cert", "%s names no host among its subject alternative names: most clients will not believe it", cert)
	case len(leaf.ExtKeyUsage) > 0 && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny):
		v.warn(key+".cert", "%s is not meant for a server: most clients will not believe it", cert)
	}
}

// clientAuth fills in and checks client_auth, and what is said about certificates of clients without asking for one.
func (v *validator) clientAuth(key string, l *Listener) {
	hasCA := l.ClientCA != "" || v.given(key+".client_ca")
	if l.ClientAuth == "" {
		l.ClientAuth = ClientAuthNone
		if hasCA {
			l.ClientAuth = ClientAuthRequire
		}
	}
	switch asks := l.ClientAuth == ClientAuthOptional || l.ClientAuth == ClientAuthRequire; {
	case asks && !hasCA:
		v.wrong(key+".client_auth", "needs the authorities of the clients' certificates: set client_ca")
	case !asks && hasCA:
		v.warn(key+".client_auth", "client_ca has no effect: no client is asked for a certificate")
	case !asks && v.given(key+".identity"):
		v.warn(key+".identity", "has no effect: no client is asked for a certificate")
	}
	if len(l.CRL) > 0 && !hasCA {
		v.wrong(key+".crl", "needs the authorities that its lists are of: set client_ca")
	}
}

// authorities reads a file of authorities and warns of those that are not valid any more.
func (v *validator) authorities(key, file string) []*x509.Certificate {
	b := v.readable(key, file)
	if len(b) == 0 {
		return nil
	}
	all, err := ParseAuthorities(b)
	if err != nil {
		v.wrong(key, "%s %s", file, err)
	}
	for _, c := range all {
		switch {
		case time.Now().After(c.NotAfter):
			v.warn(key, "%s: the authority %q expired on %s, and with it every certificate it made", file, c.Subject, c.NotAfter.UTC().Format(time.DateOnly))
		case c.BasicConstraintsValid && !c.IsCA:
			v.warn(key, "%s: %q is the certificate of no authority", file, c.Subject)
		}
	}
	return all
}

// crl checks one file of revocation lists. One that has expired is used all the same.
func (v *validator) crl(key string, i int, file string, authorities []*x509.Certificate) {
	b := v.readable(key, file)
	if len(b) == 0 || authorities == nil {
		return
	}
	lists, err := ParseCRLs(b, authorities)
	if err != nil {
		v.wrongItem(key, i, "%s %s", file, err)
		return
	}
	for _, l := range lists {
		if !l.NextUpdate.IsZero() && time.Now().After(l.NextUpdate) {
			v.warnItem(key, i, "%s: the list of %q expired on %s: what was revoked since is not known", file, l.Issuer, l.NextUpdate.UTC().Format(time.DateOnly))
		}
	}
}

// origins checks the pages that may connect over WebSocket.
func (v *validator) origins(key string, origins []string, e endpoint) {
	if len(origins) > 0 && !webSocket(e.scheme) {
		v.wrong(key, "is only for ws:// and wss://")
		return
	}
	for i, text := range origins {
		u, err := url.Parse(text)
		if text != "*" && (err != nil || u.Scheme == "" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "") {
			v.wrongItem(key, i, "%q is no origin; write it as \"https://HOST\", or \"*\" for every page", text)
		}
	}
}
