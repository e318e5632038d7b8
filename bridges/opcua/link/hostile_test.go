package link

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopcua/opcua/ua"
)

// liar is a connection whose other end lies: bytes that come in are changed, swapped or left out.
type liar struct {
	net.Conn
	dice *rand.Rand
	from int // the bytes before are true
	odds float64
	read int
	on   *atomic.Bool
}

func (l *liar) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	for i := range b[:n] {
		if l.read++; l.read > l.from && l.on.Load() && l.dice.Float64() < l.odds {
			switch l.dice.IntN(3) {
			case 0:
				b[i] = byte(l.dice.Uint32())
			case 1:
				b[i] ^= 1 << l.dice.IntN(8)
			default:
				b[i] = []byte{0, 1, 0x7F, 0x80, 0xFF, 24, 0x40}[l.dice.IntN(7)]
			}
		}
	}
	return n, err
}

// TestAServerThatLies: whatever is changed in what a server says, at every stage, the process goes on, and so does the
// link once the server tells the truth.
func TestAServerThatLies(t *testing.T) {
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t)
			dice := rand.New(rand.NewPCG(seed, 1))
			on := &atomic.Bool{}
			on.Store(true)
			odds := []float64{0.001, 0.01, 0.1}[seed%3]
			w := newWorld(t, f, 3, func(o *Options) {
				o.dial = func(ctx context.Context, address string) (net.Conn, error) {
					c, err := f.dial(ctx, address)
					return &liar{Conn: c, dice: dice, from: dice.IntN(1500), odds: odds, on: on}, err
				}
			})
			defer w.stop()
			for i := range int32(20) {
				w.change(num(1, i), num(2, i))
				time.Sleep(time.Second)
			}
			on.Store(false)
			f.restart() // what it believed before is of no use
			time.Sleep(time.Minute)
			w.change(num(1, 1000))
			time.Sleep(5 * time.Second)
			if got := w.sink.seen(); len(got) == 0 || got[len(got)-1] != "0=1000" {
				t.Errorf("seed %d: the last value is not there: %v; %+v", seed, got, w.Stats())
			}
		})
	}
}

// TestEveryStageOfABadServer: what is wrong is said, and the attempt ends.
func TestEveryStageOfABadServer(t *testing.T) {
	ack := func(numbers ...uint32) []byte {
		b := []byte("ACKF\x1c\x00\x00\x00")
		for _, n := range numbers {
			b = binary.LittleEndian.AppendUint32(b, n)
		}
		return b
	}
	good := ack(0, 65535, 65535, 0, 0)
	for name, answers := range map[string][][]byte{
		"nothing":                        nil,
		"HTTP":                           {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n")},
		"an error":                       {[]byte("ERRF\x10\x00\x00\x00\x00\x00\x7d\x80\x00\x00\x00\x00")},
		"an error cut short":             {[]byte("ERRF\x0c\x00\x00\x00\x00\x00\x7d\x80")},
		"a frame of 4 GB":                {[]byte("ACKF\xff\xff\xff\xff")},
		"a frame of 7 bytes":             {[]byte("ACKF\x07\x00\x00\x00")},
		"buffers of 0 bytes":             {ack(0, 0, 0, 0, 0)},
		"buffers of 4 GB":                {ack(0, 1<<32-1, 1<<32-1, 0, 0)},
		"an acknowledgement cut short":   {[]byte("ACKF\x08\x00\x00\x00")},
		"a message before the channel":   {good, []byte("MSGF\x18\x00\x00\x00\x07\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00")},
		"an opening of 8 bytes":          {good, []byte("OPNF\x08\x00\x00\x00")},
		"an opening with another policy": {good, []byte("OPNF\x10\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00x")},
		"an unknown kind":                {good, []byte("XYZF\x0c\x00\x00\x00\x00\x00\x00\x00")},
		"a close":                        {good, []byte("CLOF\x0c\x00\x00\x00\x00\x00\x00\x00")},
	} {
		synctest.Test(t, func(t *testing.T) {
			dial := func(context.Context, string) (net.Conn, error) {
				here, there := net.Pipe()
				go func() {
					defer there.Close()
					b := make([]byte, 64<<10)
					for _, a := range answers {
						if _, err := there.Read(b); err != nil {
							return
						}
						if _, err := there.Write(a); err != nil {
							return
						}
					}
					for { // and then silence
						if _, err := there.Read(b); err != nil {
							return
						}
					}
				}()
				return here, nil
			}
			started := time.Now()
			c, err := dialChannel(t.Context(), dial, "opc.tcp://bad:4840", protection{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone})
			if err == nil {
				c.close()
				t.Fatalf("%s: connected", name)
			}
			if took := time.Since(started); took > 2*writeTimeout {
				t.Errorf("%s: noticed after %s", name, took)
			}
			t.Logf("%s: %v", name, err)
		})
	}
}

// TestOpeningIsChecked: what a server grants for a channel has to make sense.
func TestOpeningIsChecked(t *testing.T) {
	for name, res := range map[string]*ua.OpenSecureChannelResponse{
		"no lifetime":     {SecurityToken: &ua.ChannelSecurityToken{ChannelID: 1, TokenID: 1}},
		"another channel": {SecurityToken: &ua.ChannelSecurityToken{ChannelID: 9, TokenID: 1, RevisedLifetime: 60000}},
	} {
		c := &channel{protection: protection{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone}, id: 7}
		if err := c.install(&opening{}, encodeResponse(t, res)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	client, _ := parties(t, everySecurity()[2])
	short := &ua.OpenSecureChannelResponse{SecurityToken: &ua.ChannelSecurityToken{ChannelID: 1, TokenID: 1, RevisedLifetime: 60000}, ServerNonce: []byte{1}}
	if err := client.install(&opening{nonce: make([]byte, 32)}, encodeResponse(t, short)); err == nil {
		t.Error("a nonce of one byte was taken")
	}
}

func TestChoosingAnEndpoint(t *testing.T) {
	offers := func(security string) Endpoint {
		s, err := ParseSecurity(security)
		if err != nil {
			t.Fatal(err)
		}
		return Endpoint{URL: security, Policy: s.Policy, Mode: uint32(s.Mode), Transport: transportBinary}
	}
	broken := Endpoint{URL: "broken", Policy: ua.SecurityPolicyURIBasic128Rsa15, Mode: 3}
	lying := Endpoint{URL: "lying", Policy: ua.SecurityPolicyURINone, Mode: 3}
	web := offers("Basic256Sha256/Sign")
	web.Transport = "https"
	for _, c := range []struct {
		least string
		offer []Endpoint
		want  string
	}{
		{"None", []Endpoint{offers("Basic256Sha256/Sign"), offers("None")}, "None"},
		{"Basic256Sha256/Sign", []Endpoint{offers("None"), broken, lying}, ""},
		{"Basic256Sha256/Sign", []Endpoint{web}, ""},
		{"Basic256Sha256/Sign", []Endpoint{offers("Aes256_Sha256_RsaPss/Sign"), offers("Basic256Sha256/SignAndEncrypt")}, "Basic256Sha256/SignAndEncrypt"},
		{"Basic256Sha256/SignAndEncrypt", []Endpoint{offers("Basic256Sha256/Sign"), offers("Aes256_Sha256_RsaPss/Sign")}, ""},
		{"Aes256_Sha256_RsaPss/Sign", []Endpoint{offers("Basic256Sha256/SignAndEncrypt")}, ""},
		{"None", nil, ""},
	} {
		least, err := ParseSecurity(c.least)
		if err != nil {
			t.Fatal(err)
		}
		got, err := choose(c.offer, least)
		if got.URL != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s of %v: %q, %v; want %q", c.least, c.offer, got.URL, err, c.want)
		}
	}
	for announced, want := range map[string]string{
		"opc.tcp://plc-17.local:4840/UA/Server": "opc.tcp://192.0.2.7:48400/UA/Server", "": "opc.tcp://192.0.2.7:48400",
		"http://x/": "opc.tcp://192.0.2.7:48400", "::": "opc.tcp://192.0.2.7:48400",
	} {
		if got := reachable(announced, "opc.tcp://192.0.2.7:48400"); got != want {
			t.Errorf("%q is reached at %q, want %q", announced, got, want)
		}
	}
}

// TestPasswordsStaySecret: no password leaves where it could be read on the way.
func TestPasswordsStaySecret(t *testing.T) {
	clientCert, serverCert := fixedCertificates(t)
	p, _ := openPKI(t)
	user := uint32(ua.UserTokenTypeUserName)
	sha256, none := ua.SecurityPolicyURIBasic256Sha256, ua.SecurityPolicyURINone
	for _, c := range []struct {
		name     string
		security string
		tokens   []Token
		ok       bool
		clear    bool // the token itself holds the password: the channel encrypts it
	}{
		{"None, token without a policy", "None", []Token{{"u", user, ""}}, false, false},
		{"None, token with the policy None", "None", []Token{{"u", user, none}}, false, false},
		{"None, token with a broken policy", "None", []Token{{"u", user, ua.SecurityPolicyURIBasic128Rsa15}}, false, false},
		{"None, encrypted token, untrusted certificate", "None", []Token{{"u", user, sha256}}, false, false},
		{"Sign, token with the policy None", "Basic256Sha256/Sign", []Token{{"u", user, none}}, false, false},
		{"Sign, token without a policy", "Basic256Sha256/Sign", []Token{{"u", user, ""}}, true, false},
		{"Sign, the better of two", "Basic256Sha256/Sign", []Token{{"u", user, none}, {"v", user, sha256}}, true, false},
		{"SignAndEncrypt, token with the policy None", "Basic256Sha256/SignAndEncrypt", []Token{{"u", user, none}}, true, true},
		{"SignAndEncrypt, token without a policy", "Basic256Sha256/SignAndEncrypt", []Token{{"u", user, ""}}, true, false},
		{"no token for users", "Basic256Sha256/SignAndEncrypt", []Token{{"a", 0, ""}}, false, false},
	} {
		s, err := ParseSecurity(c.security)
		if err != nil {
			t.Fatal(err)
		}
		l := &Link{o: Options{Name: "x", Endpoint: "opc.tcp://plc:4840", User: "op", Password: "topsecret", PKI: p}}
		pr := protection{policy: s.Policy, mode: s.Mode}
		if !pr.none() {
			pr.own, pr.key, pr.remote = clientCert.der, clientCert.key, serverCert.der
			if pr.remoteKey, err = rsaKey(serverCert.der); err != nil {
				t.Fatal(err)
			}
		}
		identity, err := l.identity(Endpoint{Certificate: serverCert.der, Tokens: c.tokens}, pr, []byte("nonce"))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil {
			continue
		}
		token := identity.(*ua.UserNameIdentityToken)
		if clear := string(token.Password) == "topsecret"; clear != c.clear || clear == (token.EncryptionAlgorithm != "") {
			t.Errorf("%s: the password is clear: %v", c.name, clear)
		}
		if token.PolicyID == "u" && len(c.tokens) == 2 {
			t.Errorf("%s: the weaker token was taken", c.name)
		}
	}
}

func TestAWrongSignatureIsNoSession(t *testing.T) {
	client, server := parties(t, everySecurity()[1])
	nonce := []byte("nonce")
	sign := func(data []byte) []byte {
		s, err := server.asymmetric.Signature(data)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	right := sign(append(append([]byte{}, client.own...), nonce...))
	p := createSessionResponse{token: NodeID{Num: 1, Kind: Numeric}, timeout: 1000, certificate: server.own, signature: right}
	if err := client.checkSession(&p, nonce); err != nil {
		t.Errorf("the right signature: %v", err)
	}
	wrong := p
	wrong.signature = sign([]byte("something else"))
	if err := client.checkSession(&wrong, nonce); err == nil {
		t.Error("a wrong signature was taken")
	}
	other := p
	other.certificate = client.own
	if err := client.checkSession(&other, nonce); err == nil {
		t.Error("another certificate was taken")
	}
	for _, certificate := range [][]byte{nil, []byte("garbage")} {
		bad := p
		bad.certificate = certificate
		if err := client.checkSession(&bad, nonce); err == nil {
			t.Errorf("the certificate %q was taken", certificate)
		}
	}
}
