package config

import (
	"slices"
	"strings"
)

// maxFlying is the most that an uplink has in flight, whatever max_in_flight says.
const maxFlying = 32000

// effects warns of keys of an uplink that do nothing as the others stand.
func (v *validator) effects(key string, u Uplink, servers []endpoint) {
	given := func(name string) bool { return v.given(key + "." + name) }
	encrypted := slices.ContainsFunc(servers, endpoint.encrypted)
	if u.Failback > 0 && u.Failback != defaultFailback && len(servers) == 1 {
		v.warn(key+".failback", "has no effect: there is one server, and nothing to return to")
	}
	for _, name := range []string{"server_name", "alpn"} {
		if given(name) && !encrypted && !slices.ContainsFunc(servers, func(e endpoint) bool { return e.host == "" }) {
			v.warn(key+"."+name, "has no effect: no server of this uplink is mqtts:// or wss://")
		}
	}
	if given("sas_lifetime") && !given("sas_key") {
		v.warn(key+".sas_lifetime", "has no effect without sas_key")
	}
	if u.MaxInFlight > maxFlying {
		v.warn(key+".max_in_flight", "more than %d are never in flight", maxFlying)
	}
	if len(u.ALPN) > 0 && !slices.Contains(u.ALPN, "http/1.1") && slices.ContainsFunc(servers, func(e endpoint) bool { return e.scheme == "wss" }) {
		v.warn(key+".alpn", "wss:// begins with HTTP/1.1: a server that heeds this list will not speak it; add \"http/1.1\"")
	}
}

// ofGateway reports whether a topic is one on which the gateway publishes other things than batches.
func ofGateway(topic, gateway string) bool {
	rest, own := strings.CutPrefix(topic, "tidegate/"+gateway+"/")
	return own && (rest == "status" || strings.HasPrefix(rest, "bridge/") || strings.HasPrefix(rest, "uplink/") && strings.HasSuffix(rest, "/gaps"))
}
