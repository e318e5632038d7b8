// The OPC UA server that the tests talk to. It is told what to be by the JSON in its first argument, prints one JSON line
// per event on standard output and takes one JSON command per line on standard input; it ends when its input does.
import os from "node:os";
import path from "node:path";
import fs from "node:fs";
import readline from "node:readline";
import * as ua from "node-opcua";

const o = {
  port: 0,
  dir: "",                    // certificates
  counters: 0,                // Counter0 … count up, one step for all of them every interval
  interval: 100,
  present: null,              // how many of the counters exist; null: all
  pad: 0,                     // namespaces registered before ours, which moves its index
  itemsPerCall: 0,            // operation limit of CreateMonitoredItems
  users: {},                  // name -> password
  anonymous: true,
  policies: ["None", "Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"],
  modes: ["None", "Sign", "SignAndEncrypt"],
  announce: "",               // host name in the endpoints instead of the real one
  ...JSON.parse(process.argv[2] ?? "{}"),
};

const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
process.on("uncaughtException", (e) => { say({ event: "error", error: String(e?.stack ?? e) }); process.exit(1); });

const pki = new ua.OPCUACertificateManager({ rootFolder: path.join(o.dir, "pki"), automaticallyAcceptUnknownCertificate: true });
await pki.initialize();

const server = new ua.OPCUAServer({
  port: o.port,
  resourcePath: "/UA/Test",
  hostname: o.announce || undefined,
  serverCertificateManager: pki,
  userCertificateManager: pki,
  allowAnonymous: o.anonymous,
  securityPolicies: o.policies.map((p) => ua.SecurityPolicy[p]),
  securityModes: o.modes.map((m) => ua.MessageSecurityMode[m]),
  userManager: { isValidUser: (user, password) => Object.hasOwn(o.users, user) && o.users[user] === password },
  buildInfo: { productName: "tidegate test peer" },
  serverCapabilities: {
    maxSessions: 100,
    minSupportedSampleRate: 0, // with a requested interval of 0 every change is delivered, none is coalesced
    operationLimits: o.itemsPerCall ? { maxMonitoredItemsPerCall: o.itemsPerCall } : {},
  },
});
await server.initialize();

const space = server.engine.addressSpace;
for (let i = 0; i < o.pad; i++) space.registerNamespace(`urn:tidegate:test:pad${i}`);
const ns = space.registerNamespace("urn:tidegate:test");
const objects = space.rootFolder.objects;
const D = ua.DataType;

const plant = ns.addFolder(objects, { browseName: "Plant", nodeId: "s=Plant" });
const line = ns.addObject({ organizedBy: plant, browseName: "Line 1/+#", nodeId: "s=Line1" });

const A = ua.VariantArrayType;
const nodes = new Map();
function addVariable(parent, name, dataType, value, more = {}) {
  const { array, dimensions, as, status, ...rest } = more;
  const variable = ns.addVariable({
    componentOf: parent, browseName: name, nodeId: `s=${name}`, dataType,
    valueRank: array === undefined ? -1 : dimensions ? dimensions.length : 1,
    arrayDimensions: dimensions ?? undefined,
    minimumSamplingInterval: 0, ...rest,
  });
  variable.setValueFromSource({ dataType: as ?? dataType, value, arrayType: array ?? A.Scalar, dimensions }, status);
  nodes.set(name, variable);
  return variable;
}

addVariable(line, "Temperature", D.Double, 21.5);
const scalars = {
  Boolean: [D.Boolean, true], SByte: [D.SByte, -128], Byte: [D.Byte, 255], Int16: [D.Int16, -32768], UInt16: [D.UInt16, 65535],
  Int32: [D.Int32, -2147483648], UInt32: [D.UInt32, 4294967295],
  Int64: [D.Int64, [0x80000000, 0]], UInt64: [D.UInt64, [0xffffffff, 0xffffffff]],
  Float: [D.Float, 1.5], Double: [D.Double, 0.1], NaN: [D.Double, NaN], Infinity: [D.Double, Infinity],
  String: [D.String, "grüße \"+\" \u2028"], EmptyString: [D.String, ""], DateTime: [D.DateTime, new Date("2026-01-02T03:04:05.678Z")],
  Guid: [D.Guid, "72962B91-FA75-4AE6-8D28-B404DC7DAF63"], ByteString: [D.ByteString, Buffer.from([0, 1, 254, 255])],
  LocalizedText: [D.LocalizedText, { locale: "de", text: "Presse" }], QualifiedName: [D.QualifiedName, { namespaceIndex: 1, name: "q" }],
  NodeId: [D.NodeId, ua.resolveNodeId("ns=1;s=x")], StatusCode: [D.StatusCode, ua.StatusCodes.BadDeviceFailure],
};
for (const [name, [type, value]] of Object.entries(scalars)) addVariable(plant, name, type, value);
addVariable(plant, "DoubleArray", D.Double, new Float64Array([1, 2.5, -3]), { array: A.Array });
addVariable(plant, "Matrix", D.Int32, new Int32Array([1, 2, 3, 4, 5, 6]), { array: A.Matrix, dimensions: [2, 3] });
addVariable(plant, "StringArray", D.String, ["a", "b"], { array: A.Array });
addVariable(plant, "EmptyArray", D.Int32, new Int32Array([]), { array: A.Array });
addVariable(plant, "Structure", "Range", new ua.Range({ low: -1, high: 2 }), { as: D.ExtensionObject });
addVariable(plant, "Bad", D.Double, 1, { status: ua.StatusCodes.BadSensorFailure });
addVariable(plant, "ReadOnly", D.Double, 1, { accessLevel: "CurrentRead", userAccessLevel: "CurrentRead" });
addVariable(plant, "Duration", "Duration", 5, { as: D.Double });
addVariable(plant, "Enumeration", "ServerState", 0, { as: D.Int32 });

const counters = [];
const folder = ns.addFolder(objects, { browseName: "Counters", nodeId: "s=Counters" });
function addCounters(from, to, value) {
  for (let i = from; i < to; i++) {
    const v = ns.addVariable({
      componentOf: folder, browseName: `Counter${i}`, nodeId: `s=Counter${i}`, dataType: D.UInt32, minimumSamplingInterval: 0,
    });
    v.setValueFromSource({ dataType: D.UInt32, value });
    counters.push(v);
  }
}
let count = o.start ?? 0;
addCounters(0, o.present ?? o.counters, count);
let ticking = null;
function tick() {
  count++;
  for (const c of counters) c.setValueFromSource({ dataType: D.UInt32, value: count });
}
function run(on) {
  if (on && !ticking) ticking = setInterval(tick, o.interval);
  if (!on && ticking) { clearInterval(ticking); ticking = null; }
}

await server.start();
const endpoint = server.endpoints[0];
say({ event: "ready", port: endpoint.port ?? o.port, certificate: server.getCertificate().toString("base64") });

const commands = {
  run: () => { run(true); return {}; },
  stop: () => { run(false); return { count }; },
  count: () => ({ count }),
  add: ({ to }) => { addCounters(counters.length, to, count); return {}; },
  set: ({ name, type, value }) => { nodes.get(name).setValueFromSource({ dataType: D[type], value }); return {}; },
  get: ({ name }) => { const v = nodes.get(name).readValue(); return { type: D[v.value.dataType], value: String(v.value.value), status: v.statusCode.name }; },
  sessions: () => ({ sessions: server.engine.currentSessionCount, subscriptions: server.engine.currentSubscriptionCount }),
  exit: async () => { run(false); await server.shutdown(0); setTimeout(() => process.exit(0), 10); return {}; },
};
const input = readline.createInterface({ input: process.stdin });
input.on("line", async (text) => {
  const command = JSON.parse(text);
  try {
    say({ event: "done", ...(await commands[command.do](command)) });
  } catch (e) {
    say({ event: "done", error: String(e?.stack ?? e) });
  }
});
input.on("close", () => process.exit(0));
