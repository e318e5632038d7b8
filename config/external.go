package config

import (
	"slices"
	"strings"
	"time"
)

// The modes of [broker].
const (
	ModeEmbedded = "embedded"
	ModeExternal = "external"
)

// External is the broker that devices speak to where the gateway embeds none: it takes their messages from there, as one
// member of a group.
type External struct {
	Servers  []string `toml:"servers"`   // mqtt:// or mqtts:// URLs of one broker or cluster, tried in order
	ClientID string   `toml:"client_id"` // template of {gateway}; expanded after loading
	Username string   `toml:"username"`
	Password Secret   `toml:"password"`
	CA       string   `toml:"ca"`
	Cert     string   `toml:"cert"`
	Key      string   `toml:"key"`
	// ServerName is asked for in the TLS handshake and checked in the certificate; empty: the host of the server.
	ServerName string `toml:"server_name"`
	// Group is the name of the shared subscriptions: its members share the messages between them. After loading it is empty for
	// "off": the gateway gets every message by subscriptions of its own.
	Group string `toml:"group"`
	// Subscribe are the topics that are taken, no two of which overlap. Filled in from the routes when absent.
	Subscribe []string `toml:"subscribe"`
	QoS       int      `toml:"qos"` // 1 or 2, of the subscriptions
	// ReceiveMaximum bounds the messages that are not acknowledged to the broker, 1 to 65535.
	ReceiveMaximum int `toml:"receive_maximum"`
	// SessionExpiry is how long the broker keeps messages for a member that is away.
	SessionExpiry Duration `toml:"session_expiry"`
	KeepAlive     Duration `toml:"keep_alive"`
	// ServersAt is where each of Servers stands.
	ServersAt []Place `toml:"-"`
	// Local are the topics of [[opcua.NAME.write]]: they concern this gateway alone, whatever the group does.
	Local []string `toml:"-"`
}

// external checks [broker.external] and what cannot stand beside it. It comes after routes and bridges, which say what is
// wanted of the broker.
func (v *validator) external() {
	const key = "broker.external"
	e := v.c.Broker.External
	switch mode := v.c.Broker.Mode; {
	case mode != ModeExternal && e != nil:
		v.add(Warning, v.at(key).key, key, `has no effect while broker.mode is %q`, mode)
	case mode == ModeExternal && e == nil && v.whole:
		v.wrong("broker.mode", "needs [broker.external] with the servers of that broker")
	}
	if e == nil {
		return
	}
	v.externalServers(key, e)
	v.externalIdentity(key, e)
	if e.QoS != 1 && e.QoS != 2 {
		v.wrong(key+".qos", "must be 1 or 2, not %d", e.QoS)
	}
	v.between(key+".receive_maximum", int64(e.ReceiveMaximum), 1, maxInFlight)
	v.span(key+".session_expiry", e.SessionExpiry, time.Second, 100*365*day)
	v.keepAlive(key+".keep_alive", e.KeepAlive)
	v.externalTopics(key, e)
	if v.c.Broker.Mode == ModeExternal {
		v.withoutBroker()
	}
}

// externalServers checks the addresses with the login and the certificates, which are those of an uplink.
func (v *validator) externalServers(key string, e *External) {
	v.need(key+".servers", `name the broker, such as ["mqtt://127.0.0.1:1883"]`)
	if v.empty(key+".servers", arrayKind, len(e.Servers)) {
		v.wrong(key+".servers", "is empty: name at least one server")
	}
	e.ServersAt = make([]Place, len(e.Servers))
	servers := make([]endpoint, len(e.Servers))
	for i, text := range e.Servers {
		at := v.item(key+".servers", i)
		e.ServersAt[i] = at
		s, err := parseEndpoint(text, []string{"mqtt", "mqtts"}, []string{"ws", "wss"})
		switch {
		case err != nil:
			v.badEndpoint(at, key+".servers", err)
		case s.host == "" || s.port == 0:
			v.wrongItem(key+".servers", i, "%q needs a host and a port", text)
		case slices.Contains(servers, s):
			v.warnItem(key+".servers", i, "is listed twice")
		default:
			servers[i], e.Servers[i] = s, s.String()
		}
	}
	u := Uplink{Protocol: "5", Username: e.Username, Password: e.Password, CA: e.CA, Cert: e.Cert, Key: e.Key}
	v.login(key, u, servers)
	v.tlsFiles(key, &u, servers)
	e.CA, e.Cert, e.Key = u.CA, u.Cert, u.Key
	if e.ServerName == "" && v.empty(key+".server_name", stringKind, 0) {
		v.wrong(key+".server_name", "is empty; leave the key out for the host of the server")
	}
}

// externalIdentity checks what the broker knows this gateway and its group by.
func (v *validator) externalIdentity(key string, e *External) {
	switch {
	case e.Group == "off":
		e.Group = ""
	case e.Group == "":
		v.wrong(key+".group", `is empty; write "off" for a gateway that shares with no other, or leave the key out for "tidegate"`)
	case strings.ContainsAny(e.Group, "/+#\x00"):
		v.wrong(key+".group", "%q is no name of a group: none of / + # [MQTT-4.8.2-1]", e.Group)
	}
	parts, err := parseTemplate(e.ClientID, []string{"gateway"})
	if err != nil {
		v.badTemplate(v.at(key+".client_id").value, key+".client_id", err)
		return
	}
	e.ClientID = expand(parts, map[string]string{"gateway": v.c.Gateway.ID})
	for _, name := range names(v.c.Uplinks) {
		u := v.c.Uplinks[name]
		i := slices.IndexFunc(u.Servers, func(s string) bool { return slices.Contains(e.Servers, s) })
		if i < 0 {
			continue
		}
		v.warnItem(join("uplink", name)+".servers", i, "is the broker of broker.external as well: what goes up would come back where broker.external.subscribe selects it, and go up again")
		if u.ClientID == e.ClientID {
			v.wrong(key+".client_id", "uplink.%s has the same server and the same client identifier %q: they would throw each other off", name, u.ClientID)
		}
	}
}

// externalTopics checks the subscriptions, and finds them where the file names none.
func (v *validator) externalTopics(key string, e *External) {
	key += ".subscribe"
	if v.empty(key, arrayKind, len(e.Subscribe)) {
		v.wrong(key, "is empty; leave the key out for what the routes want")
	}
	for _, name := range names(v.c.OPCUA) {
		for _, w := range v.c.OPCUA[name].Writes {
			if checkFilter(w.Topic) == nil && !slices.Contains(e.Local, w.Topic) {
				e.Local = append(e.Local, w.Topic)
			}
		}
	}
	if !v.given(key) {
		e.Subscribe = v.wanted()
		if len(e.Subscribe) == 0 && v.whole {
			v.warn("broker.external", "no route wants anything: no message is taken from the broker")
		}
		return
	}
	var good []string
	for i, f := range e.Subscribe {
		if err := checkFilter(f); err != nil {
			v.wrongItem(key, i, "%s", err)
			continue
		}
		other := slices.IndexFunc(good, func(o string) bool { return overlaps(o, f) })
		switch {
		case reserved(f):
			v.wrongItem(key, i, "the topics $… and tidegate/# are the gateway's own")
		case other >= 0:
			v.wrongItem(key, i, "overlaps %q: the broker would hand over twice what both select", good[other])
		default:
			good = append(good, f)
		}
	}
	if len(good) < len(e.Subscribe) {
		return
	}
	for _, name := range names(v.c.Routes) {
		for i, f := range v.c.Routes[name].From {
			if checkFilter(f) == nil && !slices.ContainsFunc(good, func(g string) bool { return overlaps(g, f) }) {
				v.warnItem(join("route", name)+".from", i, "gets nothing from the broker: broker.external.subscribe does not select it")
			}
		}
	}
}

// wanted are the filters of all routes, widened where they overlap: a message that two shared subscriptions select is handed
// over twice, perhaps to two members.
func (v *validator) wanted() []string {
	var out []string
	for _, name := range names(v.c.Routes) {
		for _, f := range v.c.Routes[name].From {
			if checkFilter(f) == nil && !reserved(f) {
				out = joinFilter(out, f)
			}
		}
	}
	return out
}

// joinFilter adds f to filters of which no two overlap, so that this stays true.
func joinFilter(filters []string, f string) []string {
	for i, other := range filters {
		if overlaps(other, f) {
			return joinFilter(slices.Delete(filters, i, i+1), widen(other, f))
		}
	}
	return append(filters, f)
}

// widen returns the narrowest filter that selects what two overlapping filters select.
func widen(a, b string) string {
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	var out []string
	for i := 0; i < len(x) || i < len(y); i++ {
		switch {
		case i >= len(x) || i >= len(y) || x[i] == "#" || y[i] == "#":
			return strings.Join(append(out, "#"), "/")
		case x[i] == y[i]:
			out = append(out, x[i])
		default:
			out = append(out, "+")
		}
	}
	return strings.Join(out, "/")
}

// withoutBroker finds keys of the embedded broker that mean nothing without it.
func (v *validator) withoutBroker() {
	for _, name := range names(v.c.Listeners) {
		key := join("listener", name)
		v.add(Error, v.at(key).key, key, `cannot stand beside broker.mode = "external": devices speak to that broker; remove one of them`)
	}
	keys := []string{"max_clients", "session_expiry", "max_keep_alive"}
	if v.c.CoAP == nil {
		keys = append(keys, "retained_limit") // else it bounds what CoAP devices can read
	}
	for _, k := range keys {
		if key := "broker." + k; v.given(key) {
			v.add(Warning, v.at(key).key, key, `has no effect with broker.mode = "external"`)
		}
	}
	if v.given("auth") && v.c.CoAP == nil && len(v.c.Broker.External.Local) == 0 { // else the rules hold for those
		v.add(Warning, v.at("auth").key, "auth", `has no effect with broker.mode = "external": that broker decides who may connect and publish`)
	}
	for _, name := range names(v.c.Routes) {
		for _, unknown := range []string{"{user}", "{client}"} {
			if key := join("route", name) + ".topic"; strings.Contains(v.c.Routes[name].Topic, unknown) {
				v.warn(key, `behind a broker of your own %s is not known: {client} is the user property tg-src, or the topic; {user} is empty`, unknown)
			}
		}
	}
}
