package config

import (
	"encoding/base64"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// A preset is what one cloud service demands of its clients: it fills in what the user left out and refuses, in check, what
// the service would refuse at run time. The facts are those of the vendors' pages named at each table.

// The presets.
const (
	AWSIoTCore     = "aws-iot-core"
	AzureIoTHub    = "azure-iot-hub"
	AzureEventGrid = "azure-event-grid"
	HiveMQCloud    = "hivemq-cloud"
	EMQXCloud      = "emqx-cloud"
)

// preset is one service.
type preset struct {
	name             string
	ports            map[string]int // by scheme, where they are not the usual ones
	path             string         // of WebSocket, where it is not the usual one
	limits           Limits
	keepMin, keepMax time.Duration // bounds of keep_alive; 0: none
	fill             func(v *validator, key string, u *Uplink)
	check            func(v *validator, key string, u *Uplink, servers []endpoint)
}

func presets() []preset {
	return []preset{
		{
			// AWS General Reference, "AWS IoT Core endpoints and quotas"; AWS IoT Developer Guide, "Device communication protocols".
			name: AWSIoTCore,
			limits: Limits{
				MaxPayload: 128 << 10, MaxTopicBytes: 256, MaxTopicSlashes: 7, MaxQoS: 1, StrictIdentity: true,
			},
			keepMin: 30 * time.Second, keepMax: 1200 * time.Second, fill: fillAWS, check: checkAWS,
		},
		{
			// Microsoft Learn, "Communicate with an IoT hub using the MQTT protocol", "Control access to IoT Hub using SAS"; the bound of
			// the keep-alive is the smaller one of two pages (19 min, 1177 s).
			name: AzureIoTHub, path: "/$iothub/websocket",
			limits:  Limits{MaxPacket: 256 << 10, MaxQoS: 1, NoRetain: true, StrictIdentity: true},
			keepMax: 19 * time.Minute, fill: fillIoTHub, check: checkIoTHub,
		},
		{
			// Microsoft Learn, "MQTT features supported by Azure Event Grid's MQTT broker feature" (limitations of both versions).
			name:    AzureEventGrid,
			limits:  Limits{MaxPacket: 512 << 10, MaxQoS: 1, NoRetain: true, PlainAcks: true, StrictIdentity: true},
			keepMax: 1160 * time.Second, check: checkEventGrid,
		},
		{
			// HiveMQ Cloud console, connection details of a cluster: MQTT over TLS 8883, over WebSocket 8884 and /mqtt; SNI is needed.
			name: HiveMQCloud, ports: map[string]int{"wss": 8884}, check: checkUserAndPassword,
		},
		{
			// EMQX Cloud documentation, "Serverless Connection Guide": TLS only, 8883, WebSocket 8084; the domain as it was given (SNI).
			name: EMQXCloud, ports: map[string]int{"wss": 8084}, check: checkUserAndPassword,
		},
	}
}

// preset finds the service of an uplink and fills in what the user left out; nil when there is none.
func (v *validator) preset(key string, u *Uplink) *preset {
	if u.SASKey.IsSet() && u.Preset != AzureIoTHub {
		v.wrong(key+".sas_key", "is only for preset = %q", AzureIoTHub)
	}
	if u.Preset == "" {
		return nil
	}
	var known []string
	for _, p := range presets() {
		if p.name != u.Preset {
			known = append(known, p.name)
			continue
		}
		if p.fill != nil {
			p.fill(v, key, u)
		}
		return &p
	}
	v.oneOf(key+".preset", u.Preset, known...)
	return nil
}

// complete gives an address the port and the path of the service where text has none of its own.
func (p *preset) complete(e *endpoint, text string) {
	if p == nil || e.host == "" {
		return
	}
	u, err := url.Parse(text)
	if err != nil {
		return
	}
	if port, ok := p.ports[e.scheme]; ok && u.Port() == "" {
		e.port = port
	}
	if p.path != "" && webSocket(e.scheme) && strings.Trim(u.Path, "/") == "" && u.RawQuery == "" {
		e.path = p.path
	}
}

// demands checks an uplink against its service, and settles what depends on both.
func (v *validator) demands(key string, u *Uplink, p *preset, servers []endpoint) {
	if p == nil {
		return
	}
	u.ServerALPN = make([][]string, len(servers))
	for i := range servers {
		u.ServerALPN[i] = u.ALPN
	}
	u.Limits = p.limits
	u.Limits.Service = p.name
	u.Limits.NoRetain = u.Limits.NoRetain || u.Retain == "strip"
	if p.limits.NoRetain && v.given(key+".retain") && u.Retain == "keep" {
		v.wrong(key+".retain", "%s refuses retained messages: write \"strip\", or leave the key out", p.name)
	}
	for i, s := range servers {
		switch _, err := netip.ParseAddr(s.host); {
		case s.host == "":
		case !s.encrypted():
			v.wrongItem(key+".servers", i, "%s takes only encrypted connections: mqtts:// or wss://", p.name)
		case err == nil && u.ServerName == "":
			v.wrongItem(key+".servers", i, "%s finds its customers by the host name in the TLS handshake: write the name instead of the address, or set server_name", p.name)
		}
	}
	if k := u.KeepAlive.D(); k < p.keepMin || p.keepMax > 0 && k > p.keepMax {
		v.wrong(key+".keep_alive", "%s takes %s to %s", p.name, max(p.keepMin, time.Second), p.keepMax)
	}
	p.check(v, key, u, servers)
	v.batchLimits(key+".batch", *u)
}

// fillAWS keeps to what a connection may do: 100 publishes a second, see checkAWS for batches, and 100 of them unacknowledged. Retained messages need a
// permission of their own (iot:RetainPublish), and without it the connection ends.
func fillAWS(v *validator, key string, u *Uplink) {
	if u.Batch == nil && (!v.given(key+".max_rate") || !v.given(key+".max_rate.messages")) {
		u.MaxRate.Messages = awsRate
	}
	if !v.given(key + ".max_in_flight") {
		u.MaxInFlight = 100
	}
	if !v.given(key + ".retain") {
		u.Retain = "strip"
	}
}

const (
	awsRate          = 100 * 1000 // thousandths of a message a second
	awsSubscriptions = 8          // in one SUBSCRIBE
	awsClientID      = 128
)

func checkAWS(v *validator, key string, u *Uplink, servers []endpoint) {
	custom := u.Username != ""
	for i, s := range servers {
		switch {
		case s.scheme == "wss" && !custom:
			v.wrongItem(key+".servers", i, "aws-iot-core over WebSocket needs a signature this build cannot make; write mqtts:// with cert and key, or set the username of a custom authorizer")
		case s.scheme == "mqtts" && s.port == 443 && len(u.ALPN) == 0:
			// On 443 the protocol is told by ALPN: certificates by the first, custom authorizers by the second.
			u.ServerALPN[i] = []string{"x-amzn-mqtt-ca"}
			if custom {
				u.ServerALPN[i] = []string{"mqtt"}
			}
		}
	}
	if !custom && u.Cert == "" && !v.given(key+".cert") {
		v.wrong(key+".cert", "aws-iot-core knows a client by its certificate: set cert and key, or the username of a custom authorizer")
	}
	if r := u.MaxRate.Messages; u.Batch != nil {
		u.Limits.MaxPublishes = awsRate
	} else if r == 0 || r > awsRate {
		v.warn(key+".max_rate", "aws-iot-core takes 100 messages a second of one connection and delays or drops it above that")
	}
	if len(u.Commands) > awsSubscriptions {
		v.wrong(key+".command", "aws-iot-core takes at most %d subscriptions at once, this uplink has %d", awsSubscriptions, len(u.Commands))
	}
	if len(u.ClientID) > awsClientID {
		v.wrong(key+".client_id", "has %d bytes, aws-iot-core takes %d", len(u.ClientID), awsClientID)
	}
	v.commandLimits(key, u)
}

// commandLimits checks the filters of commands against the bounds of topics.
func (v *validator) commandLimits(key string, u *Uplink) {
	for i, c := range u.Commands {
		if err := u.Limits.CheckTopic(c.From); c.From != "" && err != nil {
			v.wrong(indexed(key+".command", i)+".from", "%s", err)
		}
	}
}

// fillIoTHub: the hub speaks MQTT 3.1.1 only.
func fillIoTHub(v *validator, key string, u *Uplink) {
	if !v.given(key + ".protocol") {
		u.Protocol = "3.1.1"
	}
	if !v.given(key + ".retain") {
		u.Retain = "strip"
	}
}

func checkIoTHub(v *validator, key string, u *Uplink, servers []endpoint) {
	if u.Protocol == "5" {
		v.wrong(key+".protocol", `azure-iot-hub speaks MQTT 3.1.1 only: write "3.1.1", or leave the key out`)
	}
	if !v.given(key + ".client_id") {
		v.wrong(key+".client_id", "azure-iot-hub knows a device by its identifier: set client_id to the device id")
	}
	certificate := u.Cert != "" || v.given(key+".cert")
	sas := u.SASKey.IsSet() || v.given(key+".sas_key")
	password := u.Password.IsSet() || v.given(key+".password")
	switch {
	case !certificate && !sas && !password:
		v.wrong(key+".sas_key", "azure-iot-hub wants the device's key (sas_key), a token of it (password), or its certificate (cert and key)")
	case sas && password:
		v.wrong(key+".password", "and sas_key exclude each other: the password is made from the key")
	}
	if sas {
		v.span(key+".sas_lifetime", u.SASLifetime, time.Minute, 365*day)
	}
	if raw, err := base64.StdEncoding.DecodeString(u.SASKey.value); u.SASKey.IsSet() && (err != nil || len(raw) == 0) {
		v.wrong(key+".sas_key", "is no base64 key; copy the device's primary key as the portal shows it")
	}
	if u.Username != "" && !strings.Contains(u.Username, "/"+u.ClientID+"/") {
		v.wrong(key+".username", "azure-iot-hub wants HUB/%s/?api-version=...; leave the key out, it is filled in", u.ClientID)
	}
	for i, s := range servers {
		if s.scheme == "wss" && s.path == "/$iothub/websocket" && !certificate {
			u.Servers[i] = s.String() + "?iothub-no-client-cert=true"
		}
	}
	device := "devices/" + HubResource(u.ClientID)
	u.Limits.TopicPrefix = device + "/messages/events/"
	for i, c := range u.Commands {
		inbox := device + "/messages/devicebound/"
		if strings.HasPrefix(c.From, inbox) && strings.Contains(c.From, "+") {
			v.wrong(indexed(key+".command", i)+".from", "azure-iot-hub takes no + there: write %s#", inbox)
		}
		if c.From != "" && !strings.HasPrefix(c.From, inbox) && !strings.HasPrefix(c.From, "$iothub/") {
			v.wrong(indexed(key+".command", i)+".from", "azure-iot-hub sends commands on %s# and on $iothub/ only", inbox)
		}
	}
}

// HubResource is what stands for a client identifier in topics and tokens of an IoT Hub: that of a module is DEVICE/MODULE.
func HubResource(clientID string) string { return strings.Replace(clientID, "/", "/modules/", 1) }

func checkEventGrid(v *validator, key string, u *Uplink, _ []endpoint) {
	certificate := u.Cert != "" || v.given(key+".cert")
	password := u.Password.IsSet() || v.given(key+".password")
	if !certificate && !password {
		v.wrong(key+".cert", "azure-event-grid knows a client by its certificate: set cert and key (or username and password for webhook authentication)")
	}
	if u.Username == "" {
		v.warn(key+".username", "azure-event-grid wants the client's authentication name here, unless the namespace takes it from the certificate")
	}
}

func checkUserAndPassword(v *validator, key string, u *Uplink, _ []endpoint) {
	if u.Cert != "" || v.given(key+".cert") {
		return
	}
	if u.Username == "" {
		v.wrong(key+".username", "%s wants a user name and a password (or a client certificate)", u.Preset)
	}
	if !u.Password.IsSet() && !v.given(key+".password") {
		v.wrong(key+".password", "%s wants a user name and a password (or a client certificate)", u.Preset)
	}
}

// presetRoutes checks the routes against the services of the uplinks they lead to.
func (v *validator) presetRoutes() {
	for _, name := range names(v.c.Routes) {
		r, key := v.c.Routes[name], join("route", name)
		for _, to := range r.To {
			u, ok := v.c.Uplinks[to]
			if !ok || u.Limits.Service == "" {
				continue
			}
			if u.Limits.MaxQoS == 1 && r.QoS == 2 {
				v.warn(key+".qos", "uplink.%s (%s) takes at most QoS 1: it is sent with that", to, u.Preset)
			}
			if u.Batch != nil {
				continue // topics and flags of the messages stand inside the batches
			}
			if u.Limits.NoRetain && r.Retain == "keep" && v.given(key+".retain") {
				v.warn(key+".retain", "uplink.%s (%s) sends no retained messages: the flag is removed", to, u.Preset)
			}
			v.routeTopic(key+".topic", r.Topic, to, u)
		}
	}
}

// routeTopic checks what is fixed in the topic template of a route.
func (v *validator) routeTopic(key, template, uplink string, u Uplink) {
	parts, err := parseTemplate(template, templateNames())
	if err != nil {
		return // said already
	}
	known := map[string]string{"gateway": v.c.Gateway.ID, "uplink": uplink}
	text := expand(parts, known)
	fixed, _, _ := strings.Cut(text, "{")
	if p := u.Limits.TopicPrefix; !strings.HasPrefix(fixed, p) && !strings.HasPrefix(text, p) {
		v.wrong(key, "uplink.%s (%s) takes only topics that begin with %q", uplink, u.Preset, p)
		return
	}
	atLeast := Limits{Service: u.Preset, MaxTopicBytes: u.Limits.MaxTopicBytes, MaxTopicSlashes: u.Limits.MaxTopicSlashes}
	if err := atLeast.CheckTopic(withoutNames(parts, known)); err != nil {
		v.wrong(key, "uplink.%s: %s", uplink, err)
	}
}

// withoutNames is a template with nothing in the place of what is only known at run time.
func withoutNames(parts []Part, known map[string]string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text + known[p.Name])
	}
	return b.String()
}
