// Package opcua is the bridge to one OPC UA server: it publishes the values of nodes and writes messages to nodes.
//
// The session with the server is kept by link, below this folder; it knows no topics. This package maps values to messages
// and back and acknowledges values to the server only when their records are on disk. Start reading at New.
package opcua
