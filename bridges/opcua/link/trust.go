package link

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
)

// UntrustedError is a server certificate that nobody accepted yet.
type UntrustedError struct {
	Name       string // of the connection
	Subject    string
	Thumbprint string
	File       string // where it is kept for the decision
}

func (e *UntrustedError) Error() string {
	return fmt.Sprintf("the certificate of the server (%s, thumbprint %s) is not trusted; it is in %s: compare the thumbprint "+
		"with the server's and accept it by `tidegate opcua trust %s`", e.Subject, e.Thumbprint, e.File, e.Name)
}

// verify decides whether a server is who it should be: its certificate is in the trusted folder, or signed by a CA there
// and made out to host. In both cases its time has to be right and its key one that the policies allow. An unknown
// certificate is kept in the rejected folder under the connection's name.
func (p *PKI) verify(name, host string, der []byte) (*x509.Certificate, error) {
	chain, err := x509.ParseCertificates(der)
	if err != nil || len(chain) == 0 {
		return nil, errors.New("the server shows no certificate that can be read; a security policy other than None needs one")
	}
	leaf := chain[0]
	key, ok := leaf.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the certificate of the server (%s) has a key of the kind %s; the security policies need RSA",
			subject(leaf), leaf.PublicKeyAlgorithm)
	}
	if bits := key.N.BitLen(); bits < 2048 || bits > 4096 {
		return nil, fmt.Errorf("the certificate of the server (%s) has a key of %d bits; the security policies need 2048 to 4096",
			subject(leaf), bits)
	}
	trusted, err := p.trusted()
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(trusted, func(t *x509.Certificate) bool { return bytes.Equal(t.Raw, leaf.Raw) }) {
		if err := verifyByCA(trusted, chain, host); err != nil {
			return nil, p.reject(name, leaf, err)
		}
	}
	if now := time.Now(); now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate of the server (%s) is valid from %s to %s, and it is %s here: renew it, or set the clock",
			subject(leaf), day(leaf.NotBefore), day(leaf.NotAfter), day(now))
	}
	return leaf, nil
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// errNoCA: nothing in the trusted folder signs anything.
var errNoCA = errors.New("no trusted CA")

func verifyByCA(trusted, chain []*x509.Certificate, host string) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, t := range trusted {
		if t.IsCA {
			roots.AddCert(t)
			found = true
		}
	}
	if !found {
		return errNoCA
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	leaf := chain[0]
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return err
	}
	// Any device of the plant may have a certificate of its CA, so the name must be right as well.
	if ip := net.ParseIP(host); ip != nil && slices.ContainsFunc(leaf.IPAddresses, ip.Equal) {
		return nil
	}
	return leaf.VerifyHostname(host)
}

// trusted reads the trusted folder anew each time, so that a certificate counts as soon as it is there. A file that is no
// certificate is an error: silently passing over it would look like distrust.
func (p *PKI) trusted() ([]*x509.Certificate, error) {
	dir := filepath.Join(p.dir, trustedFolder)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the trusted certificates: %w", err)
	}
	var list []*x509.Certificate
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		name := filepath.Join(dir, e.Name())
		der, err := readCertificate(name)
		if err != nil {
			return nil, fmt.Errorf("read the trusted certificates: %w", err)
		}
		certs, err := x509.ParseCertificates(der)
		if err != nil {
			return nil, fmt.Errorf("read the trusted certificates: %s is neither DER nor PEM: %w", name, err)
		}
		list = append(list, certs...)
	}
	return list, nil
}

func (p *PKI) reject(name string, leaf *x509.Certificate, why error) error {
	print := hex.EncodeToString(thumbprint(leaf.Raw))
	file := filepath.Join(p.dir, rejectedFolder, name+"-"+print+".der")
	e := &UntrustedError{Name: name, Subject: subject(leaf), Thumbprint: print, File: file}
	if _, err := os.Stat(file); err != nil {
		if list, err := p.rejected(name); err != nil || len(list) >= maxRejected {
			return fmt.Errorf("%w (not kept: there are %d rejected ones of it already)", e, len(list))
		}
		if err := writeFile(file, leaf.Raw); err != nil {
			return fmt.Errorf("%w (and it cannot be kept: %w)", e, err)
		}
	}
	if !errors.Is(why, errNoCA) {
		return fmt.Errorf("%w (by the trusted CAs: %w)", e, why)
	}
	return e
}

// subject is who a certificate says it is of, without what could do something to a terminal: strangers write it.
func subject(c *x509.Certificate) string {
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, c.Subject.String())
	if len(text) > 200 {
		return strings.ToValidUTF8(text[:200], "") + "…"
	}
	return text
}

// rejected lists the files of the certificates refused for a connection.
func (p *PKI) rejected(name string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(p.dir, rejectedFolder))
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), name+"-")
		if ok && strings.TrimSuffix(rest, ".der") != rest && len(rest) == 2*20+len(".der") {
			list = append(list, filepath.Join(p.dir, rejectedFolder, e.Name()))
		}
	}
	return list, nil
}

// Accepted is a certificate that Trust moved to the trusted folder.
type Accepted struct {
	File, Subject, Thumbprint string
	Expires                   time.Time
}

// Trust accepts the certificate that was refused for the connection of that name, in the folder that OpenPKI was given.
// Where several were refused, name must be the thumbprint of one, or its beginning: at least 8 digits.
func Trust(dir, name string) (Accepted, error) {
	p := &PKI{dir: dir}
	list, err := p.rejected(name)
	if err == nil && len(list) == 0 {
		list, err = p.byThumbprint(name)
	}
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return Accepted{}, fmt.Errorf("opcua: read the rejected certificates: %w", err)
	case len(list) == 0:
		return Accepted{}, fmt.Errorf("opcua: no certificate was refused for %q in %s; one is kept there when a connection meets it",
			name, filepath.Join(dir, rejectedFolder))
	case len(list) > 1:
		return Accepted{}, fmt.Errorf("opcua: %d certificates were refused for %q: %s; give the thumbprint of the right one instead of the name",
			len(list), name, strings.Join(list, ", "))
	}
	der, err := readCertificate(list[0])
	if err != nil {
		return Accepted{}, fmt.Errorf("opcua: read the certificate: %w", err)
	}
	leaf, err := leafOf(der)
	if err != nil {
		return Accepted{}, fmt.Errorf("opcua: read the certificate %s: %w", list[0], err)
	}
	to := filepath.Join(dir, trustedFolder, filepath.Base(list[0]))
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return Accepted{}, fmt.Errorf("opcua: trust %s: %w", list[0], err)
	}
	if err := os.Rename(list[0], to); err != nil {
		return Accepted{}, fmt.Errorf("opcua: trust %s: %w", list[0], err)
	}
	return Accepted{File: to, Subject: subject(leaf), Thumbprint: hex.EncodeToString(thumbprint(leaf.Raw)), Expires: leaf.NotAfter}, nil
}

func (p *PKI) byThumbprint(beginning string) ([]string, error) {
	beginning = strings.ToLower(strings.ReplaceAll(beginning, ":", ""))
	if len(beginning) < 8 || strings.Trim(beginning, "0123456789abcdef") != "" {
		return nil, nil
	}
	entries, err := os.ReadDir(filepath.Join(p.dir, rejectedFolder))
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		print := strings.TrimSuffix(e.Name(), ".der")
		if i := strings.LastIndexByte(print, '-'); i >= 0 && strings.HasPrefix(print[i+1:], beginning) {
			list = append(list, filepath.Join(p.dir, rejectedFolder, e.Name()))
		}
	}
	return list, nil
}

// Thumbprint names a certificate, or the first of a chain, as OPC UA tools do: by its SHA-1.
func Thumbprint(der []byte) []byte {
	if leaf, err := leafOf(der); err == nil {
		return thumbprint(leaf.Raw)
	}
	return thumbprint(der)
}
