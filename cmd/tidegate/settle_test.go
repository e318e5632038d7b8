package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSettle(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gw.toml")
	if err := settle(""); err != nil {
		t.Error(err)
	}
	if err := settle(file); err != nil {
		t.Errorf("a file that is not there is for the reader to tell: %v", err)
	}
	writeFile(t, file, "")
	if err := settle(file); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("an empty file: %v", err)
	}
	writeFile(t, file, "version = 1\n")
	if err := settle(file); err != nil {
		t.Error(err)
	}
	if since := time.Since(lastWrite(file)); since < settledFor {
		t.Errorf("it was written only %v ago", since)
	}
	if err := os.Mkdir(filepath.Join(filepath.Dir(file), "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	drop := filepath.Join(filepath.Dir(file), "conf.d", "a.toml")
	writeFile(t, drop, "")
	if err := os.Chtimes(drop, later, later); err != nil {
		t.Fatal(err)
	}
	if err := settle(file); err != nil { // a time to come keeps nobody waiting
		t.Error(err)
	}
	if !lastWrite(file).Equal(later.Truncate(time.Nanosecond)) {
		t.Errorf("conf.d counts as written %v, want %v", lastWrite(file), later)
	}
}
