package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// program is the path of the tidegate binary under test, built once by TestMain.
var program string

func TestMain(m *testing.M) {
	if os.Getenv(echoVariable) != "" {
		os.Exit(echo())
	}
	os.Exit(buildAndRun(m))
}

// buildAndRun builds the binary, or takes the one that TIDEGATE_E2E_BINARY names, and runs the tests.
func buildAndRun(m *testing.M) int {
	if path := os.Getenv("TIDEGATE_E2E_BINARY"); path != "" {
		program = path
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "tidegate-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "tidegate")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", program, "./cmd/tidegate")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build tidegate: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// soon bounds everything that happens at once on an idle machine; the machine may be far from idle.
const soon = 60 * time.Second

// waitFor waits until ok holds and fails the test with what describe says when it does not hold in time. It is the only
// place where these tests sleep for a condition.
func waitFor(t testing.TB, limit time.Duration, what string, ok func() bool, describe ...func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			text := ""
			for _, d := range describe {
				text += "\n" + d()
			}
			t.Fatalf("waited %v for %s%s", limit, what, text)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
