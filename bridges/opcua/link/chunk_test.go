package link

import (
	"bytes"
	"crypto/rsa"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// party is one end of a channel with keys, without a connection.
func party(t testing.TB, policy string, mode ua.MessageSecurityMode, own []byte, key *rsa.PrivateKey, remote []byte) *channel {
	t.Helper()
	c := &channel{protection: protection{policy: policy, mode: mode}, chunkBytes: 8192, waiting: map[uint32]func([]byte, error){}}
	if mode != ua.MessageSecurityModeNone {
		c.own, c.key, c.remote = own, key, remote
		var err error
		if c.remoteKey, err = rsaKey(remote); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if c.asymmetric, err = uapolicy.Asymmetric(policy, c.key, c.remoteKey); err != nil {
		t.Fatal(err)
	}
	return c
}

// install gives both ends the keys of a token.
func agree(t testing.TB, client, server *channel, token uint32) {
	t.Helper()
	a, b := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	for _, c := range []struct {
		*channel
		mine, theirs []byte
	}{{client, a, b}, {server, b, a}} {
		algo, err := uapolicy.Symmetric(c.policy, c.mine, c.theirs)
		if err != nil {
			t.Fatal(err)
		}
		c.id, c.before, c.keys = 7, c.keys, keys{token: token, algo: algo}
	}
}

// frame seals a message as c would send it.
func (c *channel) testFrame(t testing.TB, kind string, body []byte) []byte {
	t.Helper()
	security := binary.LittleEndian.AppendUint32(nil, c.keys.token)
	algo := c.keys.algo
	if kind == "OPN" {
		security, algo = c.asymmetricHeader(), c.asymmetric
	}
	f := append([]byte(kind), 'F', 0, 0, 0, 0)
	f = binary.LittleEndian.AppendUint32(f, c.id)
	f = append(f, security...)
	f = binary.LittleEndian.AppendUint32(f, 11)
	f = binary.LittleEndian.AppendUint32(f, 12)
	f, err := c.seal(append(f, body...), chunkHeader+len(security), algo, kind == "OPN")
	if err != nil {
		t.Fatal(err)
	}
	if int(binary.LittleEndian.Uint32(f[4:])) != len(f) {
		t.Fatalf("the header says %d bytes, there are %d", binary.LittleEndian.Uint32(f[4:]), len(f))
	}
	return f
}

type secured struct {
	policy string
	mode   ua.MessageSecurityMode
}

func everySecurity() []secured {
	list := []secured{{ua.SecurityPolicyURINone, ua.MessageSecurityModeNone}}
	for _, p := range []string{ua.SecurityPolicyURIBasic256Sha256, ua.SecurityPolicyURIAes128Sha256RsaOaep, ua.SecurityPolicyURIAes256Sha256RsaPss} {
		list = append(list, secured{p, ua.MessageSecurityModeSign}, secured{p, ua.MessageSecurityModeSignAndEncrypt})
	}
	return list
}

// parties are a client and a server that know each other; bits is the size of the server's key.
func parties(t testing.TB, s secured) (client, server *channel) {
	t.Helper()
	clientCert, serverCert := fixedCertificates(t)
	client = party(t, s.policy, s.mode, clientCert.der, clientCert.key, serverCert.der)
	server = party(t, s.policy, s.mode, serverCert.der, serverCert.key, clientCert.der)
	return client, server
}

func TestChunksRoundTrip(t *testing.T) {
	for _, s := range everySecurity() {
		client, server := parties(t, s)
		agree(t, client, server, 1)
		name := Security{s.policy, s.mode}.String()
		for _, kind := range []string{"OPN", "MSG"} {
			for n := range 300 {
				body := bytes.Repeat([]byte{byte(n)}, n)
				if kind == "OPN" && n%40 != 0 {
					continue // RSA is slow, and the padding comes round again
				}
				ch, err := client.unwrap(server.testFrame(t, kind, body))
				if err != nil || !bytes.Equal(ch.body, body) || ch.sequence != 11 || ch.request != 12 || ch.final != 'F' || ch.kind != kind {
					t.Fatalf("%s: %s of %d bytes: %+v, %v", name, kind, n, ch, err)
				}
			}
		}
		// The fullest chunk that room allows is one that the peer takes.
		most := server.room(4, server.keys.algo, false)
		full := server.testFrame(t, "MSG", make([]byte, most))
		over := server.testFrame(t, "MSG", make([]byte, most+1))
		if len(full) > server.chunkBytes || len(over) <= server.chunkBytes {
			t.Errorf("%s: the fullest chunk has %d bytes, one byte more makes %d, the limit is %d", name, len(full), len(over), server.chunkBytes)
		}
	}
}

func TestTamperedChunksAreRefused(t *testing.T) {
	for _, s := range everySecurity()[1:] {
		client, server := parties(t, s)
		agree(t, client, server, 1)
		name := Security{s.policy, s.mode}.String()
		frame := server.testFrame(t, "MSG", []byte("a body of some length"))
		for i := range frame {
			if i >= 4 && i < 8 {
				continue // the size belongs to the reader of frames
			}
			bad := bytes.Clone(frame)
			bad[i] ^= 0x41
			if _, err := client.unwrap(bad); err == nil {
				t.Errorf("%s: byte %d of a message can be changed", name, i)
			}
		}
		for n := range frame {
			if _, err := client.unwrap(frame[:n]); err == nil {
				t.Errorf("%s: a message cut to %d of %d bytes was taken", name, n, len(frame))
			}
		}
		opn := server.testFrame(t, "OPN", []byte("a body"))
		for i := 0; i < len(opn); i += 97 {
			bad := bytes.Clone(opn)
			bad[i] ^= 0x41
			if _, err := client.unwrap(bad); err == nil && (i < 4 || i >= 8) {
				t.Errorf("%s: byte %d of an opening can be changed", name, i)
			}
		}
	}
}

// TestTheTrustedCertificateAloneOpensAChannel: somebody in between can encrypt for us and sign by his own key.
func TestTheTrustedCertificateAloneOpensAChannel(t *testing.T) {
	for _, s := range everySecurity()[1:] {
		client, server := parties(t, s)
		attacker := testKey()
		cert := issue(t, attacker, &attacker.PublicKey, nil, nil)
		forged := party(t, s.policy, s.mode, cert.Raw, attacker, client.own)
		if _, err := client.unwrap(forged.testFrame(t, "OPN", []byte("x"))); err == nil || !strings.Contains(err.Error(), "another certificate") {
			t.Errorf("%s: %v", Security{s.policy, s.mode}, err)
		}
		forged.own = server.own // the right certificate, but not its key
		if _, err := client.unwrap(forged.testFrame(t, "OPN", []byte("x"))); err == nil {
			t.Errorf("%s: taken without the key", Security{s.policy, s.mode})
		}
		none := party(t, ua.SecurityPolicyURINone, ua.MessageSecurityModeNone, nil, nil, nil)
		if _, err := client.unwrap(none.testFrame(t, "OPN", []byte("x"))); err == nil {
			t.Errorf("%s: opened without security", Security{s.policy, s.mode})
		}
		if _, err := client.unwrap(server.testFrame(t, "OPN", []byte("x"))); err != nil {
			t.Errorf("%s: the right one: %v", Security{s.policy, s.mode}, err)
		}
	}
}

func TestOldKeysAreGoodForOneRenewal(t *testing.T) {
	client, server := parties(t, everySecurity()[2])
	agree(t, client, server, 1)
	first := server.testFrame(t, "MSG", nil)
	agree(t, client, server, 2)
	if _, err := client.unwrap(first); err != nil {
		t.Errorf("the token before: %v", err)
	}
	agree(t, client, server, 3)
	if _, err := client.unwrap(first); err == nil {
		t.Error("the token before the last was taken")
	}
	server.id = 8
	if _, err := client.unwrap(server.testFrame(t, "MSG", nil)); err == nil {
		t.Error("a message of another channel was taken")
	}
}
