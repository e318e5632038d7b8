// Package opcua is the bridge to one OPC UA server: it publishes the values of nodes and writes messages to nodes.
//
// The session with the server is kept by link, below this folder; it knows no topics. This package maps values to messages
// (encode.go, topic.go) and back (coerce.go, write.go), acknowledges values to the server only when their records are on
// disk (publish.go), and has what the commands `tidegate opcua …` need (tools.go). Start reading at New.
package opcua
