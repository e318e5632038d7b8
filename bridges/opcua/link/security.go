package link

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// Security is a policy and a mode.
type Security struct {
	Policy string // URI
	Mode   ua.MessageSecurityMode
}

// ParseSecurity reads "None" or POLICY/MODE. Broken policies are refused.
func ParseSecurity(text string) (Security, error) {
	if text == "None" {
		return Security{ua.SecurityPolicyURINone, ua.MessageSecurityModeNone}, nil
	}
	policy, mode, _ := strings.Cut(text, "/")
	s := Security{Policy: ua.SecurityPolicyURIPrefix + policy}
	switch mode {
	case "Sign":
		s.Mode = ua.MessageSecurityModeSign
	case "SignAndEncrypt":
		s.Mode = ua.MessageSecurityModeSignAndEncrypt
	}
	if strength(s.Policy) < 1 || s.Mode == 0 {
		return Security{}, fmt.Errorf("security %q is neither \"None\" nor one of the policies Basic256Sha256, Aes128_Sha256_RsaOaep "+
			"and Aes256_Sha256_RsaPss with /Sign or /SignAndEncrypt", text)
	}
	return s, nil
}

// String writes s as ParseSecurity reads it.
func (s Security) String() string {
	policy := strings.TrimPrefix(s.Policy, ua.SecurityPolicyURIPrefix)
	switch s.Mode {
	case ua.MessageSecurityModeNone:
		return policy
	case ua.MessageSecurityModeSign:
		return policy + "/Sign"
	case ua.MessageSecurityModeSignAndEncrypt:
		return policy + "/SignAndEncrypt"
	default:
		return fmt.Sprintf("%s/%d", policy, s.Mode)
	}
}

// strength orders the policies that are not broken, by ours and not by the server's word; -1: not one of them.
func strength(policy string) int {
	switch policy {
	case ua.SecurityPolicyURINone:
		return 0
	case ua.SecurityPolicyURIBasic256Sha256:
		return 1
	case ua.SecurityPolicyURIAes128Sha256RsaOaep:
		return 2
	case ua.SecurityPolicyURIAes256Sha256RsaPss:
		return 3
	default:
		return -1
	}
}

// satisfies reports whether s is no less than least, in policy and in mode.
func (s Security) satisfies(least Security) bool {
	return strength(s.Policy) >= strength(least.Policy) && s.Mode >= least.Mode && s.Mode <= ua.MessageSecurityModeSignAndEncrypt &&
		(s.Mode == ua.MessageSecurityModeNone) == (strength(s.Policy) == 0)
}

const transportBinary = "http://opcfoundation.org/UA-Profile/Transport/uatcp-uasc-uabinary"

// Binary reports whether the endpoint speaks OPC UA Binary over TCP, the one transport that there is here.
func (e Endpoint) Binary() bool { return e.Transport == "" || e.Transport == transportBinary }

// choose finds the endpoint that has exactly the configured security, else the weakest that has more. The order in which
// the server lists them and the level it claims for them count for nothing.
func choose(endpoints []Endpoint, least Security) (Endpoint, error) {
	best, offered := -1, []string{}
	rank := func(e Endpoint) int { return 4*strength(e.Policy) + int(e.Mode) }
	for i, e := range endpoints {
		s := Security{e.Policy, ua.MessageSecurityMode(e.Mode)}
		if !e.Binary() {
			continue
		}
		offered = append(offered, s.String())
		if s == least {
			return e, nil
		}
		if s.satisfies(least) && (best < 0 || rank(e) < rank(endpoints[best])) {
			best = i
		}
	}
	if best < 0 {
		return Endpoint{}, fmt.Errorf("the server offers %s; nothing of that is as secure as the configured %s",
			quoted(offered), least)
	}
	return endpoints[best], nil
}

func quoted(list []string) string {
	if len(list) == 0 {
		return "no endpoint"
	}
	return strings.Join(list, ", ")
}

// discover asks the server at the configured URL for its endpoints, over a channel without security: what it says is
// checked by what happens next, not believed.
func discover(ctx context.Context, dial dialer, endpoint string) ([]Endpoint, error) {
	c, err := dialChannel(ctx, dial, endpoint, protection{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone})
	if err != nil {
		return nil, err
	}
	defer c.close()
	return c.endpoints(ctx, endpoint)
}

func (c *channel) endpoints(ctx context.Context, endpoint string) ([]Endpoint, error) {
	var p endpointsResponse
	for _, as := range []string{endpoint, ""} { // some servers know themselves by another name, and have none for this one
		if err := c.call(ctx, &ua.GetEndpointsRequest{EndpointURL: as}, NodeID{}, requestTimeout, &p); err != nil {
			return nil, fmt.Errorf("ask %s for its endpoints: %w", endpoint, err)
		}
		if len(p.endpoints) > 0 {
			break
		}
	}
	return p.endpoints, nil
}

// Discover lists the endpoints of a server, each under the host by which it was asked: servers announce names that only
// they can resolve.
func Discover(ctx context.Context, endpoint string) ([]Endpoint, error) {
	list, err := discover(ctx, dialTCP, endpoint)
	for i := range list {
		list[i].URL = reachable(list[i].URL, endpoint)
	}
	return list, err
}

// reachable is an announced URL with host and port of the configured one.
func reachable(announced, configured string) string {
	c, err := url.Parse(configured)
	if err != nil {
		return configured
	}
	a, err := url.Parse(announced)
	if err != nil || a.Scheme != "opc.tcp" {
		return configured
	}
	a.Host = c.Host
	return a.String()
}

// protectionFor is how the channel to an endpoint is protected, after its certificate was found trustworthy.
func (l *Link) protectionFor(e Endpoint) (protection, error) {
	p := protection{policy: e.Policy, mode: ua.MessageSecurityMode(e.Mode)}
	if p.none() {
		return p, nil
	}
	leaf, err := l.verify(e.Certificate)
	if err != nil {
		return protection{}, err
	}
	p.own, p.key, p.remote, p.remoteKey = l.o.PKI.Certificate, l.o.PKI.Key, leaf, nil
	if p.remoteKey, err = rsaKey(leaf); err != nil {
		return protection{}, err
	}
	return p, nil
}

// verify returns the leaf of a server certificate that is trusted.
func (l *Link) verify(der []byte) ([]byte, error) {
	if l.o.PKI == nil {
		return nil, errors.New("there is no folder of certificates")
	}
	u, err := url.Parse(l.o.Endpoint)
	if err != nil {
		return nil, err
	}
	leaf, err := l.o.PKI.verify(l.o.Name, u.Hostname(), der)
	if err != nil {
		return nil, err
	}
	return leaf.Raw, nil
}

func rsaKey(der []byte) (*rsa.PublicKey, error) {
	leaf, err := leafOf(der)
	if err != nil {
		return nil, err
	}
	key, ok := leaf.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("the certificate has no RSA key")
	}
	return key, nil
}

// identity makes the user token for an endpoint. A password leaves only encrypted: by the token's policy, or by a channel
// that encrypts everything.
func (l *Link) identity(e Endpoint, p protection, nonce []byte) (any, error) {
	if l.o.User == "" {
		t, err := tokenOf(e, ua.UserTokenTypeAnonymous)
		if err != nil {
			return nil, errors.New("the server takes no anonymous users: set username and password")
		}
		return &ua.AnonymousIdentityToken{PolicyID: t.ID}, nil
	}
	t, err := l.passwordToken(e, p)
	if err != nil {
		return nil, err
	}
	token := &ua.UserNameIdentityToken{PolicyID: t.ID, UserName: l.o.User}
	policy := t.Policy
	if policy == "" {
		policy = p.policy
	}
	if policy == ua.SecurityPolicyURINone {
		token.Password = []byte(l.o.Password) // inside of an encrypted channel: passwordToken saw to it
		return token, nil
	}
	certificate := p.remote
	if certificate == nil {
		// The channel has no security, so nobody has looked at the certificate yet by which the password is encrypted.
		if certificate, err = l.verify(e.Certificate); err != nil {
			return nil, fmt.Errorf("encrypt the password: %w", err)
		}
	}
	key, err := rsaKey(certificate)
	if err != nil {
		return nil, fmt.Errorf("encrypt the password: %w", err)
	}
	algo, err := uapolicy.Asymmetric(policy, l.o.PKI.Key, key)
	if err != nil {
		return nil, fmt.Errorf("encrypt the password: %w", err)
	}
	if token.Password, err = algo.Encrypt(passwordSecret(l.o.Password, nonce)); err != nil {
		return nil, fmt.Errorf("encrypt the password: %w", err)
	}
	token.EncryptionAlgorithm = algo.EncryptionURI()
	return token, nil
}

// passwordSecret is what is encrypted: length, password, and the nonce that makes it good for once [Part 4, 7.41.2.2].
func passwordSecret(password string, nonce []byte) []byte {
	n := len(password) + len(nonce)
	secret := []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}
	secret = append(secret, password...)
	return append(secret, nonce...)
}

// passwordToken finds a way to log in by password that keeps it secret.
func (l *Link) passwordToken(e Endpoint, p protection) (Token, error) {
	found := false
	var best *Token
	for _, t := range e.Tokens {
		if ua.UserTokenType(t.Type) != ua.UserTokenTypeUserName {
			continue
		}
		found = true
		policy := t.Policy
		if policy == "" {
			policy = p.policy
		}
		encrypts := strength(policy) > 0
		inside := policy == ua.SecurityPolicyURINone && p.mode == ua.MessageSecurityModeSignAndEncrypt
		if (encrypts || inside) && (best == nil || strength(policy) > strength(best.Policy)) {
			best = &t
		}
	}
	switch {
	case best != nil:
		return *best, nil
	case found:
		return Token{}, fmt.Errorf("the password of user %q would leave without encryption over %s: set security to a policy with "+
			"/SignAndEncrypt, or have the server encrypt passwords by Basic256Sha256 or newer", l.o.User, Security{p.policy, p.mode})
	default:
		return Token{}, errors.New("the server takes no user names: leave username and password out")
	}
}

func tokenOf(e Endpoint, kind ua.UserTokenType) (Token, error) {
	for _, t := range e.Tokens {
		if ua.UserTokenType(t.Type) == kind {
			return t, nil
		}
	}
	return Token{}, fmt.Errorf("no user token of the kind %s", kind)
}
