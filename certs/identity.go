package certs

import (
	"crypto/tls"
	"fmt"
	"strings"

	"tidegate/config"
)

// User returns the name that the client's certificate stands for, by the part of it that is the identity (config.IdentityCN
// and the like); empty without an error when the client showed no certificate. A certificate without that part, or with one
// that cannot be the name of a user, is an error: it must never be somebody without a name, nor somebody else.
func User(cs tls.ConnectionState, identity string) (string, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", nil
	}
	c := cs.PeerCertificates[0]
	name, what := c.Subject.CommonName, "common name"
	switch identity {
	case config.IdentitySANDNS:
		name, what = "", "DNS name among its subject alternative names"
		if len(c.DNSNames) > 0 {
			name = c.DNSNames[0]
		}
	case config.IdentitySANURI:
		name, what = "", "URI among its subject alternative names"
		if len(c.URIs) > 0 {
			name = c.URIs[0].String()
		}
	}
	if strings.TrimSpace(name) == "" {
		return "", fmt.Errorf("the certificate %q (serial number %s) has no %s, which is the user name here", c.Subject, c.SerialNumber, what)
	}
	plain := name
	if identity == config.IdentitySANURI {
		plain = strings.ReplaceAll(name, "/", "-") // every URI has some; rules give such a user nothing by {user}
	}
	if err := config.ValidUser(plain); err != nil {
		return "", fmt.Errorf("the %s of the certificate with serial number %s cannot be a user name: %w", what, c.SerialNumber, err)
	}
	return name, nil
}
