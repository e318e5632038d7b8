package certs

import (
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"tidegate/config"
)

// trust is whose certificates of clients are accepted.
type trust struct {
	authorities []*x509.Certificate
	pool        *x509.CertPool
	lists       []*x509.RevocationList
	// revoked are the certificates that are not accepted any more.
	revoked map[serial]time.Time
}

// serial names a certificate: serial numbers are unique for each issuer only.
type serial struct{ issuer, number string }

func loadTrust(caFile string, crlFiles []string) (*trust, error) {
	data, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read client_ca: %w", err)
	}
	t := &trust{pool: x509.NewCertPool(), revoked: map[serial]time.Time{}}
	if t.authorities, err = config.ParseAuthorities(data); err != nil {
		return nil, fmt.Errorf("client_ca: %s %w", caFile, err)
	}
	for _, a := range t.authorities {
		t.pool.AddCert(a)
	}
	for _, file := range crlFiles {
		if err := t.loadCRL(file); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *trust) loadCRL(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read crl: %w", err)
	}
	lists, err := config.ParseCRLs(data, t.authorities)
	if err != nil {
		return fmt.Errorf("crl: %s %w", file, err)
	}
	for _, l := range lists {
		for _, e := range l.RevokedCertificateEntries {
			t.revoked[serial{string(l.RawIssuer), e.SerialNumber.String()}] = e.RevocationTime
		}
	}
	t.lists = append(t.lists, lists...)
	return nil
}

// RevokedError says that a certificate was revoked.
type RevokedError struct {
	Subject, Serial string
	Since           time.Time
}

func (e *RevokedError) Error() string {
	return fmt.Sprintf("the certificate %s (serial number %s) was revoked on %s", e.Subject, e.Serial, e.Since.UTC().Format(time.DateOnly))
}

// check returns nil when no certificate of one of the chains was revoked. The authority at the end of a chain is trusted by
// name, not by a list.
func (t *trust) check(chains [][]*x509.Certificate) error {
	if len(t.revoked) == 0 {
		return nil
	}
	var first error
	for _, chain := range chains {
		err := t.revokedIn(chain)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (t *trust) revokedIn(chain []*x509.Certificate) error {
	for _, c := range chain {
		number := c.SerialNumber.String()
		if since, ok := t.revoked[serial{string(c.RawIssuer), number}]; ok {
			return &RevokedError{c.Subject.String(), number, since}
		}
	}
	return nil
}

// verify makes the chains of a client's certificates as a handshake does.
func (t *trust) verify(certs []*x509.Certificate) ([][]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	return certs[0].Verify(x509.VerifyOptions{
		Roots: t.pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (t *trust) warnings(now time.Time) []string {
	var list []string
	for _, a := range t.authorities {
		list = append(list, lifetime(fmt.Sprintf("authority %q in client_ca", a.Subject), a, now)...)
	}
	for _, l := range t.lists {
		if !l.NextUpdate.IsZero() && now.After(l.NextUpdate) {
			list = append(list, fmt.Sprintf("the revocation list of %q expired on %s: what was revoked since is not known",
				l.Issuer, l.NextUpdate.UTC().Format(time.DateOnly)))
		}
	}
	return list
}
