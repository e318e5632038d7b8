// Package certs is the certificate side of everything that listens with TLS: a Server shows a certificate and judges those of
// its clients by files that may be replaced at any time (server.go, trust.go), and says which user a client's certificate
// stands for (identity.go). An Authority makes certificates for a site that has nobody else to ask (authority.go).
//
// It opens no connection, watches no file and starts no goroutine: whoever runs a Server calls Reload. A file that cannot be
// used never replaces one that can.
//
// # Limits
//
// Revocation is what the lists on disk say: no OCSP server is asked, as a gateway must let its devices in without a line. A list
// that has expired is used and warned of. A connection that is open is judged again for revocation only; the other rules hold
// from the next handshake on.
//
// Start reading at Server.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/config"
)

// expiresSoon is how long before its end a certificate is warned of.
const expiresSoon = 14 * 24 * time.Hour

// Server is the TLS of one listener. It is safe for concurrent use.
type Server struct {
	c     config.TLS
	base  *tls.Config
	state atomic.Pointer[state]

	mu       sync.Mutex // serializes Reload and guards what follows
	pair     group      // cert and key
	clients  group      // client_ca and crl
	problems atomic.Pointer[[]string]
}

// state is what is in use, swapped as a whole.
type state struct {
	pair   *tls.Certificate
	trust  *trust // nil: no client is asked for a certificate
	config *tls.Config
}

// group is files that only make sense together.
type group struct {
	files  []string
	stamps []stamp // of the files as they were read last
	err    error   // why what is on disk now is not in use
}

// NewServer reads the files of c, which has a certificate at least.
func NewServer(c config.TLS) (*Server, error) {
	s := &Server{c: c, pair: group{files: []string{c.Cert, c.Key}}}
	if c.ClientAuth != config.ClientAuthNone {
		s.clients.files = append([]string{c.ClientCA}, c.CRL...)
	}
	s.base = &tls.Config{MinVersion: minVersion(c.MinTLS), GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return s.state.Load().config, nil
	}}
	_, err := s.Reload()
	if s.state.Load() == nil {
		return nil, err
	}
	return s, nil
}

func minVersion(text string) uint16 {
	if text == "1.3" {
		return tls.VersionTLS13
	}
	return tls.VersionTLS12
}

// Config returns what a listener needs. It stays the same and follows every Reload; connections that are open keep what they
// were made with.
func (s *Server) Config() *tls.Config { return s.base }

// Reload reads files that changed since they were read last, and returns the keys of those that are in use from now on: cert
// stands for cert and key, which are replaced together or not at all. What cannot be used is in err, and what was in use
// before stays so; it is tried again with the next Reload, as a file may just be half written.
func (s *Server) Reload() (changed []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.state.Load()
	next := state{}
	if old != nil {
		next = *old
	}
	if s.pair.changed() {
		if s.pair.err = s.readPair(&next); s.pair.err == nil {
			changed = append(changed, "cert")
		}
	}
	if len(s.clients.files) > 0 && s.clients.changed() {
		if s.clients.err = s.readClients(&next); s.clients.err == nil {
			changed = append(changed, "client_ca")
		}
	}
	err = errors.Join(s.pair.err, s.clients.err)
	s.noteProblems()
	if next.pair == nil || len(s.clients.files) > 0 && next.trust == nil {
		return nil, err // the first time, and there is nothing to go on with
	}
	if len(changed) > 0 {
		next.config = s.configOf(next)
		s.state.Store(&next)
	}
	return changed, err
}

func (s *Server) noteProblems() {
	var list []string
	for _, err := range []error{s.pair.err, s.clients.err} {
		if err != nil {
			list = append(list, err.Error()+"; the earlier one is in use")
		}
	}
	s.problems.Store(&list)
}

func (s *Server) readPair(next *state) error {
	pair, err := loadPair(s.c.Cert, s.c.Key)
	if err != nil {
		return fmt.Errorf("certificate %s and key %s: %s", s.c.Cert, s.c.Key, reason(err))
	}
	next.pair = &pair
	return nil
}

// loadPair is tls.LoadX509KeyPair that takes no chain which is not written to its end.
func loadPair(cert, key string) (tls.Certificate, error) {
	chain, err := os.ReadFile(cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	private, err := os.ReadFile(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(chain, private)
	if err == nil {
		_, err = config.ParseAuthorities(chain)
	}
	return pair, err
}

// reason is what err says without words that repeat where it is from.
func reason(err error) string { return strings.TrimPrefix(err.Error(), "tls: ") }

func (s *Server) readClients(next *state) error {
	t, err := loadTrust(s.c.ClientCA, s.c.CRL)
	if err != nil {
		return err
	}
	next.trust = t
	return nil
}

func (s *Server) configOf(st state) *tls.Config {
	c := &tls.Config{MinVersion: s.base.MinVersion, Certificates: []tls.Certificate{*st.pair}, VerifyConnection: s.Check}
	if st.trust == nil {
		return c
	}
	c.ClientCAs = st.trust.pool
	c.ClientAuth = tls.VerifyClientCertIfGiven
	if s.c.ClientAuth == config.ClientAuthRequire {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c
}

// Check returns why the client of a connection may not stay, by what is in use now: its certificate was revoked. A session that
// was resumed is judged again as a whole, since its certificate was accepted by the authorities of another time. Nil for a
// client without a certificate.
func (s *Server) Check(cs tls.ConnectionState) error {
	t := s.state.Load().trust
	if t == nil || len(cs.PeerCertificates) == 0 {
		return nil
	}
	chains := cs.VerifiedChains
	if cs.DidResume {
		var err error
		if chains, err = t.verify(cs.PeerCertificates); err != nil {
			return err
		}
	}
	return t.check(chains)
}

// Warnings are what somebody has to look at, in sentences: files that cannot be used, certificates and revocation lists that
// have expired or are about to.
func (s *Server) Warnings(now time.Time) []string {
	list := append([]string(nil), *s.problems.Load()...)
	st := s.state.Load()
	if leaf := st.pair.Leaf; leaf != nil {
		list = append(list, lifetime("certificate "+s.c.Cert, leaf, now)...)
	}
	if st.trust != nil {
		list = append(list, st.trust.warnings(now)...)
	}
	return list
}

// lifetime says when c is about to end, or has.
func lifetime(what string, c *x509.Certificate, now time.Time) []string {
	day := c.NotAfter.UTC().Format(time.DateOnly)
	switch {
	case now.After(c.NotAfter):
		return []string{what + " expired on " + day}
	case now.Add(expiresSoon).After(c.NotAfter):
		return []string{what + " expires on " + day}
	case now.Before(c.NotBefore):
		return []string{what + " is not valid before " + c.NotBefore.UTC().Format(time.DateOnly) + "; is the clock right?"}
	}
	return nil
}

// stamp tells one state of a file from another without reading it.
type stamp struct {
	info os.FileInfo // nil: not there
}

func stampOf(path string) stamp {
	info, err := os.Stat(path) // follows symbolic links, by which files are often replaced
	if err != nil {
		return stamp{}
	}
	return stamp{info}
}

func (s stamp) equal(o stamp) bool {
	if s.info == nil || o.info == nil {
		return s.info == nil && o.info == nil
	}
	return s.info.Size() == o.info.Size() && s.info.ModTime().Equal(o.info.ModTime()) && os.SameFile(s.info, o.info)
}

// changed reports whether the files must be read, and notes how they are now. Files that could not be used are read again every
// time: there is no telling when they are whole.
func (g *group) changed() bool {
	now := make([]stamp, len(g.files))
	same := len(g.stamps) == len(g.files)
	for i, f := range g.files {
		now[i] = stampOf(f)
		same = same && now[i].equal(g.stamps[i])
	}
	g.stamps = now
	return !same || g.err != nil
}
