package link

import (
	"crypto/rsa"
	"crypto/x509"
	"sync"
	"testing"
)

// identityOf is a certificate and its key.
type identityOf struct {
	der []byte
	key *rsa.PrivateKey
}

var fixedKeys = sync.OnceValues(func() (*rsa.PrivateKey, *rsa.PrivateKey) {
	return newKey(2048), newKey(3072) // the second needs two bytes to say how long its padding is
})

// fixedCertificates are those of a client and a server.
func fixedCertificates(t testing.TB) (client, server identityOf) {
	t.Helper()
	a, b := fixedKeys()
	return identityOf{selfSigned(t, a), a}, identityOf{selfSigned(t, b), b}
}

func selfSigned(t testing.TB, key *rsa.PrivateKey) []byte {
	t.Helper()
	return issue(t, key, &key.PublicKey, nil, func(c *x509.Certificate) {}).Raw
}
