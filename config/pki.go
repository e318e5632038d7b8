package config

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// errPartial is why a file is not used of which a part can be read: it is just being written, or was cut off. The rest may have
// been what matters, such as who is revoked.
var errPartial = errors.New("holds a PEM block that is damaged or not written to its end")

// pemBlocks returns the contents of the blocks of that type. Every block there is has to be whole.
func pemBlocks(data []byte, typ string) ([][]byte, error) {
	var found [][]byte
	n := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if n++; block.Type == typ {
			found = append(found, block.Bytes)
		}
	}
	if n != bytes.Count(data, []byte("-----BEGIN")) {
		return nil, errPartial
	}
	return found, nil
}

// ParseAuthorities reads the certificates of a PEM file. Other blocks in it are passed over, as a file may hold a key too.
func ParseAuthorities(data []byte) ([]*x509.Certificate, error) {
	blocks, err := pemBlocks(data, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	all := make([]*x509.Certificate, 0, len(blocks))
	for _, der := range blocks {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in it cannot be read: %w", len(all)+1, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("holds no certificate in PEM form")
	}
	return all, nil
}

// ParseCRLs reads the revocation lists of a file: any number in PEM form, or one in DER form. Each must be signed by one of the
// authorities, which are its issuers by name.
func ParseCRLs(data []byte, authorities []*x509.Certificate) ([]*x509.RevocationList, error) {
	ders := [][]byte{data}
	if bytes.Contains(data, []byte("-----BEGIN")) {
		var err error
		if ders, err = pemBlocks(data, "X509 CRL"); err != nil {
			return nil, err
		}
	}
	if len(ders) == 0 {
		return nil, errors.New("holds no certificate revocation list")
	}
	lists := make([]*x509.RevocationList, 0, len(ders))
	for _, der := range ders {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("is no certificate revocation list in PEM or DER form: %w", err)
		}
		if !signedByOne(l, authorities) {
			return nil, fmt.Errorf("the list of %q is signed by none of the authorities in client_ca", l.Issuer.String())
		}
		lists = append(lists, l)
	}
	return lists, nil
}

func signedByOne(l *x509.RevocationList, authorities []*x509.Certificate) bool {
	for _, a := range authorities {
		if bytes.Equal(l.RawIssuer, a.RawSubject) && l.CheckSignatureFrom(a) == nil {
			return true
		}
	}
	return false
}
