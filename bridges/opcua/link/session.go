package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

const (
	// connectTimeout bounds one attempt, from the name look-up to the open channel.
	connectTimeout = 15 * time.Second
	// requestTimeout bounds an ordinary request, and itemsTimeout one for up to mostPerCall monitored items.
	requestTimeout = 5 * time.Second
	itemsTimeout   = 20 * time.Second
)

// Session is an activated session on an open channel.
type Session struct {
	c          *channel
	endpoint   string
	token      NodeID
	namespaces []string
	limits     limits
}

// credentials are what is needed to go on with a session on another channel.
type credentials struct {
	Token   NodeID        `json:"token"`
	Nonce   []byte        `json:"nonce"` // of the server, for the next signature
	Timeout time.Duration `json:"timeout"`
}

// connect opens a channel to the endpoint that satisfies the configured security.
func (l *Link) connect(ctx context.Context) (*channel, Endpoint, error) {
	endpoints, err := discover(ctx, l.o.dial, l.o.Endpoint)
	if err != nil {
		return nil, Endpoint{}, err
	}
	e, err := choose(endpoints, l.o.Security)
	if err != nil {
		return nil, Endpoint{}, fmt.Errorf("choose an endpoint of %s: %w", l.o.Endpoint, err)
	}
	p, err := l.protectionFor(e)
	if err != nil {
		return nil, Endpoint{}, fmt.Errorf("connect to %s: %w", l.o.Endpoint, err)
	}
	e.URL = reachable(e.URL, l.o.Endpoint)
	p.lifetime = l.o.TokenLifetime
	c, err := dialChannel(ctx, l.o.dial, e.URL, p)
	return c, e, err
}

// createSession makes a session that is yet to be activated. It returns the endpoint as the server describes it here,
// where the channel vouches for it.
func (l *Link) createSession(ctx context.Context, c *channel, e Endpoint) (credentials, Endpoint, error) {
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce) // never fails: crypto/rand ends the process instead
	req := &ua.CreateSessionRequest{
		ClientDescription: &ua.ApplicationDescription{
			ApplicationURI: l.applicationURI(), ProductURI: "urn:tidegate",
			ApplicationName: ua.NewLocalizedText("Tidegate"), ApplicationType: ua.ApplicationTypeClient,
		},
		EndpointURL: e.URL, SessionName: "tidegate " + l.o.Name, ClientNonce: nonce, ClientCertificate: c.own,
		RequestedSessionTimeout: float64(l.sessionTimeout() / time.Millisecond),
		MaxResponseMessageSize:  maxMessageBytes,
	}
	var p createSessionResponse
	if err := c.call(ctx, req, NodeID{}, requestTimeout, &p); err != nil {
		return credentials{}, e, fmt.Errorf("create a session: %w", err)
	}
	if err := c.checkSession(&p, nonce); err != nil {
		return credentials{}, e, fmt.Errorf("create a session: %w", err)
	}
	for _, own := range p.endpoints {
		if own.Policy == e.Policy && own.Mode == e.Mode && len(own.Tokens) > 0 {
			e.Tokens = own.Tokens
			break
		}
	}
	timeout := time.Duration(min(p.timeout, 1e9)) * time.Millisecond
	return credentials{Token: p.token, Nonce: p.nonce, Timeout: timeout}, e, nil
}

// checkSession verifies that who answers owns the key of the certificate that the channel was opened with.
func (c *channel) checkSession(p *createSessionResponse, nonce []byte) error {
	if p.token.IsZero() {
		return errors.New("the server gives no authentication token")
	}
	if !(p.timeout > 0) {
		return fmt.Errorf("the server grants a session for %v ms", p.timeout)
	}
	if c.none() {
		return nil
	}
	leaf, err := leafOf(p.certificate)
	if err != nil || string(leaf.Raw) != string(c.remote) {
		return errors.New("the server shows another certificate than the trusted one")
	}
	algo, err := uapolicy.Asymmetric(c.policy, c.key, c.remoteKey)
	if err != nil {
		return err
	}
	signed := append(append([]byte{}, c.own...), nonce...)
	if err := algo.VerifySignature(signed, p.signature); err != nil {
		return errors.New("the server's signature is wrong: it may not own the certificate that it shows")
	}
	return nil
}

// activate puts a session to use on this channel: a new one, or one from before the connection was lost.
func (l *Link) activate(ctx context.Context, c *channel, e Endpoint, cr *credentials) error {
	identity, err := l.identity(e, c.protection, cr.Nonce)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	req := &ua.ActivateSessionRequest{
		ClientSignature: &ua.SignatureData{}, LocaleIDs: []string{"en"},
		UserIdentityToken: ua.NewExtensionObject(identity), UserTokenSignature: &ua.SignatureData{},
	}
	if !c.none() {
		algo, err := uapolicy.Asymmetric(c.policy, c.key, c.remoteKey)
		if err != nil {
			return fmt.Errorf("log in: %w", err)
		}
		signature, err := algo.Signature(append(append([]byte{}, c.remote...), cr.Nonce...))
		if err != nil {
			return fmt.Errorf("log in: %w", err)
		}
		req.ClientSignature = &ua.SignatureData{Algorithm: algo.SignatureURI(), Signature: signature}
	}
	var p activateSessionResponse
	if err := c.call(ctx, req, cr.Token, requestTimeout, &p); err != nil {
		if l.o.User != "" {
			return fmt.Errorf("log in as %q: %w", l.o.User, err)
		}
		return fmt.Errorf("log in: %w", err)
	}
	cr.Nonce = p.nonce
	return nil
}

// closeSession ends a session on the server, as far as that works.
func (c *channel) closeSession(ctx context.Context, token NodeID) error {
	return c.call(ctx, &ua.CloseSessionRequest{DeleteSubscriptions: true}, token, time.Second, &closeSessionResponse{})
}

func (l *Link) applicationURI() string {
	if l.o.PKI != nil {
		return l.o.PKI.URI
	}
	return l.o.URI
}

// sessionTimeout is how long a session shall outlive its connection: as long as values are to be kept for us.
func (l *Link) sessionTimeout() time.Duration {
	return max(time.Minute, l.o.Budget+30*time.Second)
}

// newSession creates and activates a session. One that cannot be activated is closed, or each attempt with a wrong
// password would use up one of the few that small servers have.
func (l *Link) newSession(ctx context.Context, c *channel, e Endpoint) (*credentials, error) {
	cr, e, err := l.createSession(ctx, c, e)
	if err != nil {
		return nil, err
	}
	if err := l.activate(ctx, c, e, &cr); err != nil {
		if closing := c.closeSession(ctx, cr.Token); closing != nil && c.reason(nil) == nil {
			l.log.Debug("session not closed", "error", closing)
		}
		return nil, err
	}
	return &cr, nil
}

// learn reads what a session has to know before it is used: the numbers of the namespaces and the limits of one call.
func (s *Session) learn(ctx context.Context) error {
	vars := []uint32{
		id.Server_NamespaceArray,
		id.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
		id.Server_ServerCapabilities_OperationLimits_MaxNodesPerBrowse,
		id.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall,
	}
	what := make([]Attribute, len(vars))
	for i, v := range vars {
		what[i] = Attribute{NodeID{Kind: Numeric, Num: v}, ua.AttributeIDValue}
	}
	values, err := s.Read(ctx, what...)
	if err != nil {
		return fmt.Errorf("read the server's namespaces and limits: %w", err)
	}
	names, ok := values[0].Value.Value.([]string)
	if !ok || values[0].Status.IsBad() {
		return fmt.Errorf("read the server's namespaces: %s", values[0].Status)
	}
	s.namespaces = names
	for i, to := range []*atomic.Int64{&s.limits.read, &s.limits.browse, &s.limits.items} {
		if n, ok := values[i+1].Value.Value.(uint32); ok && !values[i+1].Status.IsBad() {
			to.Store(int64(n))
		}
	}
	return nil
}

// call sends a request of this session.
func (s *Session) call(ctx context.Context, req ua.Request, into response) error {
	timeout := requestTimeout
	switch req.(type) {
	case *ua.CreateMonitoredItemsRequest, *ua.ModifyMonitoredItemsRequest, *ua.DeleteMonitoredItemsRequest:
		timeout = itemsTimeout
	}
	err := s.c.call(ctx, req, s.token, timeout, into)
	s.check(err)
	return err
}

// check ends the connection where the server says that it does not know the session: nothing else would be answered, and
// the next connection begins with a new one.
func (s *Session) check(err error) {
	if sessionGone(err) {
		s.c.fail(fmt.Errorf("the server has dropped the session: %w", err))
	}
}

func sessionGone(err error) bool {
	switch statusOf(err) {
	case ua.StatusBadSessionIDInvalid, ua.StatusBadSessionClosed, ua.StatusBadSessionNotActivated:
		return true
	default:
		return false
	}
}

// Namespaces are the namespace URIs of the server by their index.
func (s *Session) Namespaces() []string { return s.namespaces }

// Connect opens a session for a single use, such as looking around. The caller closes it.
func Connect(ctx context.Context, o Options) (*Session, error) {
	l, err := New(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("%w within %s", errNoAnswer, connectTimeout))
	defer cancel()
	c, e, err := l.connect(ctx)
	if err != nil {
		return nil, err
	}
	cr, err := l.newSession(ctx, c, e)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("connect to %s: %w", o.Endpoint, err)
	}
	s := &Session{c: c, endpoint: o.Endpoint, token: cr.Token}
	if err := s.learn(ctx); err != nil {
		s.Close(ctx)
		return nil, fmt.Errorf("connect to %s: %w", o.Endpoint, err)
	}
	return s, nil
}

// Close ends the session and its channel.
func (s *Session) Close(ctx context.Context) {
	_ = s.c.closeSession(ctx, s.token) // the channel goes anyway
	s.c.close()
}
