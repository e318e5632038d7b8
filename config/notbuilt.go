package config

import "strings"

// The features of the agreed file that this build does not have.
const (
	noStages     = "filtering and changing messages on a route is not built yet"
	noReplay     = "keeping delivered records is not built yet"
	noEngine     = "engines other than the built-in log are not built yet"
	noDTLS       = "CoAP over DTLS and TLS is not built yet; this build has coap:// over UDP"
	noCoAPClient = "the gateway as a CoAP client is not built yet; devices can POST to it"
	noHTTP       = "the HTTP data surface is not built yet"
	noBrowse     = "subscribing to what stands below a node is not built yet; list the nodes"
	noBackfill   = "reading the server's history is not built yet"
	noMethods    = "methods and events of OPC UA are not built yet"
)

// notBuiltKeys lists the keys of the agreed file that have no field in the structs, with * for a name the user chose.
// A key under one of them is not looked at.
func notBuiltKeys() map[string]string {
	return map[string]string{
		"http": noHTTP,

		"coap.psk_file":    noDTLS,
		"coap.cert":        noDTLS,
		"coap.key":         noDTLS,
		"coap.client_ca":   noDTLS,
		"coap.client_auth": noDTLS,
		"coap.identity":    noDTLS,
		"coap.device":      noCoAPClient,

		"opcua.*.browse":   noBrowse,
		"opcua.*.backfill": noBackfill,
		"opcua.*.method":   noMethods,
		"opcua.*.event":    noMethods,

		"route.*.where":    noStages,
		"route.*.on_error": noStages,
		"route.*.step":     noStages,

		"uplink.*.buffer.keep_delivered": noReplay,
		"uplink.*.buffer.engine":         noEngine,
		"uplink.*.buffer.jetstream":      noEngine,
	}
}

// notBuilt returns what to say about a key whose feature this build does not have.
func notBuilt(shape string) (string, bool) {
	what, ok := notBuiltKeys()[shape]
	return what, ok
}

// notBuiltBelow returns the keys of the table at shape whose features this build does not have.
func notBuiltBelow(shape string) []string {
	var names []string
	for key := range notBuiltKeys() {
		name, ok := strings.CutPrefix(key, shape+".")
		if shape == "" {
			name, ok = key, true
		}
		if ok && !strings.Contains(name, ".") {
			names = append(names, name)
		}
	}
	return names
}
