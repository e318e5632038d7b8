package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var shellBlock = regexp.MustCompile("(?s)\n```sh\n(.*?)```")

// TestReadmeWalk does what the README tells a newcomer to do, command by command, and wants to see what it promises. Only the
// build and the ports are others, and the two waits for a person's eyes are waits for what the person would see.
func TestReadmeWalk(t *testing.T) {
	text := readFile(t, "../../README.md")
	_, text, ok := strings.Cut(text, "\n## Five minutes")
	if !ok {
		t.Fatal("README.md has no section that begins \"## Five minutes\"")
	}
	text, _, _ = strings.Cut(text, "\n## ")
	blocks := shellBlock.FindAllStringSubmatch(text, -1)
	if len(blocks) < 4 {
		t.Fatalf("README.md has %d blocks of commands in its walk", len(blocks))
	}
	dir, err := os.MkdirTemp("", "tgwalk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Cleanup(func() { endByPidFiles(t, filepath.Join(dir, "walk")) })

	shown := filepath.Join(dir, "shown")
	script := "set -e\n"
	for i, b := range blocks {
		if i == len(blocks)-1 {
			script += fmt.Sprintf("for i in $(seq 600); do grep -q '21.7' %s && break; sleep 0.1; done\n", shown)
			script += "./tidegate status --json --config walk/gateway.toml > walk-status.json\n"
		}
		script += b[1]
	}
	const build = "go build -o tidegate ./cmd/tidegate\n"
	if !strings.Contains(script, build) {
		t.Fatalf("README.md does not build the binary by %q", build)
	}
	script = strings.Replace(script, build, "cp "+program+" tidegate\n", 1)
	for _, port := range []string{"18830", "18831"} {
		if !strings.Contains(script, port) {
			t.Fatalf("README.md does not use port %s", port)
		}
		script = strings.ReplaceAll(script, port, strconv.Itoa(freePort(t)))
	}
	out, err := os.Create(shown)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = out, out // a file, so that what the script leaves running keeps nothing open for us
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err = cmd.Wait()
	seen := readFile(t, shown)
	if err != nil {
		t.Errorf("the walk failed: %v", err)
	}
	at := 0
	for _, want := range []string{"21.5", "21.6", "21.7"} {
		line := "sites/press-hall-3/plant/press1/temperature " + want + "\n"
		i := strings.Index(seen[at:], line)
		if i < 0 {
			t.Errorf("the consumer did not show %q in its turn", line)
			break
		}
		at += i + len(line)
	}
	if status, err := os.ReadFile(filepath.Join(dir, "walk-status.json")); err != nil || !regexp.MustCompile(`"records":\s*0\b`).Match(status) {
		t.Errorf("status at the end: %s, %v; want an empty buffer", status, err)
	}
	if t.Failed() {
		t.Logf("shown:\n%s", seen)
	}
}

// endByPidFiles ends what the walk started and did not end, by the process identifiers it noted.
func endByPidFiles(t *testing.T, dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
	if err != nil {
		t.Error(err)
	}
	for _, f := range files {
		if pid, err := strconv.Atoi(strings.TrimSpace(readFile(t, f))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
