package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// A file that is being written must not be taken for what it is to say: cut off in the middle of a list of tables it may be a valid
// configuration, without most of the routes and rules.
const (
	settledFor  = 150 * time.Millisecond // since the last write
	settleLimit = 3 * time.Second
)

// settle waits until nobody has written to the configuration for a moment. It returns an error where the main file is empty: that
// is how writing one begins, and never what a running gateway is to be told.
func settle(file string) error {
	if file == "" {
		return nil // the built-in default
	}
	for end := time.Now().Add(settleLimit); ; {
		wait := settledFor - time.Since(lastWrite(file))
		if wait <= 0 || wait > settledFor { // or the clock was set back meanwhile
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is being written all the time", file)
		}
		time.Sleep(wait)
	}
	if info, err := os.Stat(file); err == nil && info.Size() == 0 {
		return fmt.Errorf("%s is empty; write it again", file)
	}
	return nil // whatever else is wrong with it, reading it says
}

// lastWrite returns when a file of the configuration was written last.
func lastWrite(file string) (last time.Time) {
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "conf.d", "*.toml"))
	for _, name := range append(files, file, filepath.Join(filepath.Dir(file), "conf.d")) {
		if info, err := os.Stat(name); err == nil && info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last
}
