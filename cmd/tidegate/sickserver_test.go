package main

import (
	"fmt"
	"strings"
	"testing"

	"tidegate/internal/testpeer"
)

// TestOneSickServerOfTwo: the first server takes the status and refuses every record, in words or by closing. The second one gets
// all of them, and none becomes a dead letter.
func TestOneSickServerOfTwo(t *testing.T) {
	for protocol, sick := range map[string]testpeer.Answer{
		"5": {Code: 0x99}, "3.1.1": {Drop: true, Then: testpeer.Fault{Kind: testpeer.Cut}},
	} {
		t.Run(protocol, func(t *testing.T) {
			clouds := make([]*testpeer.Cloud, 2)
			for i := range clouds {
				var err error
				if clouds[i], err = testpeer.Listen(testpeer.Options{}); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(clouds[i].Close)
			}
			first, second := clouds[0], clouds[1]
			first.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer {
				if strings.HasPrefix(r.Topic, "plant/") {
					return sick
				}
				return testpeer.Answer{}
			}})
			g := startGateway(t, writeConfig(t, oneListener+oneRoute+
				fmt.Sprintf("[uplink.cloud]\nservers = [%q, %q]\nprotocol = %q\n", first.URL(), second.URL(), protocol)))
			g.pub(t, "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n", "-q", "1", "-t", "plant/a", "-l").want(t, exitOK, "", "")
			eventually(t, "all are at the second server", func() bool { return second.Count() >= 11 })
			if u := g.status(t).Uplinks[0]; u.Dead != 0 {
				t.Errorf("%d good records are dead letters: %s", u.Dead, u.LastError)
			}
		})
	}
}
