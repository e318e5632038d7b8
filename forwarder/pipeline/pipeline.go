// Package pipeline decides what goes up and in what shape. It is pure: it reads and writes nothing, starts nothing and
// knows no clock, so that a route can be tried on a sample message and give the same result as in the running gateway.
//
// Compile turns the routes of a configuration into a Chain. Chain.Process says for one message which copies of it are to
// be sent: one per matching route and uplink, each with its resulting topic (template.go), quality of service, retain
// flag and lane. It does not encode, store or count them; the forwarder does. Routes are found by a trie over their
// filters (match.go), and the result is remembered per topic within a bound (cache.go). Start reading at Process in
// chain.go.
package pipeline

// Lane is one of the two queues in front of an uplink.
type Lane uint8

// The lanes. The urgent lane leaves first.
const (
	Normal Lane = iota
	Urgent
	// Lanes is how many there are.
	Lanes
)

// String returns the lane's name in the configuration, in metrics and in the identity of a record.
func (l Lane) String() string {
	if l == Urgent {
		return "urgent"
	}
	return "normal"
}
