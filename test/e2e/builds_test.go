package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// maxBinary is what a binary may weigh: it has to fit on small flash, beside another one while it is replaced.
const maxBinary = 20_000_000

// TestBuilds: scripts/build makes a static binary for each machine that people have, none of them too large, and each of
// them works: emulated where this machine is another one.
func TestBuilds(t *testing.T) {
	dist := t.TempDir()
	build := exec.Command("../../scripts/build")
	build.Env = append(os.Environ(), "DIST="+dist, "VERSION=1.2.3-test")
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("scripts/build: %v\n%s", err, out)
	}
	for target, b := range map[string]struct {
		goarch  string
		machine elf.Machine
		emulate []string
	}{
		"linux-armv6": {"arm", elf.EM_ARM, []string{"qemu-arm-static", "-cpu", "arm1176"}}, // Raspberry Pi Zero
		"linux-armv7": {"arm", elf.EM_ARM, []string{"qemu-arm-static", "-cpu", "cortex-a7"}},
		"linux-arm64": {"arm64", elf.EM_AARCH64, []string{"qemu-aarch64-static", "-cpu", "cortex-a53"}},
		"linux-amd64": {"amd64", elf.EM_X86_64, []string{"qemu-x86_64-static"}},
	} {
		t.Run(target, func(t *testing.T) {
			file := filepath.Join(dist, "tidegate-"+target)
			if !bytes.Contains(out, []byte(file+"  ")) {
				t.Errorf("scripts/build does not print the size of %s:\n%s", file, out)
			}
			requireStatic(t, file, b.machine)
			run := append(b.emulate, file)
			if b.goarch == runtime.GOARCH {
				run = []string{file}
			}
			works(t, run)
		})
	}
}

// requireStatic checks what kind of file it is.
func requireStatic(t *testing.T, file string, machine elf.Machine) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d bytes", filepath.Base(file), info.Size())
	if info.Size() > maxBinary {
		t.Errorf("%d bytes, at most %d", info.Size(), maxBinary)
	}
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Machine != machine {
		t.Errorf("it is for %v, want %v", f.Machine, machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it is not static: it has a %v segment", p.Type)
		}
	}
}

// works runs what every user runs first.
func works(t *testing.T, run []string) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "tidegate.toml")
	if out := command(t, run, "version"); !strings.HasPrefix(out, "tidegate 1.2.3-test go") {
		t.Errorf("version: %s", out)
	}
	command(t, run, "init", config)
	if out := command(t, run, "check", "--config", config); !strings.Contains(out, "fine") {
		t.Errorf("check: %s", out)
	}
	begin := time.Now()
	var report struct {
		Protocols map[string]struct{ Sent, Acked, Delivered, Duplicates, Lost int }
		Lost      int
	}
	out := command(t, run, "demo", "--json")
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("demo: %v: %s", err, out)
	}
	t.Logf("demo in %v: %s", time.Since(begin).Round(100*time.Millisecond), out)
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("the demo took %v", d)
	}
	for _, protocol := range []string{"mqtt", "coap", "opcua"} {
		p := report.Protocols[protocol]
		if p.Acked == 0 || p.Delivered < p.Acked || p.Lost != 0 || p.Acked > p.Sent {
			t.Errorf("%s: %+v", protocol, p)
		}
	}
	if report.Lost != 0 {
		t.Errorf("%d messages lost", report.Lost)
	}
}

// command runs the program to a good end and returns its standard output.
func command(t *testing.T, run []string, args ...string) string {
	t.Helper()
	cmd := exec.Command(run[0], append(run[1:], args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out, errs.String())
	}
	return string(out)
}
