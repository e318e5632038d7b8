package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// opcuaPeerFolder has a node-opcua server, which says in its own words what it can do.
const opcuaPeerFolder = "../../bridges/opcua/testdata/node"

// opcuaServer is a node-opcua server with counters, in a process of its own.
type opcuaServer struct {
	t      testing.TB
	port   int
	in     io.WriteCloser
	events chan opcuaEvent
}

type opcuaEvent struct {
	Event, Error string
	Count        int
	Value        string
}

// startOPCUA starts a server whose counters rise every interval once it was told to run.
func startOPCUA(t testing.TB, counters int, interval time.Duration) *opcuaServer {
	t.Helper()
	if _, err := os.Stat(filepath.Join(opcuaPeerFolder, "node_modules", "node-opcua")); err != nil {
		install := exec.Command("npm", "ci", "--omit=dev", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
		install.Dir = opcuaPeerFolder
		if out, err := install.CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
	}
	s := &opcuaServer{t: t, port: freePort(t), events: make(chan opcuaEvent, 16)}
	options, err := json.Marshal(map[string]any{
		"port": s.port, "dir": t.TempDir(), "counters": counters, "interval": interval.Milliseconds(),
		"policies": []string{"None"}, "modes": []string{"None"},
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", "server.mjs", string(options))
	cmd.Dir = opcuaPeerFolder
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if s.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the process
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e opcuaEvent
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				s.events <- e
			}
		}
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	if e := s.next(); e.Event != "ready" {
		t.Fatalf("the OPC UA server does not start: %+v", e)
	}
	return s
}

func (s *opcuaServer) next() opcuaEvent {
	s.t.Helper()
	select {
	case e := <-s.events:
		return e
	case <-time.After(60 * time.Second):
		s.t.Fatal("the OPC UA server says nothing")
		return opcuaEvent{}
	}
}

// do gives the server a command and returns its answer.
func (s *opcuaServer) do(command string, more ...string) opcuaEvent {
	s.t.Helper()
	args := map[string]string{"do": command}
	for i := 0; i+1 < len(more); i += 2 {
		args[more[i]] = more[i+1]
	}
	line, err := json.Marshal(args)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.in.Write(append(line, '\n')); err != nil {
		s.t.Fatal(err)
	}
	e := s.next()
	if e.Error != "" {
		s.t.Fatalf("%s: %s", command, e.Error)
	}
	return e
}

func (s *opcuaServer) url() string { return fmt.Sprintf("opc.tcp://127.0.0.1:%d/UA/Test", s.port) }
