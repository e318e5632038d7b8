package admin

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func hello() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
}

// The socket works in folders with short names and with names longer than the kernel takes, has mode 0600, replaces what
// a dead process left and is gone after the end.
func TestSocket(t *testing.T) {
	for name, dir := range map[string]string{
		"short": t.TempDir(),
		"long":  filepath.Join(t.TempDir(), strings.Repeat("d", 120)),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, socketName)
			leaveDead(t, dir)
			t.Cleanup(func() {
				if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the socket is still there: %v", err)
				}
			})
			s, err := NewSocket(dir, hello(), silent())
			if err != nil {
				t.Fatal(err)
			}
			run(t, s)
			info, err := os.Stat(path)
			if err != nil || info.Mode() != fs.ModeSocket|0o600 {
				t.Fatalf("mode %v, %v", info, err)
			}
			if _, body, _ := get(t, Client(dir), "GET", "http://gateway/status"); body != "hello" {
				t.Fatalf("got %q", body)
			}
		})
	}
}

// leaveDead leaves a socket that nobody serves.
func leaveDead(t *testing.T, dir string) {
	t.Helper()
	err := reachable(dir, func(path string) error {
		l, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		return l.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Client(dir).Get("http://gateway/"); !errors.Is(err, ErrNoGateway) {
		t.Fatalf("a dead socket: %v", err)
	}
}

func TestNoGateway(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing"), filepath.Join(file, "data")} {
		if _, err := Client(dir).Get("http://gateway/status"); !errors.Is(err, ErrNoGateway) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
