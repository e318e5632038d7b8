// Package testpeer holds the peers that tests talk to: Cloud, an MQTT broker (3.1.1 and 5) that can misbehave on
// purpose, and Proxy, a TCP relay that cuts, delays, throttles or swallows what passes through it.
//
// Cloud is no broker for use: it keeps every PUBLISH it was sent in memory for the test to look at and forwards nothing
// between clients. It does keep sessions, because commands to a gateway that is away depend on them: subscriptions and
// unacknowledged commands of a client that asked for a session survive its connection.
//
// CoAPLoad (coap.go) is a number of CoAP devices in a closed loop, for benchmarks, and UDPEcho the floor to measure against.
//
// Start reading at Listen (cloud.go), then Script (script.go), which decides how the cloud answers.
package testpeer
