package config

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// text returns problems as lines without the file's name.
func lines(ps Problems) string {
	var b strings.Builder
	for _, p := range ps {
		b.WriteString(strings.TrimPrefix(p.String(), p.File+":") + "\n")
	}
	return b.String()
}

// checkText checks one file's content.
func checkText(text string) (*Config, Problems) {
	return read("t.toml", []document{{"t.toml", []byte(text)}}, nil)
}

// uplinkText is an uplink that is fed, so that tests about other things have no warning about it.
const uplinkText = "[route.all]\nfrom = ['#']\n[uplink.cloud]\nservers = ['mqtt://127.0.0.1']\n"

// The same with a command, over MQTT 5 and 3.1.1.
const (
	commandText = uplinkText + "[[uplink.cloud.command]]\nfrom = 'a'\nto = 'b'\n"
	command311  = uplinkText + "protocol = '3.1.1'\n[[uplink.cloud.command]]\nfrom = 'a'\nto = 'b'\n"
)

// TestProblems has a case for every kind of problem, with its exact line, column, key and text.
func TestProblems(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	for _, c := range []struct{ name, text, want string }{
		// keys
		{"unknown section", "[gatway]\nid = 'a'", `1:2: gatway: unknown key; did you mean "gateway"?`},
		{"unknown key with a near one", "[log]\n  levle = 'info'", `2:3: log.levle: unknown key; did you mean "level"?`},
		{"unknown key, nothing near", "[log]\nxyzzyx = 1", `2:1: log.xyzzyx: unknown key`},
		{"unknown key near one that is not built", "[listener.a]\nlisten = 'mqtt://127.0.0.1:1'\nclient_caa = 'x'", `3:1: listener.a.client_caa: unknown key; did you mean "client_ca"?`},
		{"unknown key in an array of tables", "[[auth.rule]]\nuser = '*'\npublish = ['a']\n[[auth.rule]]\nuser = '*'\nsubscrib = ['a']\npublish = ['a']", `6:1: auth.rule[2].subscrib: unknown key; did you mean "subscribe"?`},
		{"unknown key within a dotted key", "log.leval = 'info'", `1:5: log.leval: unknown key; did you mean "level"?`},
		{"unknown key in an inline table", "log = { leval = 'info' }", `1:9: log.leval: unknown key; did you mean "level"?`},
		{"unknown quoted key", "[log]\n\"a b\" = 1", `2:1: log."a b": unknown key`},
		{"two of them", "[log]\nlevl = 'info'\nformt = 'text'", "2:1: log.levl: unknown key; did you mean \"level\"?\n3:1: log.formt: unknown key; did you mean \"format\"?"},
		{"columns count characters", "log = { 'ü' = 1, x = 2 }", "1:9: log.\"ü\": unknown key\n1:18: log.x: unknown key"},
		{"name of a table", "[route.'a/b']\nfrom = ['a']", `1:8: route."a/b": a name has 1 to 64 letters, digits, - or _`},
		{"key where a name belongs", "[uplink]\nservers = ['mqtt://h']", `2:1: uplink.servers: must stand in a table with a name of your own, [uplink.NAME]`},
		{"key behind an inner table", uplinkText + "[uplink.cloud.buffer]\nsync = 'always'\nkeep_alive = '30s'", `7:1: uplink.cloud.buffer.keep_alive: unknown key; it belongs to [uplink.cloud] and must stand above the tables inside it`},
		{"key of the file behind a table", "[log]\nversion = 1", `2:1: log.version: unknown key; it belongs to the top of the file, above the first [table]`},
		{"version", "version = 2", `1:11: version: version 2 is not known; this build reads version 1`},

		// types
		{"string for an integer", "[broker]\nmax_clients = '5'", `2:15: broker.max_clients: must be an integer, not a string`},
		{"integer for a string", uplinkText + "protocol = 5", `5:12: uplink.cloud.protocol: must be a string, not an integer`},
		{"string for a boolean", "[auth]\nanonymous = 'yes'", `2:13: auth.anonymous: must be a boolean, not a string`},
		{"string for an array", "[uplink.c]\nservers = 'mqtt://h'", "1:9: uplink.c: warning: no route leads to it, so no message goes up\n2:11: uplink.c.servers: must be an array, [\"mqtt://h\"], not a string"},
		{"wrong item of an array", "[uplink.c]\nservers = ['mqtt://h', 5]\n[route.r]\nfrom=['a']", "2:24: uplink.c.servers: must be a string, not an integer"},
		{"table for a string", "[log.level]\nx = 1", `1:6: log.level: must be a string, not a table`},
		{"string for a table", "log = 'info'", `1:7: log: must be a table, not a string`},
		{"table for an array of tables", "[auth.rule]\nuser = 'a'", `1:7: auth.rule: must be an array of tables, [[auth.rule]], not a table`},
		{"array of tables for a table", "[[log]]\nlevel = 'info'", `1:3: log: must be a table, not an array`},
		{"decimal number", "[broker]\nmax_clients = 1.5", `2:15: broker.max_clients: must be an integer, not a decimal number`},
		{"date", "[broker]\nmax_clients = 2026-01-02", `2:15: broker.max_clients: must be an integer, not a date or time`},
		{"number beyond 64 bits", "[broker]\nmax_clients = 99999999999999999999", "2:15: broker.max_clients: the number 99999999999999999999 is too large"},
		{"number beyond 32 bits", "[broker]\nmax_clients = 5_000_000_000", `2:15: broker.max_clients: 5000000000 is too large`},

		// units and words
		{"duration", "[broker]\nsession_expiry = '7 days'", `2:18: broker.session_expiry: "7 days" is no duration, write it as "250ms", "30s", "5m", "24h" or "7d"`},
		{"duration without quotes", "[broker]\nsession_expiry = 7", `2:18: broker.session_expiry: must be a duration in quotes, such as "30s", not an integer`},
		{"size", "[broker]\nmax_packet = '1M'", `2:14: broker.max_packet: "1M" is no size, write it as "64KiB", "2GiB" or "500MB"`},
		{"size without quotes", "[broker]\nmax_packet = 1048576", `2:14: broker.max_packet: must be a size in quotes, such as "64KiB", not an integer`},
		{"log level", "[log]\nlevel = 'warning'", `2:9: log.level: must be "debug", "info", "warn" or "error", not "warning"; did you mean "warn"?`},
		{"log format", "[log]\nformat = 'xml'", `2:10: log.format: must be "text" or "json", not "xml"`},
		{"qos", "[route.r]\nfrom = ['a']\nqos = 0\n[uplink.c]\nservers=['mqtt://h']", `3:7: route.r.qos: must be 1 or 2, not 0`},
		{"lane", uplinkText + "[route.r]\nfrom = ['a']\nlane = 'urgnt'", `7:8: route.r.lane: must be "normal" or "urgent", not "urgnt"; did you mean "urgent"?`},
		{"retain", uplinkText + "[route.r]\nfrom = ['a']\nretain = true", `7:10: route.r.retain: must be a string, not a boolean`},
		{"retain word", uplinkText + "[route.r]\nfrom = ['a']\nretain = 'yes'", `7:10: route.r.retain: must be "keep" or "clear", not "yes"`},
		{"protocol", uplinkText + "protocol = '3.1'", `5:12: uplink.cloud.protocol: must be "5" or "3.1.1", not "3.1"; did you mean "3.1.1"?`},
		{"when_full", uplinkText + "buffer.when_full = 'drop'", `5:20: uplink.cloud.buffer.when_full: must be "drop-oldest" or "refuse", not "drop"; did you mean "drop-oldest"?`},
		{"sync", uplinkText + "buffer.sync = 'never'", `5:15: uplink.cloud.buffer.sync: must be "always" or a duration such as "1s", not "never"`},
		{"sync of nothing", uplinkText + "buffer.sync = '0s'", `5:15: uplink.cloud.buffer.sync: must be "always" or from 1ms to 1h, not "0s"`},
		{"max_in_flight", uplinkText + "max_in_flight = 65536", `5:17: uplink.cloud.max_in_flight: must be from 1 to 65535, or "auto", not 65536`},
		{"max_in_flight word", uplinkText + "max_in_flight = '5'", `5:17: uplink.cloud.max_in_flight: must be a number without quotes, or "auto", not "5"`},
		{"keep_alive too short", uplinkText + "keep_alive = '500ms'", `5:14: uplink.cloud.keep_alive: must be from 1s to 18h12m15s`},
		{"keep_alive of half seconds", uplinkText + "keep_alive = '1500ms'", `5:14: uplink.cloud.keep_alive: must be whole seconds, as MQTT counts them`},
		{"ack_timeout", uplinkText + "ack_timeout = '0s'", `5:15: uplink.cloud.ack_timeout: must be from 1ms to 24h0m0s`},
		{"max_packet", "[broker]\nmax_packet = '1GiB'", `2:14: broker.max_packet: must be from 128 to 268435460, not 1073741824`},
		{"max_clients", "[broker]\nmax_clients = 0", `2:15: broker.max_clients: must be from 1 to 10000000, not 0`},
		{"max_keep_alive", "[broker]\nmax_keep_alive = '1d'", `2:18: broker.max_keep_alive: must be from 1s to 18h12m15s`},
		{"gateway id", "[gateway]\nid = 'hall/3'", `2:6: gateway.id: "hall/3" cannot be part of a topic: no spaces, none of / + # { } " \, and no $ in front`},
		{"empty gateway id", "[gateway]\nid = ''", `2:6: gateway.id: must have 1 to 64 bytes`},
		{"data_dir", "[gateway]\ndata_dir = ''", `2:12: gateway.data_dir: is empty; leave the key out for the default`},
		{"data_dir is a file", "[gateway]\ndata_dir = '/dev/null'", `2:12: gateway.data_dir: /dev/null is no folder`},
		{"data_dir below a file", "[gateway]\ndata_dir = '/dev/null/a/b'", `2:12: gateway.data_dir: /dev/null is no folder`},
		{"batch", uplinkText + "batch = true", `5:9: uplink.cloud.batch: must be a table, not a boolean`},
		{"batch of nothing", uplinkText + "batch = { max_messages = 0, max_bytes = '1B' }", "5:26: uplink.cloud.batch.max_messages: must be from 1 to 10000, not 0\n5:41: uplink.cloud.batch.max_bytes: must be from 1KiB to 1MiB"},
		{"batch that is too large", uplinkText + "batch = { max_bytes = '2MiB', max_delay = '2h' }", "5:23: uplink.cloud.batch.max_bytes: must be from 1KiB to 1MiB\n5:43: uplink.cloud.batch.max_delay: must be from 0s to 1h0m0s"},
		{"batch compression", uplinkText + "batch = { compress = 'zst' }", `5:22: uplink.cloud.batch.compress: must be "zstd", "gzip" or "none", not "zst"; did you mean "zstd"?`},
		{"batch key", uplinkText + "batch = { max_mesages = 5 }", `5:11: uplink.cloud.batch.max_mesages: unknown key; did you mean "max_messages"?`},
		{"batch topic", uplinkText + "batch.topic = '{topic}/x'", `5:15: uplink.cloud.batch.topic: unknown name {topic}, known here are {gateway} {uplink}`},
		{"batch topic with a wildcard", uplinkText + "batch.topic = 'x/#'", `5:15: uplink.cloud.batch.topic: a topic name has no + and # [MQTT-3.3.2-2]`},
		{"batch topic of the cloud broker's own", uplinkText + "batch.topic = '$SYS/x'", `5:15: uplink.cloud.batch.topic: the topics $SYS/# and $share/# are the cloud broker's own`},
		{"empty batch topic", uplinkText + "batch.topic = ''", `5:15: uplink.cloud.batch.topic: the template is empty`},
		{"small buffer", uplinkText + "buffer.max_bytes = '64KiB'", `5:20: uplink.cloud.buffer.max_bytes: warning: is smaller than broker.max_packet: a large message can never be sent up`},
		{"buffer of nothing", uplinkText + "buffer.max_bytes = '0B'", `5:20: uplink.cloud.buffer.max_bytes: must be from 1 to 1125899906842624, not 0`},

		// filters and templates
		{"filter with # inside", uplinkText + "[route.r]\nfrom = ['a', 'a/#/b']", `6:14: route.r.from: the filter "a/#/b" is not valid: # can only be the last level [MQTT-4.7.1-1]`},
		{"filter with + inside a level", uplinkText + "[route.r]\nfrom = ['a+']", `6:9: route.r.from: the filter "a+" is not valid: + and # stand alone in their level [MQTT-4.7.1-2]`},
		{"empty filter", uplinkText + "[route.r]\nfrom = ['']", `6:9: route.r.from: the filter is empty`},
		{"shared filter", uplinkText + "[route.r]\nfrom = ['$share/g/a']", `6:9: route.r.from: a shared subscription cannot stand here; write the filter alone, without $share/GROUP/`},
		{"reserved filter", uplinkText + "[route.r]\nfrom = ['$SYS/#', 'tidegate/#']", "6:9: route.r.from: the topics $… and tidegate/# are the gateway's own and never sent up by a route\n6:19: route.r.from: the topics $… and tidegate/# are the gateway's own and never sent up by a route"},
		{"filter twice", uplinkText + "[route.r]\nfrom = ['a', 'a']", `6:14: route.r.from: warning: is listed twice`},
		{"no filter", uplinkText + "[route.r]\nfrom = []", `6:8: route.r.from: is empty: the route would send nothing`},
		{"missing from", uplinkText + "[route.r]\nqos = 1", `5:8: route.r.from: is missing: name the topics to send up, such as ["plant/#"]`},
		{"except covers from", uplinkText + "[route.r]\nfrom = ['a/+']\nexcept = ['a/#']", `7:11: route.r.except: takes away everything that "a/+" of from selects`},
		{"except beside from", uplinkText + "[route.r]\nfrom = ['a/+']\nexcept = ['b/#']", `7:11: route.r.except: warning: has no effect: from selects none of it`},
		{"bad except", uplinkText + "[route.r]\nfrom = ['a/+']\nexcept = ['b#']", `7:11: route.r.except: the filter "b#" is not valid: + and # stand alone in their level [MQTT-4.7.1-2]`},
		{"template name", uplinkText + "[route.r]\nfrom = ['a/+']\ntopic = 'x/{gatway}'", `7:9: route.r.topic: unknown name {gatway}, known here are {gateway} {uplink} {topic} {1} {2} {3} {4} {5} {6} {7} {8} {9} {rest} {user} {client} {protocol}; did you mean "{gateway}"?`},
		{"template brace", uplinkText + "[route.r]\nfrom = ['a/+']\ntopic = 'x/{topic'", `7:9: route.r.topic: { without } in "x/{topic"`},
		{"template other brace", uplinkText + "[route.r]\nfrom = ['a/+']\ntopic = 'x/topic}'", `7:9: route.r.topic: } without { in "x/topic}"`},
		{"empty template", uplinkText + "[route.r]\nfrom = ['a/+']\ntopic = ''", `7:9: route.r.topic: the template is empty`},
		{"template with a wildcard", uplinkText + "[route.r]\nfrom = ['a/+']\ntopic = 'x/#'", `7:9: route.r.topic: a topic name has no + and # [MQTT-3.3.2-2]`},
		{
			"several wrong names in a template", uplinkText + "[route.r]\nfrom = ['a/+']\ntopic = '{5}/{0}/{10}/{ rest }/#/{'",
			"7:9: route.r.topic: a topic name has no + and # [MQTT-3.3.2-2]\n" +
				"7:9: route.r.topic: unknown name { rest }, known here are {gateway} {uplink} {topic} {1} {2} {3} {4} {5} {6} {7} {8} {9} {rest} {user} {client} {protocol}; did you mean \"{rest}\"?\n" +
				"7:9: route.r.topic: unknown name {0}, known here are {gateway} {uplink} {topic} {1} {2} {3} {4} {5} {6} {7} {8} {9} {rest} {user} {client} {protocol}; did you mean \"{1}\"?\n" +
				"7:9: route.r.topic: unknown name {10}, known here are {gateway} {uplink} {topic} {1} {2} {3} {4} {5} {6} {7} {8} {9} {rest} {user} {client} {protocol}; did you mean \"{1}\"?\n" +
				"7:9: route.r.topic: { without } in \"{5}/{0}/{10}/{ rest }/#/{\"\n" +
				"7:9: route.r.topic: {5} stays empty: topics of \"a/+\" have 2 levels",
		},
		{"topic of the cloud broker's own", uplinkText + "[route.r]\nfrom = ['a/#']\ntopic = '$SYS/x/{rest}'", `7:9: route.r.topic: the topics $SYS/#, $share/# and tidegate/# are not for messages of devices: the cloud broker's own, or the gateway's`},
		{"topic of the gateway's own", uplinkText + "[route.r]\nfrom = ['a/#']\ntopic = 'tidegate/{gateway}/status'", `7:9: route.r.topic: the topics $SYS/#, $share/# and tidegate/# are not for messages of devices: the cloud broker's own, or the gateway's`},
		{"topic of the gateway's own by its name", "[gateway]\nid = 'tidegate'\n" + uplinkText + "[route.r]\nfrom = ['a/#']\ntopic = '{gateway}/{topic}'", `9:9: route.r.topic: the topics $SYS/#, $share/# and tidegate/# are not for messages of devices: the cloud broker's own, or the gateway's`},
		{"level that no topic has", uplinkText + "[route.r]\nfrom = ['a/+']\ntopic = '{2}/{3}'", `7:9: route.r.topic: {3} stays empty: topics of "a/+" have 2 levels`},
		{"level that some topics lack", uplinkText + "[route.r]\nfrom = ['a/+', 'b/#']\ntopic = '{3}'", `7:9: route.r.topic: warning: {3} stays empty for some messages: topics of "a/+" have 2 levels`},
		{"rest without #", uplinkText + "[route.r]\nfrom = ['a/+']\ntopic = '{rest}'", `7:9: route.r.topic: {rest} stays empty: "a/+" has no #`},

		// routes and uplinks
		{"to an unknown uplink", uplinkText + "[route.r]\nfrom = ['a']\nto = ['clod']", `7:7: route.r.to: there is no [uplink.clod]; did you mean "cloud"?`},
		{"to one uplink twice", uplinkText + "[route.r]\nfrom = ['a']\nto = ['cloud', 'cloud']", `7:16: route.r.to: "cloud" is listed twice`},
		{"route to nowhere", "[route.r]\nfrom = ['a']", `1:8: route.r: warning: leads nowhere: there is no [uplink.NAME]`},
		{"uplink without a route", "[uplink.c]\nservers = ['mqtt://h']", `1:9: uplink.c: warning: no route leads to it, so no message goes up`},
		{"uplink without a server", "[route.r]\nfrom = ['a']\n[uplink.c]", `3:9: uplink.c.servers: is missing: name at least one server, such as ["mqtts://broker.example.com:8883"]`},
		{"no server", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = []", `4:11: uplink.c.servers: is empty: name at least one server`},
		{"server twice", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['mqtt://h', 'mqtt://h:1883']", `4:24: uplink.c.servers: is listed twice: a server that fails is tried again anyway`},
		{"server of another protocol", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['ssl://h']", `4:12: uplink.c.servers: unknown scheme ssl://, known here are mqtt://, mqtts://, ws://, wss://; did you mean "mqtts://"?`},
		{"server without a scheme", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['h:1883']", `4:12: uplink.c.servers: "h:1883" is no address of the form mqtt://HOST:PORT`},
		{"server without a host", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['mqtt://:1883']", `4:12: uplink.c.servers: "mqtt://:1883" needs a host and a port`},
		{"server with a colon and no port", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['mqtt://h:']", `4:12: uplink.c.servers: "mqtt://h:" has a colon and no port behind it; the form is mqtt://HOST:PORT`},
		{"uplink with a bad name", "[route.r]\nfrom = ['a']\n[uplink.\"a b\"]\nservers = ['ssl://h']\nprotcol = '5'", "3:9: uplink.\"a b\": a name has 1 to 64 letters, digits, - or _\n4:12: uplink.\"a b\".servers: unknown scheme ssl://, known here are mqtt://, mqtts://, ws://, wss://; did you mean \"mqtts://\"?\n5:1: uplink.\"a b\".protcol: unknown key; did you mean \"protocol\"?"},
		{"server over WebSocket with a fragment", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['wss://h/a#b']", `4:12: uplink.c.servers: "wss://h/a#b" has something behind the port; the form is mqtt://HOST:PORT`},
		{"server with a login", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['mqtt://a:b@h']", `4:12: uplink.c.servers: an address holds no user or password; they have keys of their own`},
		{"server with a path", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['mqtt://h/mqtt']", `4:12: uplink.c.servers: "mqtt://h/mqtt" has something behind the port; the form is mqtt://HOST:PORT`},
		{"one client identifier twice", uplinkText + "client_id = 'x'\n[uplink.b]\nservers = ['mqtt://127.0.0.1:1883']\nclient_id = 'x'", `4:12: uplink.cloud.servers: uplink.b has the same server and the same client identifier "x": they would throw each other off`},
		{"client identifier of a message", uplinkText + "client_id = '{topic}'", `5:13: uplink.cloud.client_id: unknown name {topic}, known here are {gateway} {uplink}`},
		{"password without a user", uplinkText + "protocol = '3.1.1'\npassword = 'x'", `6:12: uplink.cloud.password: MQTT 3.1.1 has no password without a user name [MQTT-3.1.2-22]: set username`},
		{"password in the clear", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['mqtt://h']\nusername = 'u'\npassword = 'x'", `6:12: uplink.c.password: warning: goes to mqtt://h:1883 unencrypted; mqtts:// encrypts it`},
		{"sync overruled", uplinkText + "buffer.sync = '1s'\n[uplink.b]\nservers = ['mqtt://h']", `5:15: uplink.cloud.buffer.sync: warning: has no effect: uplinks share one log, and uplink.b.buffer.sync is stricter`},

		// commands
		{"command without from and to", uplinkText + "[[uplink.cloud.command]]", "5:16: uplink.cloud.command[1].from: is missing: name the topics at the cloud broker\n5:16: uplink.cloud.command[1].to: is missing: name the local topic"},
		{"command filter", uplinkText + "[[uplink.cloud.command]]\nfrom = 'a/#/b'\nto = 'x'", `6:8: uplink.cloud.command[1].from: the filter "a/#/b" is not valid: # can only be the last level [MQTT-4.7.1-1]`},
		{"command filter with a level", uplinkText + "[[uplink.cloud.command]]\nfrom = '{1}/#'\nto = 'x'", `6:8: uplink.cloud.command[1].from: unknown name {1}, known here are {gateway} {uplink}`},
		{"command filter and local topic", uplinkText + "[[uplink.cloud.command]]\nfrom = '{1}/#'\nto = 'x/{rset}'", "6:8: uplink.cloud.command[1].from: unknown name {1}, known here are {gateway} {uplink}\n7:6: uplink.cloud.command[1].to: unknown name {rset}, known here are {gateway} {uplink} {topic} {1} {2} {3} {4} {5} {6} {7} {8} {9} {rest}; did you mean \"{rest}\"?"},
		{"command to a user", uplinkText + "[[uplink.cloud.command]]\nfrom = 'a'\nto = '{user}'", `7:6: uplink.cloud.command[1].to: unknown name {user}, known here are {gateway} {uplink} {topic} {1} {2} {3} {4} {5} {6} {7} {8} {9} {rest}`},
		{"command to the gateway's topics", uplinkText + "[[uplink.cloud.command]]\nfrom = 'a'\nto = 'tidegate/x'", `7:6: uplink.cloud.command[1].to: the topics $… and tidegate/# are the gateway's own`},
		{"overlapping commands", "[gateway]\nid = 'g'\n" + uplinkText + "[[uplink.cloud.command]]\nfrom = 'a/{gateway}/#'\nto = 'x'\n[[uplink.cloud.command]]\nfrom = 'a/+/b'\nto = 'y'", `11:8: uplink.cloud.command[2].from: overlaps "a/g/#" of uplink.cloud.command[1]: a command would be taken twice`},
		{"command without a name of its identity", commandText + "id = ''\ntime = ''", "8:6: uplink.cloud.command[1].id: names no user property; leave the key out for the default\n9:8: uplink.cloud.command[1].time: names no user property; leave the key out for the default"},
		{"command with identity and time in one", commandText + "id = 'tg-time'", `8:6: uplink.cloud.command[1].id: identity and time are not in one property: id and time must differ`},
		{"long window of a command", commandText + "replay_window = '366d'", `8:17: uplink.cloud.command[1].replay_window: must be "off" or from 1s to 365d`},
		{"short window of a command", commandText + "replay_window = '10ms'", `8:17: uplink.cloud.command[1].replay_window: must be "off" or 1s or more, not "10ms"`},
		{"identity that is not remembered", commandText + "require_id = true\nreplay_window = 'off'", `8:14: uplink.cloud.command[1].require_id: warning: guards against nothing while replay_window is off: no identity is remembered`},
		{"identity over 3.1.1", command311 + "require_id = true\nmax_age = '1h'", "9:14: uplink.cloud.command[1].require_id: a command over MQTT 3.1.1 carries no identity, so every one would be refused; use protocol 5\n10:11: uplink.cloud.command[1].max_age: a command over MQTT 3.1.1 does not say when it was made, so every one would be refused; use protocol 5, or expire"},
		{"window over 3.1.1", command311 + "replay_window = '1h'", `9:17: uplink.cloud.command[1].replay_window: warning: has no effect: commands over MQTT 3.1.1 have no user properties`},
		{"misspelt key of a command", commandText + "max_ages = '1h'", `8:1: uplink.cloud.command[1].max_ages: unknown key; did you mean "max_age"?`},
		{"rest of a command without #", uplinkText + "[[uplink.cloud.command]]\nfrom = 'a/+'\nto = 'x/{rest}'", `7:6: uplink.cloud.command[1].to: {rest} stays empty: "a/+" has no #`},

		// addresses
		{"listener without an address", "[listener.a]", `1:11: listener.a.listen: is missing: say where to listen, such as "mqtt://127.0.0.1:1883"`},
		{"listener scheme", "[listener.a]\nlisten = 'tcp://127.0.0.1:1883'", `2:10: listener.a.listen: unknown scheme tcp://, known here are mqtt://, mqtts://, ws://, wss://; did you mean "mqtt://"?`},
		{"listener over TLS without a certificate", "[listener.a]\nlisten = 'mqtts://127.0.0.1:8883'", "1:11: listener.a.cert: is missing: TLS needs a certificate; `tidegate cert init` makes one for a site that has no authority of its own\n1:11: listener.a.key: is missing: TLS needs the key that belongs to the certificate"},
		{"plain listener with a key of TLS", "[listener.a]\nlisten = 'ws://127.0.0.1'\nmin_tls = '1.3'", `3:11: listener.a.min_tls: is only for mqtts:// and wss://; write wss://, or remove it`},
		{"listener with a query", "[listener.a]\nlisten = 'ws://127.0.0.1/a?b=c'", `2:10: listener.a.listen: "ws://127.0.0.1/a?b=c" has a query; a listener has a path at most`},
		{"origins without WebSocket", "[listener.a]\nlisten = 'mqtt://127.0.0.1:1'\norigins = ['*']", `3:11: listener.a.origins: is only for ws:// and wss://`},
		{"origin with a path", "[listener.a]\nlisten = 'ws://127.0.0.1:1'\norigins = ['https://h/', 'https://h/x', 'h']", "3:26: listener.a.origins: \"https://h/x\" is no origin; write it as \"https://HOST\", or \"*\" for every page\n3:41: listener.a.origins: \"h\" is no origin; write it as \"https://HOST\", or \"*\" for every page"},
		{"connect rate", "[broker]\nmax_connect_rate = '50'", `2:20: broker.max_connect_rate: must be "off" or a rate such as "50/s" or "30/m", not "50"`},
		{"connect rate without quotes", "[broker]\nmax_connect_rate = 50", `2:20: broker.max_connect_rate: must be "off" or a rate in quotes, such as "50/s", not an integer`},
		{"port", "[listener.a]\nlisten = 'mqtt://127.0.0.1:65536'", `2:10: listener.a.listen: the port 65536 is not from 0 to 65535`},
		{"no address at all", "[listener.a]\nlisten = ''", `2:10: listener.a.listen: "" is no address of the form mqtt://HOST:PORT`},
		{"two listeners on one address", "[listener.a]\nlisten = 'mqtt://127.0.0.1:1883'\n[listener.b]\nlisten = 'mqtt://localhost'", `4:10: listener.b.listen: mqtt://localhost:1883 is taken by listener.a.listen (mqtt://127.0.0.1:1883)`},
		{"every address and one of them", "[auth]\nanonymous = true\n[listener.a]\nlisten = 'mqtt://:1883'\n[listener.b]\nlisten = 'mqtt://[::1]:1883'", `6:10: listener.b.listen: mqtt://[::1]:1883 is taken by listener.a.listen (mqtt://:1883)`},
		{"admin on a listener's address", "[listener.a]\nlisten = 'mqtt://127.0.0.1:8080'\n[admin]", `3:2: admin.listen: http://127.0.0.1:8080 is taken by listener.a.listen (mqtt://127.0.0.1:8080)`},
		{"admin on the default listener's address", "[admin]\nlisten = 'http://127.0.0.1:1883'", `2:10: admin.listen: http://127.0.0.1:1883 is taken by listener.mqtt.listen (mqtt://127.0.0.1:1883)`},
		{"admin away from loopback", "[admin]\nlisten = 'http://:8080'", `2:10: admin.listen: away from loopback [admin] wants a login: https:// with client_ca, so that only holders of a certificate come in; or listen on 127.0.0.1`},
		{"admin over TLS", "[admin]\nlisten = 'https://127.0.0.1'", `1:2: admin.cert: is missing: TLS needs a certificate; ` + "`tidegate cert init`" + ` makes one for a site that has no authority of its own
1:2: admin.key: is missing: TLS needs the key that belongs to the certificate`},

		// who may what
		{"identifiers of nobody", "[auth]\nanonymous = true\nclient_id = 'user'\n[listener.a]\nlisten = 'mqtt://127.0.0.1:0'", `3:13: auth.client_id: "user" needs every client to have one, and listener a admits clients without; set anonymous = false in [auth] or there`},
		{"identifiers of whom", "[auth]\nclient_id = 'users'", `2:13: auth.client_id: must be "any" or "user", not "users"; did you mean "user"?`},
		{"nobody can connect, said", "[auth]\nanonymous = false", `2:13: auth.anonymous: nobody can connect: no listener admits anonymous clients and there is no auth.users_file`},
		{"nobody can connect, by listener", "[auth]\nanonymous = true\n[listener.a]\nlisten = 'mqtt://127.0.0.1:0'\nanonymous = false", `2:13: auth.anonymous: nobody can connect: no listener admits anonymous clients and there is no auth.users_file`},
		{"nobody can connect, by default", "[listener.a]\nlisten = 'mqtt://:1883'", `2:10: listener.a.listen: warning: nobody can connect: no listener admits anonymous clients and there is no auth.users_file; other machines can reach this address, so anonymous clients are only admitted by auth.anonymous = true`},
		{"users file", "[auth]\nusers_file = '/nowhere/users.toml'", "2:14: auth.users_file: /nowhere/users.toml: no such file; `tidegate passwd USER` writes it"},
		{"no users file", "[auth]\nusers_file = ''", `2:14: auth.users_file: is empty; leave the key out when there is no such file`},
		{"rule without a user", "[[auth.rule]]\npublish = ['a']", `1:8: auth.rule[1].user: is missing: say whom it is for: a name, "press-*", "anonymous" or "*"`},
		{"rule of an empty user", "[[auth.rule]]\nuser = ''\npublish = ['a']", `2:8: auth.rule[1].user: is empty; for clients without a name write "anonymous"`},
		{"rule without topics", "[[auth.rule]]\nuser = 'a'", `1:8: auth.rule[1]: names no topics: give it publish, subscribe, deny_publish or deny_subscribe`},
		{"rule with a bad filter", "[[auth.rule]]\nuser = 'a'\ndeny_subscribe = ['#', 'a/#/']", `3:24: auth.rule[1].deny_subscribe: the filter "a/#/" is not valid: # can only be the last level [MQTT-4.7.1-1]`},
		{"rule with an unknown name", "[[auth.rule]]\nuser = 'a'\npublish = ['a/{usr}']", `3:12: auth.rule[1].publish: unknown name {usr}, known here are {user} {client}; did you mean "{user}"?`},
		{"rule without effect", "[[auth.rule]]\nuser = 'a'\npublish = ['tidegate/x']", `3:12: auth.rule[1].publish: warning: has no effect: no device may publish to $… and tidegate/#`},

		// files and secrets
		{"ca without TLS", uplinkText + "ca = '/nowhere/ca.crt'", "5:6: uplink.cloud.ca: /nowhere/ca.crt: no such file\n5:6: uplink.cloud.ca: is only for mqtts:// and wss://, and no server of this uplink is; write mqtts:// or remove it"},
		{"cert without a key", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['mqtts://h']\ncert = '/nowhere/c.crt'", "5:8: uplink.c.cert: /nowhere/c.crt: no such file\n5:8: uplink.c.cert: needs the key that belongs to it: set key"},
		{"key without a cert", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['mqtts://h']\nkey = '/nowhere/c.key'", "5:7: uplink.c.key: /nowhere/c.key: no such file\n5:7: uplink.c.key: needs the certificate that belongs to it: set cert"},
		{"empty ca", "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['mqtts://h']\nca = ''", `5:6: uplink.c.ca: is empty; leave the key out when there is no such file`},
		{"secret of the environment", uplinkText + "username = 'u'\npassword = { env = 'TIDEGATE_TEST_NOT_SET' }", `6:20: uplink.cloud.password.env: the environment variable TIDEGATE_TEST_NOT_SET is not set`},
		{"secret of a file", uplinkText + "username = 'u'\npassword = { file = '/nowhere/p' }", `6:21: uplink.cloud.password.file: /nowhere/p: no such file`},
		{"secret of systemd", uplinkText + "username = 'u'\npassword = { credential = 'p' }", `6:27: uplink.cloud.password.credential: no credentials here: systemd sets CREDENTIALS_DIRECTORY for LoadCredential= and ImportCredential=`},
		{"secret of another kind", uplinkText + "username = 'u'\npassword = { evn = 'p' }", `6:14: uplink.cloud.password.evn: unknown key, a secret is a string, { env = "NAME" }, { file = "PATH" } or { credential = "NAME" }; did you mean "env"?`},
		{"secret from two sources", uplinkText + "username = 'u'\npassword = { env = 'p', file = 'q' }", `6:12: uplink.cloud.password: must be a string, { env = "NAME" }, { file = "PATH" } or { credential = "NAME" }, and exactly one of them`},
		{"secret of nothing", uplinkText + "username = 'u'\npassword = ''", `6:12: uplink.cloud.password: is empty; leave the key out when there is no secret`},
		{"secret of a wrong type", uplinkText + "username = 'u'\npassword = { env = 5 }", `6:20: uplink.cloud.password.env: must be a string, not an integer`},

		// TOML itself
		{"syntax", "[log]\nlevel = info", `2:9: log.level: text stands in quotes: "info"`},
		{"unit without quotes", uplinkText + "keep_alive = 30s", `5:14: uplink.cloud.keep_alive: text stands in quotes: "30s"`},
		{"more than a value", "version = 1 2", `1:13: version: expected newline but got U+0032 '2'`},
		{"syntax, and it goes on", "[log]\nlevel = 'a\nformat = 'xml'\n[gatway]", "2:11: log.level: literal strings cannot have new lines\n3:10: log.format: must be \"text\" or \"json\", not \"xml\"\n4:2: gatway: unknown key; did you mean \"gateway\"?"},
		{"broken header takes its keys along", "[log\nlevel = 'x'\n[broker]\nmax_clients = 0", "1:5: expected ']' to close table name\n4:15: broker.max_clients: must be from 1 to 10000000, not 0"},
		{"nothing is missing below a syntax error", "[route.r]\nfrom = [plant]\n[uplink.c]\nservers = ['mqtt://h']", `2:9: route.r.from: unexpected character U+0070 'p' at start of value`},
		{"key twice", "[log]\nlevel = 'info'\nlevel = 'warn'", `3:1: log.level: was set at t.toml:2:1 already`},
		{"table twice", "[log]\nlevel = 'info'\n[log]\nformat = 'xml'", "3:2: log: the table is already there, at t.toml:1:2\n4:10: log.format: must be \"text\" or \"json\", not \"xml\""},
		{"table below a value", "version = 1\n[version.x]", `2:2: version: cannot hold tables: it was set at t.toml:1:1`},
		{"table of a dotted key", "[listener]\na.listen = 'mqtt://127.0.0.1:0'\n[listener.a]", `3:11: listener.a: was set at t.toml:2:1 already`},
		{"dotted key into a table", "[log]\nlevel = 'info'\n[gateway]\n[listener.a]\nlisten = 'mqtt://127.0.0.1:0'\n[auth]\n[auth.x]\n[broker]\n[x]\ny.z = 1\n[x.y]", "7:7: auth.x: unknown key\n9:2: x: unknown key\n11:4: x.y: was set at t.toml:10:1 already"},
		{"array of tables that is none", "[log]\n[[log]]", `2:3: log: is no array of tables: it was set at t.toml:1:2`},
		{"inline table is closed", "log = { level = 'info' }\n[log.x]", `2:2: log: cannot hold tables: it was set at t.toml:1:1`},
		{"no text", "[log]\nlevel = '\xff'", `2:10: the file is not UTF-8 text`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, ps := checkText(c.text); lines(ps) != c.want+"\n" {
				t.Errorf("for\n%s\ngot\n%swant\n%s\n", c.text, lines(ps), c.want)
			}
		})
	}
}

// TestFine has files that look odd but are right.
func TestFine(t *testing.T) {
	for _, text := range []string{
		"",
		"\ufeffversion = 1\r\n[log]\r\nlevel = \"debug\"\r\n",
		uplinkText,
		uplinkText + "[admin]",
		"[listener]\n",
		"[listener.a]\nlisten = 'mqtt://127.0.0.1:0'\n[listener.b]\nlisten = 'mqtt://127.0.0.1:0'",
		"[listener.a]\nlisten = 'mqtt://127.0.0.1:1883'\n[listener.b]\nlisten = 'mqtt://127.0.0.2:1883'\n[listener.c]\nlisten = 'mqtt://[::1]:1883'",
		"[listener.a]\nlisten = 'mqtt://0.0.0.0:1883'\n[listener.b]\nlisten = 'mqtt://[::1]:1883'\n[auth]\nanonymous = true",
		"[auth]\nanonymous = false\n[listener.a]\nlisten = 'mqtt://:1'\nanonymous = true",
		uplinkText + "[route.r]\nfrom = ['a/#', 'b/#']\ntopic = '{uplink}/{3}/{rest}'\nto = []",
		uplinkText + "[[uplink.cloud.command]]\nfrom = 'a/#'\nto = '{rest}'\n[[uplink.cloud.command]]\nfrom = 'b/+'\nto = 'x/{2}'",
		"[coap]\nlisten = ['coap://127.0.0.1:1883', 'coap://127.0.0.1:0', 'coap://127.0.0.1:0']", // TCP and UDP do not meet
		"[opcua.a]\nendpoint = 'opc.tcp://h/x/y'\n[[opcua.a.node]]\nid = 'nsu=urn:x;s=a;b'\ntopic = 'a'\ndeadband = 1\n" +
			"[[opcua.a.node]]\nid = 'g=09087e75-8e5e-499b-954f-f2a9603db28a'\ntopic = 'b/{name}'\ndeadband = '0.5%'\n" +
			"[[opcua.a.write]]\nid = 'ns=3;b=YWJj'\ntopic = 'c'",
		uplinkText + "max_in_flight = 20\nbuffer = { sync = '1s', when_full = 'refuse' }",
		uplinkText + "[uplink.b]\nservers = ['mqtt://127.0.0.1']",
		uplinkText + "protocol = '5'\npassword = 'token'",
		uplinkText + "[route.aws]\nfrom = ['a/#']\ntopic = '$aws/rules/x/{topic}'",
		"[[auth.rule]]\nuser = 'press-*'\npublish = ['a/{user}/x-{client}/#']",
	} {
		if c, ps := checkText(text); len(ps) > 0 || c == nil {
			t.Errorf("for\n%s\ngot\n%s", text, ps)
		}
	}
}

func TestAllAtOnce(t *testing.T) {
	for _, name := range []string{"wrong", "wrong_bridges"} {
		golden(t, filepath.Join("testdata", name+".toml"), filepath.Join("testdata", name+".json"))
	}
}

// golden compares the problems of a file as JSON with the wanted ones; with UPDATE_GOLDEN set it writes those.
func golden(t *testing.T, file, want string) {
	t.Helper()
	_, ps := Check(file)
	got, err := json.MarshalIndent(ps, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	got = append(bytes.ReplaceAll(got, []byte(here), []byte("HERE")), '\n')
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(want, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != string(got) {
		t.Errorf("problems of %s:\n%s", file, got)
	}
}

func TestOPCUAPasswordNeedsAUser(t *testing.T) {
	_, ps := checkText("[opcua.a]\nendpoint = 'opc.tcp://h'\npassword = { env = 'HOME' }\n[[opcua.a.node]]\nid = 'i=1'\ntopic = 'a'")
	if len(ps) != 1 || ps[0].Key != "opcua.a.password" || ps[0].Severity != Error {
		t.Errorf("got %s", ps)
	}
}
