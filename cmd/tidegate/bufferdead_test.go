package main

import (
	"os"
	"strings"
	"testing"
)

// TestDeadLettersOfTwoUplinks: a sequence that both have is no order to resend or discard either; and what is done for one of them is
// told although it cannot be done for the other, beside a running gateway as on a stopped one.
func TestDeadLettersOfTwoUplinks(t *testing.T) {
	cloud := mosquitto(t, "allow_anonymous true", "max_packet_size 500")
	one := uplinkTo(cloud, "client_id = \"one\"\n")
	file := writeConfig(t, oneListener+oneRoute+withAdmin+one+strings.NewReplacer("uplink.cloud", "uplink.other", "\"one\"", "\"two\"").Replace(one))
	g := startGateway(t, file)
	g.pub(t, "", "-t", "plant/a", "-m", strings.Repeat("x", 1000), "-q", "1").want(t, exitOK, "", "")
	letters := func() int { return strings.Count(tidegate(t, "", "buffer", "dead", "ls", "--config", file).out, "\n") }
	eventually(t, "both have a dead letter", func() bool { return letters() == 2 })

	ambiguous := func() {
		t.Helper()
		for _, word := range []string{"resend", "discard --yes"} {
			args := append([]string{"buffer", "dead"}, strings.Fields(word+" --seq 1 --config "+file)...)
			tidegate(t, "", args...).want(t, exitFailed, "", "the uplinks cloud, other have the sequence 1, and none was touched")
		}
		if n := letters(); n != 2 {
			t.Fatalf("%d dead letters are left", n)
		}
	}
	ambiguous()
	g.stop(t)
	ambiguous()

	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	without := strings.Replace(string(text), "[uplink.other]", "[uplink.third]", 1)
	if err := os.WriteFile(file, []byte(without), 0o600); err != nil {
		t.Fatal(err)
	}
	partly := func() {
		t.Helper()
		r := tidegate(t, "", "buffer", "dead", "resend", "--config", file)
		r.want(t, exitFailed, "cloud: 1 dead letters resent", "there is no [uplink.other]")
		if !strings.Contains(r.out, "other: 0 dead letters resent") {
			t.Errorf("resend says %s", r.out)
		}
	}
	partly()
	startGateway(t, file)
	eventually(t, "both have a dead letter again", func() bool { return letters() == 2 })
	partly()
	eventually(t, "both have a dead letter again", func() bool { return letters() == 2 })
	tidegate(t, "", "buffer", "dead", "discard", "--yes", "--seq", "1", "--uplink", "other", "--config", file).want(t, exitOK, "other: 1 dead letters discarded", "")
	if n := letters(); n != 1 {
		t.Errorf("%d dead letters are left", n)
	}
}
