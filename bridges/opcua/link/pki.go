package link

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Files and folders below the folder of a PKI.
const (
	ownCertificate = "own.der"
	ownKey         = "own.key"
	trustedFolder  = "trusted"
	rejectedFolder = "rejected"
)

const (
	// keyBits is the size of the key we make; every policy takes it.
	keyBits = 2048
	// maxRejected bounds the certificates that are kept of those refused per connection: a peer that shows a new one each
	// time must not fill the disk.
	maxRejected = 20
	// maxCertificateFile bounds what is read as a certificate.
	maxCertificateFile = 256 << 10
)

// PKI is a folder with the certificate of this client (own.der, own.key), those that it trusts (trusted) and those that
// servers showed and nobody has accepted yet (rejected).
type PKI struct {
	dir         string
	Certificate []byte // DER
	Key         *rsa.PrivateKey
	// URI is the application URI in the certificate, by which servers know this client.
	URI string
	// Expires is when the certificate ends.
	Expires time.Time
}

// OpenPKI reads the folder and makes what is missing of it: the certificate at the first start, and never again.
func OpenPKI(dir, gatewayID string) (*PKI, error) {
	for _, d := range []string{dir, filepath.Join(dir, trustedFolder), filepath.Join(dir, rejectedFolder)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("opcua: make the folder of certificates: %w", err)
		}
	}
	p := &PKI{dir: dir}
	certFile, keyFile := filepath.Join(dir, ownCertificate), filepath.Join(dir, ownKey)
	_, certErr := os.Stat(certFile)
	_, keyErr := os.Stat(keyFile)
	switch {
	case errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist):
		if err := p.create(certFile, keyFile, gatewayID); err != nil {
			return nil, fmt.Errorf("opcua: make an own certificate: %w", err)
		}
	case certErr != nil || keyErr != nil:
		return nil, fmt.Errorf("opcua: %s and %s belong together: %w; put the missing one back, or remove both to get new ones, "+
			"which every server has to trust anew", certFile, keyFile, errors.Join(certErr, keyErr))
	}
	if err := p.load(certFile, keyFile); err != nil {
		return nil, fmt.Errorf("opcua: own certificate: %w", err)
	}
	return p, nil
}

// create makes a self-signed certificate. Its time begins in the past because a gateway without a clock battery may make
// it before it knows what day it is.
func (p *PKI) create(certFile, keyFile, gatewayID string) error {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	begin := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	end := time.Now().AddDate(20, 0, 0)
	if least := time.Date(2046, 1, 1, 0, 0, 0, 0, time.UTC); end.Before(least) {
		end = least
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "Tidegate " + gatewayID, Organization: []string{"Tidegate"}},
		NotBefore:    begin, NotAfter: end,
		// Part 6, 6.2.2 asks for these, and for a self-signed one that may sign.
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment | x509.KeyUsageKeyEncipherment |
			x509.KeyUsageDataEncipherment | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{{Scheme: "urn", Opaque: "tidegate:" + url.PathEscape(gatewayID)}},
		DNSNames:              []string{host},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// The key first: a certificate without its key would look like damage after a crash in between.
	if err := writeFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})); err != nil {
		return err
	}
	if err := writeFile(certFile, der); err != nil {
		_ = os.Remove(keyFile)
		return err
	}
	return nil
}

// writeFile writes a file that appears whole, on disk and readable by its owner only, or not at all.
func writeFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	if d, err := os.Open(filepath.Dir(name)); err == nil {
		_ = d.Sync() // where folders cannot be synced, the name may be lost with the power, not the process
		_ = d.Close()
	}
	return nil
}

func (p *PKI) load(certFile, keyFile string) error {
	der, err := readCertificate(certFile)
	if err != nil {
		return err
	}
	leaf, err := leafOf(der)
	if err != nil {
		return fmt.Errorf("read %s: %w", certFile, err)
	}
	data, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	if p.Key, err = parseKey(data); err != nil {
		return fmt.Errorf("read %s: %w", keyFile, err)
	}
	public, ok := leaf.PublicKey.(*rsa.PublicKey)
	if !ok || !public.Equal(&p.Key.PublicKey) {
		return fmt.Errorf("%s is not the key of %s", keyFile, certFile)
	}
	if len(leaf.URIs) == 0 {
		return fmt.Errorf("%s has no application URI among its names; servers would refuse it", certFile)
	}
	p.Certificate, p.URI, p.Expires = leaf.Raw, leaf.URIs[0].String(), leaf.NotAfter
	return nil
}

// parseKey takes PKCS#8 and PKCS#1, in PEM or DER.
func parseKey(data []byte) (*rsa.PrivateKey, error) {
	if block, _ := pem.Decode(data); block != nil {
		data = block.Bytes
	}
	if key, err := x509.ParsePKCS1PrivateKey(data); err == nil {
		return key, nil
	}
	any, err := x509.ParsePKCS8PrivateKey(data)
	if err != nil {
		return nil, errors.New("it is no private key in PKCS#8 or PKCS#1, in PEM or DER")
	}
	key, ok := any.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("it is no RSA key, and the security policies know no other")
	}
	return key, nil
}

// readCertificate reads a file in DER or PEM and returns DER.
func readCertificate(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxCertificateFile {
		return nil, fmt.Errorf("%s is no file of a certificate", name)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var der []byte
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			der = append(der, block.Bytes...)
		}
	}
	if der == nil {
		return data, nil
	}
	return der, nil
}

// leafOf parses a certificate, or a chain of which it is the first.
func leafOf(der []byte) (*x509.Certificate, error) {
	chain, err := x509.ParseCertificates(der)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return chain[0], nil
}
