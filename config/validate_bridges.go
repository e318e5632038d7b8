package config

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// coap checks the addresses of the CoAP server and spells their ports out.
func (v *validator) coap() {
	c := v.c.CoAP
	if c == nil {
		return
	}
	const key = "coap.listen"
	if v.empty(key, arrayKind, len(c.Listen)) {
		v.wrong(key, "is empty: name at least one address, such as [\"coap://127.0.0.1:5683\"]")
	}
	for i, text := range c.Listen {
		e, err := parseEndpoint(text, []string{"coap"}, []string{"coaps", "coap+tcp", "coaps+tcp"})
		if err != nil {
			v.badEndpoint(v.item(key, i), key, err)
			continue
		}
		c.Listen[i] = e.String()
		v.endpoints = append(v.endpoints, bound{key, v.item(key, i), e})
	}
}

// coapLogin says so when nobody can use the CoAP server: without DTLS no client has a name.
func (v *validator) coapLogin() {
	if v.c.CoAP != nil && !*v.c.Auth.Anonymous {
		v.warn("coap", "every request is refused: clients of coap:// have no user name, and auth.anonymous is false")
	}
}

// Names of bridges that have a section of their own.
func bridgeNames() []string { return []string{"broker", "coap", "http", "opcua"} }

// securityPolicies are the policies of OPC UA that are not broken.
func securityPolicies() []string {
	return []string{"Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"}
}

func (v *validator) opcua() {
	for _, name := range names(v.c.OPCUA) {
		o, key := v.c.OPCUA[name], join("opcua", name)
		if slices.Contains(bridgeNames(), name) {
			v.add(Error, v.at(key).key, key, "the name %q belongs to another bridge; choose one of your own", name)
		}
		v.opcuaServer(key, &o)
		v.opcuaTiming(key, o)
		v.oneOf(key+".format", o.Format, "json", "value")
		topics := map[string]string{}
		for i, n := range o.Nodes {
			v.opcuaNode(indexed(key+".node", i), o, n, topics)
		}
		if o.Topic != "" || v.empty(key+".topic", stringKind, 0) {
			v.opcuaTopic(key+".topic", o.Topic)
		}
		for i, w := range o.Writes {
			v.opcuaWrite(indexed(key+".write", i), w)
		}
		if len(o.Nodes)+len(o.Writes) == 0 && v.whole {
			v.add(Warning, v.at(key).key, key, "does nothing: it has no [[%s.node]] and no [[%s.write]]", key, key)
		}
		v.c.OPCUA[name] = o
	}
}

// opcuaServer checks where the server is and how to log in there.
func (v *validator) opcuaServer(key string, o *OPCUA) {
	v.need(key+".endpoint", `name the server, such as "opc.tcp://192.0.2.7:4840"`)
	if o.Endpoint != "" || v.empty(key+".endpoint", stringKind, 0) {
		endpoint, err := parseOPCEndpoint(o.Endpoint)
		if err != nil {
			v.badEndpoint(v.at(key+".endpoint").value, key+".endpoint", err)
		}
		o.Endpoint = endpoint
	}
	if err := checkSecurity(o.Security); err != nil {
		v.wrong(key+".security", "%s", err).Suggestion = nearestSecurity(o.Security)
	}
	if hasPassword := o.Password.IsSet() || v.given(key+".password"); hasPassword && o.Username == "" {
		v.wrong(key+".password", "is for a user name: set username")
	}
}

// parseOPCEndpoint reads opc.tcp://HOST:PORT/PATH and spells the port out.
func parseOPCEndpoint(text string) (string, error) {
	bare, path := text, ""
	if scheme, rest, ok := strings.Cut(text, "://"); ok {
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			bare, path = scheme+"://"+rest[:i], rest[i:]
		}
	}
	e, err := parseEndpoint(bare, []string{"opc.tcp"}, []string{"opc.https", "opc.wss"})
	if err != nil {
		return "", err
	}
	if e.host == "" || e.port == 0 {
		return "", fmt.Errorf("%q needs a host and a port", text)
	}
	if _, err := url.Parse(path); err != nil {
		return "", fmt.Errorf("%q is no address of the form opc.tcp://HOST:PORT/PATH", text)
	}
	return e.String() + path, nil
}

func checkSecurity(text string) error {
	policy, mode, _ := strings.Cut(text, "/")
	if text == "None" || slices.Contains(securityPolicies(), policy) && (mode == "Sign" || mode == "SignAndEncrypt") {
		return nil
	}
	return fmt.Errorf("must be \"None\" or POLICY/MODE, of the policies %s and the modes Sign and SignAndEncrypt, not %q",
		strings.Join(securityPolicies(), ", "), text)
}

func nearestSecurity(text string) string {
	candidates := []string{"None"}
	for _, p := range securityPolicies() {
		candidates = append(candidates, p+"/Sign", p+"/SignAndEncrypt")
	}
	return nearest(text, candidates)
}

func (v *validator) opcuaTiming(key string, o OPCUA) {
	v.span(key+".publishing_interval", o.PublishingInterval, 10*time.Millisecond, time.Hour)
	v.span(key+".sampling_interval", o.SamplingInterval, 0, time.Hour)
	v.span(key+".outage_budget", o.OutageBudget, 0, day)
}

// opcuaNode checks one node. topics are those of the nodes above it, with the key of each.
func (v *validator) opcuaNode(key string, o OPCUA, n OPCUANode, topics map[string]string) {
	v.opcuaID(key+".id", n.ID)
	switch {
	case n.Topic != "" || v.empty(key+".topic", stringKind, 0):
		v.opcuaTopic(key+".topic", n.Topic)
	case o.Topic == "":
		v.need(key+".topic", "name the topic of this node, or a template for all of them as topic of the server")
	}
	if n.Topic == "" || strings.ContainsAny(n.Topic, "{}") {
		return // the bridge finds out when it knows what the server calls the node
	}
	if other, taken := topics[n.Topic]; taken {
		v.wrong(key+".topic", "is the topic of %s already; values of two nodes could not be told apart", other)
	}
	topics[n.Topic] = key
}

// opcuaNames are the names in a topic template of an OPC UA server.
func opcuaNames() []string { return []string{"path", "name", "id", "ns"} }

func (v *validator) opcuaTopic(key, text string) {
	parts, err := parseTemplate(text, opcuaNames())
	switch {
	case err != nil:
		v.badTemplate(v.at(key).value, key, err)
	case slices.ContainsFunc(parts, func(p Part) bool { return strings.ContainsAny(p.Text, "+#\x00") }):
		v.wrong(key, "a topic name has no + and # [MQTT-3.3.2-2]")
	case reserved(text):
		v.wrong(key, "the topics $… and tidegate/# are the gateway's own")
	}
}

func (v *validator) opcuaWrite(key string, w OPCUAWrite) {
	v.opcuaID(key+".id", w.ID)
	v.need(key+".topic", "name the local topic whose messages are written to the node")
	if w.Topic == "" && !v.empty(key+".topic", stringKind, 0) {
		return
	}
	if err := checkFilter(w.Topic); err != nil {
		v.wrong(key+".topic", "%s", err)
		return
	}
	switch {
	case strings.ContainsAny(w.Topic, "+#"):
		v.wrong(key+".topic", "a topic name has no + and #: each node has a topic of its own")
	case reserved(w.Topic):
		v.wrong(key+".topic", "the topics $… and tidegate/# are the gateway's own")
	}
}

func (v *validator) opcuaID(key, id string) {
	v.need(key, `name the node, such as "ns=2;s=Temperature"`)
	if id == "" && !v.empty(key, stringKind, 0) {
		return
	}
	if err := checkNodeID(id); err != nil {
		v.wrong(key, "%s", err)
	}
}

// checkNodeID reports why id is no node ID in the form of OPC UA part 6, 5.3.1.10, whose namespace may be a URI.
func checkNodeID(id string) error {
	bad := fmt.Errorf("%q is no node ID; the form is nsu=URI;s=TEXT or ns=N;s=TEXT, with i=, g= or b= for other identifiers", id)
	rest := id
	if uri, after, ok := cutPrefix(rest, "nsu="); ok {
		if uri == "" {
			return bad
		}
		rest = after
	} else if index, after, ok := cutPrefix(rest, "ns="); ok {
		if _, err := strconv.ParseUint(index, 10, 16); err != nil {
			return bad
		}
		rest = after
	}
	kind, value, ok := strings.Cut(rest, "=")
	if !ok || value == "" {
		return bad
	}
	switch kind {
	case "i":
		if _, err := strconv.ParseUint(value, 10, 32); err != nil {
			return bad
		}
	case "g":
		if len(strings.ReplaceAll(value, "-", "")) != 32 {
			return bad
		}
	case "s", "b":
	default:
		return bad
	}
	return nil
}

// cutPrefix splits PREFIXvalue;rest into value and rest.
func cutPrefix(s, prefix string) (value, rest string, ok bool) {
	s, ok = strings.CutPrefix(s, prefix)
	if !ok {
		return "", "", false
	}
	return strings.Cut(s, ";")
}

// deadband decodes a number, or a percentage as text.
func (d *decoder) deadband(n *node, path string) Deadband {
	text, percent := n.text, false
	switch n.kind {
	case integerKind:
		text = strconv.FormatInt(n.integer, 10)
	case floatKind:
	case stringKind:
		if text, percent = strings.CutSuffix(n.text, "%"); !percent {
			d.add(Error, n.at, path, "must be a number without quotes, or a percentage such as \"2%%\", not %q", n.text)
			return Deadband{}
		}
	default:
		d.add(Error, n.at, path, "must be a number, or a percentage such as \"2%%\", not %s", n.kind)
		return Deadband{}
	}
	by, err := strconv.ParseFloat(strings.ReplaceAll(strings.TrimSpace(text), "_", ""), 64)
	if err != nil || !(by >= 0) || percent && by > 100 || by > 1e300 {
		d.add(Error, n.at, path, "%s is no deadband: a number from 0 up, or a percentage from \"0%%\" to \"100%%\"", n.text)
		return Deadband{}
	}
	return Deadband{By: by, Percent: percent}
}
