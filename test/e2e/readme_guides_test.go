package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// readmeCommands returns the commands of a section of the README.
func readmeCommands(t *testing.T, heading string) string {
	t.Helper()
	return pageCommands(t, "README.md", heading)
}

// pageCommands returns the commands of a section of a page.
func pageCommands(t *testing.T, page, heading string) string {
	t.Helper()
	_, text, ok := strings.Cut(readFile(t, "../../"+page), "\n## "+heading)
	if !ok {
		t.Fatalf("%s has no section %q", page, heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	script := ""
	for _, b := range shellBlock.FindAllStringSubmatch(text, -1) {
		script += b[1]
	}
	if script == "" {
		t.Fatalf("%s has no commands below %q", page, heading)
	}
	return script
}

// runReadme runs commands in a folder that has the binary, with every old text replaced by a new one, and returns what was
// shown.
func runReadme(t *testing.T, script string, replace ...string) string {
	t.Helper()
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(script, replace[i]) {
			t.Fatalf("the commands do not name %q", replace[i])
		}
	}
	dir, err := os.MkdirTemp("", "tgguide")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Cleanup(func() { endByPidFiles(t, filepath.Join(dir, "*")) })
	if err := os.Symlink(program, filepath.Join(dir, "tidegate")); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "shown"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("bash", "-c", "set -e\n"+strings.NewReplacer(replace...).Replace(script))
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err = cmd.Wait()
	shown := readFile(t, out.Name())
	if err != nil {
		t.Errorf("the commands failed: %v\n%s", err, shown)
	}
	return shown
}

// TestReadmeCoAP does what the README says about CoAP devices.
func TestReadmeCoAP(t *testing.T) {
	shown := runReadme(t, readmeCommands(t, "A CoAP device"), "18832", strconv.Itoa(freePort(t)), "15683", strconv.Itoa(freePort(t)))
	if !strings.Contains(shown, "21.6") || strings.Contains(shown, "21.5") {
		t.Errorf("shown: %s", shown)
	}
}

// TestReadmeOPCUA does what the README says about looking around in a server, with a server of the tests in place of the
// reader's.
func TestReadmeOPCUA(t *testing.T) {
	plc := startOPCUA(t, 1, time.Second)
	shown := runReadme(t, readmeCommands(t, "An OPC UA server"),
		"opc.tcp://192.0.2.7:4840", plc.url(), "nsu=http://example.com/press;s=Temperature", "nsu=urn:tidegate:test;s=Temperature")
	for _, want := range []string{"None", "anonymous", "nsu=urn:tidegate:test;s=Plant", `"v":21.5,`} {
		if !strings.Contains(shown, want) {
			t.Errorf("want %q in\n%s", want, shown)
		}
	}
}

// TestGuideListeners does what the guide to listeners says about certificates.
func TestGuideListeners(t *testing.T) {
	_, text, ok := strings.Cut(readFile(t, "../../docs/listeners.md"), "\n## Certificates in five minutes")
	if !ok {
		t.Fatal("docs/listeners.md has no walk")
	}
	text, _, _ = strings.Cut(text, "\n## ")
	script := ""
	for _, b := range shellBlock.FindAllStringSubmatch(text, -1) {
		script += b[1]
	}
	shown := runReadme(t, script, "18883", strconv.Itoa(freePort(t)))
	for _, want := range []string{"by=certificate", "was revoked on", "client_ca   = ", "made site/tls/devices/press-1.crt"} {
		if !strings.Contains(shown, want) {
			t.Errorf("want %q in\n%s", want, shown)
		}
	}
}

// TestExternalGuide does what docs/external.md says about two gateways at a broker of one's own.
func TestExternalGuide(t *testing.T) {
	shown := runReadme(t, pageCommands(t, "docs/external.md", "Trying it"), "18841", strconv.Itoa(freePort(t)), "18842", strconv.Itoa(freePort(t)))
	for i := range 10 {
		if want := "value " + strconv.Itoa(i+1) + "\n"; !strings.Contains(shown, want) {
			t.Errorf("want %q in\n%s", want, shown)
		}
	}
	if !strings.Contains(shown, "hall-two: ready") {
		t.Errorf("shown: %s", shown)
	}
}

// TestReadmeBeginsWithTheDemo: the first command of the README needs nothing but Go.
func TestReadmeBeginsWithTheDemo(t *testing.T) {
	blocks := shellBlock.FindAllStringSubmatch(readFile(t, "../../README.md"), -1)
	if len(blocks) == 0 || blocks[0][1] != "go run ./cmd/tidegate demo\n" {
		t.Errorf("the first command is %q", blocks)
	}
}
