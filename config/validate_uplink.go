package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

func (v *validator) uplinks() {
	clients := map[string]string{} // server and client identifier -> the uplink that has them
	for _, name := range names(v.c.Uplinks) {
		u, key := v.c.Uplinks[name], join("uplink", name)
		service := v.preset(key, &u)
		v.identity(key, name, &u)
		servers := v.servers(key, &u, service)
		v.login(key, u, servers)
		v.tlsFiles(key, &u, servers)
		v.timing(key, u)
		v.batch(key, name, u.Batch)
		v.effects(key, u, servers)
		v.buffer(key, u)
		v.commands(key, name, &u)
		v.way(key, u)
		v.demands(key, &u, service, servers)
		for i, s := range servers {
			id := strings.ToLower(fmt.Sprintf("%s:%d ", s.host, s.port)) + u.ClientID
			if other, taken := clients[id]; taken && other != name && s.host != "" {
				v.wrongItem(key+".servers", i, "uplink.%s has the same server and the same client identifier %q: they would throw each other off", other, u.ClientID)
				continue
			}
			clients[id] = name
		}
		v.c.Uplinks[name] = u
	}
	v.syncs()
}

// names of a client identifier and of a command's filter, which are the same for every message.
func fixedNames() []string { return []string{"gateway", "uplink"} }

func (v *validator) identity(key, name string, u *Uplink) {
	v.oneOf(key+".protocol", u.Protocol, "5", "3.1.1")
	parts, err := parseTemplate(u.ClientID, fixedNames())
	if err != nil {
		v.badTemplate(v.at(key+".client_id").value, key+".client_id", err)
		return
	}
	u.ClientID = expand(parts, map[string]string{"gateway": v.c.Gateway.ID, "uplink": name})
	if len(u.ClientID) > maxTopicBytes {
		v.wrong(key+".client_id", "has %d bytes, at most %d can be sent", len(u.ClientID), maxTopicBytes)
	}
}

// servers checks the addresses, spells their ports out and returns the good ones at their index.
func (v *validator) servers(key string, u *Uplink, service *preset) []endpoint {
	key += ".servers"
	v.need(key, `name at least one server, such as ["mqtts://broker.example.com:8883"]`)
	if v.empty(key, arrayKind, len(u.Servers)) {
		v.wrong(key, "is empty: name at least one server")
	}
	good := make([]endpoint, len(u.Servers))
	u.ServersAt = make([]Place, len(u.Servers))
	for i, text := range u.Servers {
		u.ServersAt[i] = v.item(key, i)
		e, err := parseEndpoint(text, []string{"mqtt", "mqtts", "ws", "wss"}, nil)
		service.complete(&e, text)
		switch {
		case err != nil:
			v.badEndpoint(v.item(key, i), key, err)
		case e.host == "" || e.port == 0:
			v.wrongItem(key, i, "%q needs a host and a port", WithoutQuery(text))
		case slices.ContainsFunc(good, e.same):
			v.wrongItem(key, i, "is listed twice: a server that fails is tried again anyway")
		default:
			good[i], u.Servers[i] = e, e.String()
		}
	}
	return good
}

func (v *validator) login(key string, u Uplink, servers []endpoint) {
	hasPassword := u.Password.IsSet() || v.given(key+".password")
	switch {
	case hasPassword && u.Username == "" && u.Protocol == "3.1.1" && u.Preset != AzureIoTHub:
		v.wrong(key+".password", "MQTT 3.1.1 has no password without a user name [MQTT-3.1.2-22]: set username")
	case len(u.Username) > maxTopicBytes:
		v.wrong(key+".username", "has %d bytes, at most %d can be sent", len(u.Username), maxTopicBytes)
	}
	for _, s := range servers {
		if hasPassword && (s.scheme == "mqtt" || s.scheme == "ws") && !s.loopback() {
			v.warn(key+".password", "goes to %s unencrypted; %ss:// encrypts it", WithoutQuery(s.String()), s.scheme)
			return
		}
	}
}

// tlsFiles checks ca, cert and key together with the schemes they are for.
func (v *validator) tlsFiles(key string, u *Uplink, servers []endpoint) {
	encrypted := slices.ContainsFunc(servers, endpoint.encrypted)
	plain := slices.ContainsFunc(servers, func(e endpoint) bool { return e.host != "" && !e.encrypted() })
	for _, f := range []struct {
		key   string
		value *string
	}{{key + ".ca", &u.CA}, {key + ".cert", &u.Cert}, {key + ".key", &u.Key}} {
		if *f.value == "" {
			if v.empty(f.key, stringKind, 0) {
				v.emptyPath(f.key)
			}
			continue
		}
		*f.value = v.absolute(*f.value)
		if plain && !encrypted {
			v.wrong(f.key, "is only for mqtts:// and wss://, and no server of this uplink is; write mqtts:// or remove it")
		}
	}
	v.authority(key+".ca", u.CA)
	switch {
	case u.Cert != "" && u.Key == "" && !v.given(key+".key"):
		v.wrong(key+".cert", "needs the key that belongs to it: set key")
	case u.Key != "" && u.Cert == "" && !v.given(key+".cert"):
		v.wrong(key+".key", "needs the certificate that belongs to it: set cert")
	}
	v.certificate(key, u.Cert, u.Key)
}

// readable reads a file that a key names and reports when it cannot be.
func (v *validator) readable(key, file string) []byte {
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		v.wrong(key, "%s", fileError(file, err))
		return nil
	}
	if len(b) == 0 {
		v.wrong(key, "%s is empty", file)
	}
	return b
}

func (v *validator) authority(key, file string) {
	if b := v.readable(key, file); len(b) > 0 && !x509.NewCertPool().AppendCertsFromPEM(b) {
		v.wrong(key, "%s holds no certificate in PEM form", file)
	}
}

func (v *validator) certificate(key, certFile, keyFile string) {
	cert, private := v.readable(key+".cert", certFile), v.readable(key+".key", keyFile)
	if info, err := os.Stat(keyFile); err == nil && info.Mode().Perm()&0o004 != 0 {
		v.warn(key+".key", "everybody on this machine can read %s; chmod o-r it", keyFile)
	}
	if len(cert) == 0 || len(private) == 0 {
		return
	}
	pair, err := tls.X509KeyPair(cert, private)
	if err != nil {
		v.wrong(key+".cert", "%s and %s do not make a pair: %s", certFile, keyFile, strings.TrimPrefix(err.Error(), "tls: "))
		return
	}
	if leaf := pair.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) {
		v.warn(key+".cert", "%s expired on %s", certFile, leaf.NotAfter.UTC().Format(time.DateOnly))
	}
}

func (v *validator) timing(key string, u Uplink) {
	v.keepAlive(key+".keep_alive", u.KeepAlive)
	v.span(key+".ack_timeout", u.AckTimeout, time.Millisecond, day)
}

func (v *validator) keepAlive(key string, d Duration) {
	v.span(key, d, time.Second, maxKeepAlive*time.Second)
	if d.D() > time.Second && d.D()%time.Second != 0 {
		v.wrong(key, "must be whole seconds, as MQTT counts them")
	}
}

// The bounds of a batch: what a receiver has to hold in memory.
const (
	maxBatchMessages = 10000
	minBatchBytes    = 1 << 10
	maxBatchBytes    = 1 << 20
)

// batch checks how an uplink gathers messages, and expands the topic.
func (v *validator) batch(key, uplink string, b *Batch) {
	if b == nil {
		return
	}
	key += ".batch"
	v.between(key+".max_messages", int64(b.MaxMessages), 1, maxBatchMessages)
	v.span(key+".max_delay", b.MaxDelay, 0, time.Hour)
	if b.MaxBytes < minBatchBytes || b.MaxBytes > maxBatchBytes {
		v.wrong(key+".max_bytes", "must be from 1KiB to 1MiB")
	}
	v.oneOf(key+".compress", b.Compress, "zstd", "gzip", "none")
	parts, err := parseTemplate(b.Topic, fixedNames())
	if err != nil {
		v.badTemplate(v.at(key+".topic").value, key+".topic", err)
		return
	}
	b.Topic = expand(parts, map[string]string{"gateway": v.c.Gateway.ID, "uplink": uplink})
	switch {
	case strings.ContainsAny(b.Topic, "+#\x00"):
		v.wrong(key+".topic", "a topic name has no + and # [MQTT-3.3.2-2]")
	case len(b.Topic) > maxTopicBytes:
		v.wrong(key+".topic", "has %d bytes, at most %d can be sent", len(b.Topic), maxTopicBytes)
	case b.Topic == "$SYS" || strings.HasPrefix(b.Topic, "$SYS/") || strings.HasPrefix(b.Topic, "$share/"):
		v.wrong(key+".topic", "the topics $SYS/# and $share/# are the cloud broker's own")
	case ofGateway(b.Topic, v.c.Gateway.ID):
		v.wrong(key+".topic", "the gateway publishes something else on %s; choose another topic, or leave the key out", b.Topic)
	}
}

func (v *validator) buffer(key string, u Uplink) {
	b := u.Buffer
	v.oneOf(key+".buffer.when_full", b.WhenFull, "drop-oldest", "refuse")
	v.between(key+".buffer.max_bytes", int64(b.MaxBytes), 1, 1<<50)
	if b.MaxBytes > 0 && b.MaxBytes < v.c.Broker.MaxPacket {
		v.warn(key+".buffer.max_bytes", "is smaller than broker.max_packet: a large message can never be sent up")
	}
	v.oneOf(key+".buffer.compress", b.Compress, "auto", "off")
	v.encryptionKey(key+".buffer.encryption_key", b.EncryptionKey)
}

func (v *validator) encryptionKey(key string, secret Secret) {
	if _, err := keysIn(secret); err != nil {
		v.wrong(key, "%s", err)
	} else if text := secret.Reveal(); len(text) == EncryptionKeyBytes && printable(text) {
		v.warn(key, "is a text of %d characters, which is easier to guess than %d random bytes; %s", len(text), len(text), howToMakeKey)
	}
}

// syncs says so when one uplink's sync or compress is overruled: all share one log, and the strictest holds for it.
func (v *validator) syncs() {
	off := ""
	for _, name := range names(v.c.Uplinks) {
		if v.c.Uplinks[name].Buffer.Compress == "off" {
			off = name
		}
	}
	for _, name := range names(v.c.Uplinks) {
		if k := join("uplink", name) + ".buffer.compress"; off != "" && v.given(k) && v.c.Uplinks[name].Buffer.Compress == "auto" {
			v.warn(k, "has no effect: uplinks share one log, and %s.buffer.compress is \"off\"", join("uplink", off))
		}
	}
	strictest := ""
	for _, name := range names(v.c.Uplinks) {
		if strictest == "" || v.c.Uplinks[name].Buffer.Sync < v.c.Uplinks[strictest].Buffer.Sync {
			strictest = name
		}
	}
	for _, name := range names(v.c.Uplinks) {
		if v.c.Uplinks[name].Buffer.Sync > v.c.Uplinks[strictest].Buffer.Sync {
			v.warn(join("uplink", name)+".buffer.sync", "has no effect: uplinks share one log, and %s.buffer.sync is stricter", join("uplink", strictest))
		}
	}
}

func (v *validator) commands(key, name string, u *Uplink) {
	for i := range u.Commands {
		c, k := &u.Commands[i], indexed(key+".command", i)
		v.need(k+".from", "name the topics at the cloud broker")
		v.need(k+".to", "name the local topic")
		if c.From != "" || v.empty(k+".from", stringKind, 0) {
			v.commandFrom(k+".from", name, c)
		}
		if c.To != "" || v.empty(k+".to", stringKind, 0) {
			var good []string
			if c.From != "" {
				good = append(good, c.From)
			}
			v.template(k+".to", c.To, good, commandNames())
			if reserved(c.To) {
				v.wrong(k+".to", "the topics $… and tidegate/# are the gateway's own")
			}
		}
		v.identities(k, u.Protocol, c)
		for j, other := range u.Commands[:i] {
			if c.From != "" && other.From != "" && overlaps(c.From, other.From) {
				v.wrong(k+".from", "overlaps %q of %s: a command would be taken twice", other.From, indexed(key+".command", j))
			}
		}
	}
}

// commandNames are the names of a command's local topic; the cloud tells no user and no client.
func commandNames() []string {
	return slices.DeleteFunc(templateNames(), func(n string) bool { return n == "user" || n == "client" || n == "protocol" })
}

// commandFrom expands the filter and checks it; a bad one is cleared, so that nothing else looks at it.
func (v *validator) commandFrom(key, uplink string, c *Command) {
	parts, err := parseTemplate(c.From, fixedNames())
	if err != nil && c.From != "" {
		v.badTemplate(v.at(key).value, key, err)
		c.From = ""
		return
	}
	c.From = expand(parts, map[string]string{"gateway": v.c.Gateway.ID, "uplink": uplink})
	if err := checkFilter(c.From); err != nil {
		v.wrong(key, "%s", err)
		c.From = ""
	}
}
