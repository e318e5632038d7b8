package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// How long certificates made here are valid. A device in a wall is not visited often; an authority outlives all of them.
const (
	AuthorityLife = 20 * 365 * 24 * time.Hour
	ServerLife    = 5 * 365 * 24 * time.Hour
	DeviceLife    = 5 * 365 * 24 * time.Hour
	// crlLife is how long a list is current: the tool that makes it is run by hand.
	crlLife = 10 * 365 * 24 * time.Hour
	// backdated is how far in the past a certificate begins: small machines have wrong clocks.
	backdated = 24 * time.Hour
)

// Pair is a certificate and its private key in PEM form.
type Pair struct{ Cert, Key []byte }

// Authority makes certificates. Make it with NewAuthority or LoadAuthority.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewAuthority makes an authority of that name.
func NewAuthority(name string, now time.Time) (*Authority, Pair, error) {
	t, err := template(name, AuthorityLife, now)
	if err != nil {
		return nil, Pair{}, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, Pair{}, fmt.Errorf("make a key: %w", err)
	}
	p, err := sign(t, t, key, key)
	if err != nil {
		return nil, Pair{}, err
	}
	a, err := LoadAuthority(p)
	return a, p, err
}

// LoadAuthority reads an authority that NewAuthority made.
func LoadAuthority(p Pair) (*Authority, error) {
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("it is no authority")
	}
	return &Authority{pair.Leaf, key}, nil
}

// Server makes a certificate for a server that is reached by these host names and addresses; the first is its name.
func (a *Authority) Server(hosts []string, life time.Duration, now time.Time) (Pair, error) {
	if len(hosts) == 0 {
		return Pair{}, errors.New("a server certificate needs a host name or an address")
	}
	t, err := template(hosts[0], life, now)
	if err != nil {
		return Pair{}, err
	}
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return a.issue(t)
}

// Device makes a certificate for a client, whose common name is the name.
func (a *Authority) Device(name string, life time.Duration, now time.Time) (Pair, error) {
	t, err := template(name, life, now)
	if err != nil {
		return Pair{}, err
	}
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.issue(t)
}

func (a *Authority) issue(t *x509.Certificate) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make a key: %w", err)
	}
	if t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	return sign(t, a.cert, key, a.key)
}

// Revoke returns the list old, which may be empty, with the certificates added, in PEM form.
func (a *Authority) Revoke(old []byte, revoked []*x509.Certificate, now time.Time) ([]byte, error) {
	t := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.Add(-backdated), NextUpdate: now.Add(crlLife)}
	known := map[string]bool{}
	if block, _ := pem.Decode(old); block != nil {
		before, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read the list: %w", err)
		}
		t.Number.Add(before.Number, t.Number)
		t.RevokedCertificateEntries = before.RevokedCertificateEntries
		for _, e := range before.RevokedCertificateEntries {
			known[e.SerialNumber.String()] = true
		}
	}
	for _, c := range revoked {
		if err := c.CheckSignatureFrom(a.cert); err != nil {
			return nil, fmt.Errorf("the certificate %q is not of this authority: %w", c.Subject, err)
		}
		if !known[c.SerialNumber.String()] {
			t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: now})
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, a.cert, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the list: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
}

func template(name string, life time.Duration, now time.Time) (*x509.Certificate, error) {
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // RFC 5280, 4.1.2.2: positive, at most 20 bytes
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: number.Add(number, big.NewInt(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(life),
	}, nil
}

func sign(t, parent *x509.Certificate, key *ecdsa.PrivateKey, by crypto.Signer) (Pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), by)
	if err != nil {
		return Pair{}, fmt.Errorf("sign the certificate of %q: %w", t.Subject.CommonName, err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("write the key of %q: %w", t.Subject.CommonName, err)
	}
	return Pair{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}, nil
}
