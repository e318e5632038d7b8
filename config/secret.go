package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxSecretBytes bounds what is read from a secret's file: a password, not a disk image.
const maxSecretBytes = 64 << 10

// secret resolves a plain string, { env = NAME }, { file = PATH } or { credential = NAME }.
func (d *decoder) secret(n *node, path string) Secret {
	if n.kind == stringKind {
		if n.text == "" {
			d.add(Error, n.at, path, "is empty; leave the key out when there is no secret")
		}
		if info, err := os.Stat(n.at.File); err == nil && info.Mode().Perm()&0o004 != 0 {
			d.add(Warning, n.at, path, "everybody on this machine can read it here; write { file = \"PATH\" } or chmod o-r this file")
		}
		return NewSecret(n.text)
	}
	const forms = `a string, { env = "NAME" }, { file = "PATH" } or { credential = "NAME" }`
	if n.kind != tableKind || len(n.names) != 1 {
		d.add(Error, n.at, path, "must be %s, and exactly one of them", forms)
		return Secret{}
	}
	way := n.names[0]
	source, p := n.fields[way], join(path, way)
	if way != "env" && way != "file" && way != "credential" {
		d.add(Error, source.key, p, "unknown key, a secret is %s", forms).Suggestion = nearest(way, []string{"env", "file", "credential"})
		return Secret{}
	}
	if !d.is(source, p, stringKind) {
		return Secret{}
	}
	value, err := d.reveal(way, source, p)
	if err == nil && value == "" {
		err = errors.New("the secret is empty")
	}
	if err != nil {
		d.add(Error, source.at, p, "%s", err)
	}
	return NewSecret(value)
}

func (d *decoder) reveal(way string, source *node, path string) (string, error) {
	switch way {
	case "env":
		value, ok := os.LookupEnv(source.text)
		if !ok {
			return "", fmt.Errorf("the environment variable %s is not set", source.text)
		}
		return value, nil
	case "credential":
		folder := os.Getenv("CREDENTIALS_DIRECTORY")
		if folder == "" {
			return "", errors.New("no credentials here: systemd sets CREDENTIALS_DIRECTORY for LoadCredential= and ImportCredential=")
		}
		if source.text != filepath.Base(source.text) || source.text == ".." {
			return "", errors.New("a credential is named without a folder")
		}
		return readSecret(filepath.Join(folder, source.text))
	}
	file := d.absolute(source.text)
	if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0 {
		d.add(Warning, source.at, path, "everybody on this machine can read %s; chmod o-r it", file)
	}
	return readSecret(file)
}

// readSecret returns the content of a file without the line end that editors and echo add.
func readSecret(file string) (string, error) {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return "", fileError(file, err)
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is no regular file", file)
	case info.Size() > maxSecretBytes:
		return "", fmt.Errorf("%s has %d bytes, a secret has at most %d", file, info.Size(), maxSecretBytes)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fileError(file, err)
	}
	value := strings.TrimSuffix(string(b), "\n")
	return strings.TrimSuffix(value, "\r"), nil
}

// fileError says in a user's words why a file cannot be used.
func fileError(file string, err error) error { return fmt.Errorf("%s: %w", file, fileReason(err)) }

// fileReason is fileError where the file has been named already.
func fileReason(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no such file")
	case errors.Is(err, fs.ErrPermission):
		return errors.New("this user may not read it")
	}
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// absolute returns path, taken relative to the main file's folder.
func (d *decoder) absolute(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(d.base, path)
}
