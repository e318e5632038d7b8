package coap

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidegate/message"
)

// nodeRequest and nodeAnswer are what testdata/node/client.js reads and prints.
type nodeRequest struct {
	Method      string         `json:"method"`
	Path        string         `json:"path"`
	Confirmable bool           `json:"confirmable"`
	Payload     string         `json:"payload,omitempty"`
	Observe     bool           `json:"observe,omitempty"`
	Options     map[string]any `json:"options,omitempty"`
}

type nodeAnswer struct {
	Code        string `json:"code"`
	Payload     string `json:"payload"`
	Format      any    `json:"format"`
	MaxAge      int    `json:"maxAge"`
	Confirmable bool   `json:"confirmable"`
	Ack         bool   `json:"ack"`
}

// installNode installs node-coap into a folder of the test.
func installNode(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "client.js"} {
		b, err := os.ReadFile(filepath.Join("testdata", "node", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	npm := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v (node and npm are needed for this test)\n%s", err, out)
	}
	return dir
}

// node sends requests one after the other.
func node(t *testing.T, dir string, g *gateway, requests []nodeRequest) []nodeAnswer {
	t.Helper()
	in, err := json.Marshal(requests)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(g.Addrs()[0].String(), ":")
	if _, err := strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", "client.js", port)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(in)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node: %v\n%s", err, problems.String())
	}
	var answers []nodeAnswer
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var a nodeAnswer
		if err := d.Decode(&a); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	return answers
}

func TestNodeCoAP(t *testing.T) {
	dir := installNode(t)
	g := start(t, nil)
	large := strings.Repeat("0123456789abcdef", 300)
	g.bus.retain(message.Message{Topic: "large", Payload: []byte(large)})
	var requests []nodeRequest
	var want []string
	add := func(code string, r nodeRequest) {
		requests, want = append(requests, r), append(want, code)
	}
	for _, con := range []bool{true, false} {
		add("4.04", nodeRequest{Method: "GET", Path: "/ps/plant/temp", Confirmable: con})
		add("2.01", nodeRequest{Method: "PUT", Path: "/ps/plant/temp", Confirmable: con, Payload: "21.5", Options: map[string]any{"Content-Format": "application/json"}})
		add("2.04", nodeRequest{Method: "PUT", Path: "/ps/plant/temp?expiry=60", Confirmable: con, Payload: "22.5", Options: map[string]any{"Content-Format": "application/json"}})
		add("2.05 22.5", nodeRequest{Method: "GET", Path: "/ps/plant/temp", Confirmable: con})
		add("2.05 22.5", nodeRequest{Method: "GET", Path: "/ps/plant/temp", Confirmable: con, Observe: true}) // answered once
		add("2.04", nodeRequest{Method: "POST", Path: "/ps/events/a?qos=2", Confirmable: con, Payload: "event"})
		add("2.05 "+large, nodeRequest{Method: "GET", Path: "/ps/large", Confirmable: con})
		add(`2.05 </ps>;rt="core.ps";ct=40`, nodeRequest{Method: "GET", Path: "/.well-known/core?rt=core.ps", Confirmable: con})
		add("4.05", nodeRequest{Method: "FETCH", Path: "/ps/a", Confirmable: con})
		add("4.04", nodeRequest{Method: "POST", Path: "/other", Confirmable: con, Payload: "x"})
		add("2.02", nodeRequest{Method: "DELETE", Path: "/ps/plant/temp", Confirmable: con})
	}
	for i, a := range node(t, dir, g, requests) {
		got := a.Code
		if a.Payload != "" {
			got += " " + a.Payload
		}
		if got != want[i] {
			t.Errorf("%+v: answered %q, want %q", requests[i], clip(got), clip(want[i]))
		}
		if a.Ack != requests[i].Confirmable || a.Confirmable {
			t.Errorf("%+v: answered %+v", requests[i], a)
		}
	}
	if n := len(g.bus.list()); n != 8 {
		t.Errorf("%d published, want 8", n)
	}
}

func TestNodeCoAPWaitsForTheDisk(t *testing.T) {
	dir := installNode(t)
	g := start(t, nil)
	g.bus.disk.setSlow(func() time.Duration { return 1700 * time.Millisecond })
	answers := node(t, dir, g, []nodeRequest{{Method: "POST", Path: "/ps/a", Confirmable: true, Payload: "x"}})
	if len(answers) != 1 || answers[0].Code != "2.04" || !answers[0].Confirmable {
		t.Errorf("answered %+v, want a separate 2.04", answers)
	}
	if n := g.bus.count([]byte("x")); n != 1 {
		t.Errorf("published %d times", n)
	}
}
