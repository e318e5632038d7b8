package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidegate/certs"
	"tidegate/config"
)

// Names of the files of `tidegate cert` in its folder; those of devices are in a folder of their own.
const (
	caCertFile     = "ca.crt"
	caKeyFile      = "ca.key"
	serverCertFile = "server.crt"
	serverKeyFile  = "server.key"
	crlFile        = "devices.crl"
	devicesDir     = "devices"
	certDir        = "tls" // where the folder is, unless another one is named
)

const (
	certFileMode = 0o644
	keyFileMode  = 0o600
	certDirMode  = 0o700
)

// maxCommonName bounds a common name (RFC 5280, ub-common-name).
const maxCommonName = 64

// cmdCert is `tidegate cert init|server|device|revoke`: certificates for a site that has no authority of its own. It replaces no
// file but the revocation list.
func cmdCert(args []string, std stdio) int {
	word := ""
	if len(args) > 0 {
		word = args[0]
	}
	switch word {
	case "init":
		return certInit(args[1:], std)
	case "server":
		return certServer(args[1:], std)
	case "device":
		return certDevice(args[1:], std)
	case "revoke":
		return certRevoke(args[1:], std)
	}
	return std.otherWord("cert", word, []string{
		"init [DIR] [--host NAME]...", "server [--dir DIR] [--host NAME]...", "device NAME [--dir DIR] [--days N]", "revoke NAME [--dir DIR]",
	})
}

// certFlags are the flags of the words of cert.
type certFlags struct {
	fs    *flag.FlagSet
	dir   *string
	days  *int
	hosts []string
}

func newCertFlags(std stdio, name, synopsis string) *certFlags {
	return &certFlags{fs: std.flagSet("cert "+name, synopsis)}
}

func (f *certFlags) withDir() { f.dir = f.fs.String("dir", certDir, "`DIR` that cert init made") }

func (f *certFlags) withDays(life time.Duration) {
	f.days = f.fs.Int("days", int(life.Hours()/24), "`N` days until it expires")
}

func (f *certFlags) withHosts() {
	f.fs.Func("host", "host `NAME` or address by which clients reach the gateway, beside this machine's name and localhost; may be repeated", func(s string) error {
		if net.ParseIP(s) == nil && (s == "" || strings.ContainsAny(s, " /:@[]")) {
			return fmt.Errorf("%q is no host name and no address", s)
		}
		f.hosts = append(f.hosts, s)
		return nil
	})
}

// names returns the hosts of a server certificate: what was asked for, this machine and loopback.
func (f *certFlags) names() []string {
	list := slices.Clone(f.hosts)
	if name, err := os.Hostname(); err == nil && name != "" {
		list = append(list, name)
	}
	list = append(list, "localhost", "127.0.0.1", "::1")
	var unique []string
	for _, h := range list {
		if !slices.Contains(unique, h) {
			unique = append(unique, h)
		}
	}
	return unique
}

func (f *certFlags) life() time.Duration { return time.Duration(*f.days) * 24 * time.Hour }

// newFile is a file to be made.
type newFile struct {
	path string
	data []byte
	mode fs.FileMode
}

// writeNewFiles makes all of the files or none. It never replaces one.
func writeNewFiles(files []newFile) (err error) {
	var made []string
	defer func() {
		if err != nil {
			for _, p := range made {
				_ = os.Remove(p)
			}
		}
	}()
	for _, f := range files {
		if _, err := os.Lstat(f.path); err == nil {
			return fmt.Errorf("%s is already there and was left alone", f.path)
		}
	}
	for _, f := range files {
		if err := writeOne(f); err != nil {
			return err
		}
		made = append(made, f.path)
	}
	return nil
}

func writeOne(f newFile) error {
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if err != nil {
		return err
	}
	_, err = file.Write(f.data)
	err = errors.Join(err, file.Chmod(f.mode), file.Sync(), file.Close()) // whatever the umask is
	if err != nil {
		return errors.Join(err, os.Remove(f.path))
	}
	return nil
}

// certInit makes an authority, a server certificate and an empty revocation list.
func certInit(args []string, std stdio) int {
	f := newCertFlags(std, "init", "[DIR] [--host NAME]... [--days N]     (default DIR ./tls)")
	f.withHosts()
	f.withDays(certs.ServerLife)
	rest, code, done := std.parseAround(f.fs, args)
	if done {
		return code
	}
	dir := certDir
	switch {
	case len(rest) > 1:
		return std.fail(exitUsage, "cert init takes one folder, not %d", len(rest))
	case *f.days < 1:
		return std.fail(exitUsage, "--days must be 1 or more")
	case len(rest) == 1:
		dir = rest[0]
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = makeSite(dir, f.names(), f.life())
	}
	if err != nil {
		return std.fail(exitFailed, "cert init: %v; name another folder, or move what is there", err)
	}
	fmt.Fprintf(std.out, `# Made in %s:
#   ca.crt        the authority; devices get a copy, by which they know the gateway
#   ca.key        makes certificates: whoever has it can be any device. Keep it where others cannot read it, best on another machine
#   server.crt    for this gateway as %s; with server.key
#   devices.crl   certificates that were revoked: none yet
# A certificate for a device: tidegate cert device NAME --dir %s
# In the configuration:

[listener.devices]
  listen      = "mqtts://:8883"
  cert        = %q
  key         = %q
  client_ca   = %q
  crl         = %q
  client_auth = "require"
`, dir, strings.Join(f.names(), ", "), dir,
		filepath.Join(dir, serverCertFile), filepath.Join(dir, serverKeyFile), filepath.Join(dir, caCertFile), filepath.Join(dir, crlFile))
	return exitOK
}

func makeSite(dir string, hosts []string, life time.Duration) error {
	now := time.Now()
	name := "Tidegate private authority of " + hosts[0]
	ca, pair, err := certs.NewAuthority(name[:min(len(name), maxCommonName)], now)
	if err != nil {
		return err
	}
	server, err := ca.Server(hosts, life, now)
	if err != nil {
		return err
	}
	crl, err := ca.Revoke(nil, nil, now)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, certDirMode); err != nil {
		return err
	}
	return writeNewFiles([]newFile{
		{filepath.Join(dir, caKeyFile), pair.Key, keyFileMode},
		{filepath.Join(dir, caCertFile), pair.Cert, certFileMode},
		{filepath.Join(dir, serverKeyFile), server.Key, keyFileMode},
		{filepath.Join(dir, serverCertFile), server.Cert, certFileMode},
		{filepath.Join(dir, crlFile), crl, certFileMode},
	})
}

// loadCA reads the authority of a folder.
func loadCA(dir string) (*certs.Authority, error) {
	cert, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, fmt.Errorf("%w; tidegate cert init makes an authority", err)
	}
	key, err := os.ReadFile(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, fmt.Errorf("%w; the authority's key is where the authority was made", err)
	}
	ca, err := certs.LoadAuthority(certs.Pair{Cert: cert, Key: key})
	if err != nil {
		return nil, fmt.Errorf("%s and %s in %s: %w", caCertFile, caKeyFile, dir, err)
	}
	return ca, nil
}

// certServer makes another server certificate, for one that was moved away because it expires or knows too few names.
func certServer(args []string, std stdio) int {
	f := newCertFlags(std, "server", "[--dir DIR] [--host NAME]... [--days N]")
	f.withDir()
	f.withHosts()
	f.withDays(certs.ServerLife)
	rest, code, done := std.parseAround(f.fs, args)
	if done {
		return code
	}
	if len(rest) > 0 || *f.days < 1 {
		f.fs.Usage()
		return exitUsage
	}
	ca, err := loadCA(*f.dir)
	if err != nil {
		return std.fail(exitFailed, "cert server: %v", err)
	}
	pair, err := ca.Server(f.names(), f.life(), time.Now())
	if err == nil {
		err = writePair(*f.dir, strings.TrimSuffix(serverCertFile, ".crt"), pair)
	}
	if err != nil {
		return std.fail(exitFailed, "cert server: %v; move it away first: a running gateway goes on with what it has read", err)
	}
	fmt.Fprintf(std.out, "made %s for %s; a running gateway takes it within seconds\n", filepath.Join(*f.dir, serverCertFile), strings.Join(f.names(), ", "))
	return exitOK
}

func writePair(dir, name string, p certs.Pair) error {
	return writeNewFiles([]newFile{
		{filepath.Join(dir, name+".key"), p.Key, keyFileMode},
		{filepath.Join(dir, name+".crt"), p.Cert, certFileMode},
	})
}

// deviceName returns why name cannot be that of a device.
func deviceName(name string) error {
	if len(name) > maxCommonName {
		return fmt.Errorf("the name has %d bytes, a certificate has room for %d", len(name), maxCommonName)
	}
	if strings.HasPrefix(name, ".") || strings.ContainsAny(name, `\`) {
		return fmt.Errorf("the name %q cannot be that of a file", name)
	}
	return config.ValidUser(name)
}

// certDevice makes a certificate for a device, whose user name is NAME.
func certDevice(args []string, std stdio) int {
	f := newCertFlags(std, "device", "NAME [--dir DIR] [--days N]")
	f.withDir()
	f.withDays(certs.DeviceLife)
	rest, code, done := std.parseAround(f.fs, args)
	if done {
		return code
	}
	if len(rest) != 1 || *f.days < 1 {
		f.fs.Usage()
		return exitUsage
	}
	if err := deviceName(rest[0]); err != nil {
		return std.fail(exitUsage, "cert device: %v", err)
	}
	ca, err := loadCA(*f.dir)
	if err != nil {
		return std.fail(exitFailed, "cert device: %v", err)
	}
	dir := filepath.Join(*f.dir, devicesDir)
	pair, err := ca.Device(rest[0], f.life(), time.Now())
	if err == nil {
		err = os.MkdirAll(dir, certDirMode)
	}
	if err == nil {
		err = writePair(dir, rest[0], pair)
	}
	if err != nil {
		return std.fail(exitFailed, "cert device: %v; choose another name, or revoke it first with tidegate cert revoke %s", err, rest[0])
	}
	at := filepath.Join(dir, rest[0])
	fmt.Fprintf(std.out, "made %s.crt and %s.key; the device needs both, and %s\n", at, at, filepath.Join(*f.dir, caCertFile))
	return exitOK
}

// certRevoke puts the certificate of a device on the revocation list and moves its files aside, so that the name is free.
func certRevoke(args []string, std stdio) int {
	f := newCertFlags(std, "revoke", "NAME [--dir DIR]")
	f.withDir()
	rest, code, done := std.parseAround(f.fs, args)
	if done {
		return code
	}
	if len(rest) != 1 {
		f.fs.Usage()
		return exitUsage
	}
	if err := deviceName(rest[0]); err != nil {
		return std.fail(exitUsage, "cert revoke: %v", err)
	}
	if err := revoke(*f.dir, rest[0], time.Now()); err != nil {
		return std.fail(exitFailed, "cert revoke: %v", err)
	}
	fmt.Fprintf(std.out, "revoked %s in %s; a running gateway ends its connections within seconds\n", rest[0], filepath.Join(*f.dir, crlFile))
	return exitOK
}

func revoke(dir, name string, now time.Time) error {
	ca, err := loadCA(dir)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, devicesDir, name)
	data, err := os.ReadFile(file + ".crt")
	if err != nil {
		return fmt.Errorf("%w; tidegate cert device made no certificate of that name here", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return fmt.Errorf("%s.crt holds no certificate in PEM form", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s.crt: %w", file, err)
	}
	list := target(filepath.Join(dir, crlFile)) // replace the list, not the link to it
	unlock, err := lockBeside(list)
	if err != nil {
		return err
	}
	defer unlock()
	old, err := os.ReadFile(list)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next, err := ca.Revoke(old, []*x509.Certificate{cert}, now)
	if err != nil {
		return err
	}
	if err := replaceList(list, next); err != nil {
		return err
	}
	aside := fmt.Sprintf("%s.revoked-%x", file, cert.SerialNumber)
	err = os.Rename(file+".crt", aside+".crt")
	if e := os.Rename(file+".key", aside+".key"); e != nil && !errors.Is(e, fs.ErrNotExist) { // it may be on the device only
		err = errors.Join(err, e)
	}
	return err
}

// replaceList writes the revocation list beside the old one and moves it over that, so that a gateway never reads half of one. It is on
// disk then: a power cut must not let in again who was revoked. The caller holds the lock of its folder.
func replaceList(path string, data []byte) error {
	next := newFile{path + ".new", data, certFileMode}
	if err := os.Remove(next.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeOne(next); err != nil {
		return err
	}
	if err := os.Rename(next.path, path); err != nil {
		return err
	}
	return syncFolder(path)
}
