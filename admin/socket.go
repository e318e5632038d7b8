package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// socketName is the socket's file in the data folder.
const socketName = "admin.sock"

// maxSocketPath is the longest path the kernel takes for a socket: sun_path without its NUL.
const maxSocketPath = 107

// ErrNoGateway says that no gateway runs on a data folder.
var ErrNoGateway = errors.New("no gateway runs")

// Socket is the server of the running gateway for commands on the same machine. The file's mode keeps others out.
type Socket struct {
	listener net.Listener
	http     *http.Server
}

// NewSocket binds the socket of the data folder dir. The caller holds the folder's lock, so a socket that is there was
// left by a process that died, and is removed.
func NewSocket(dir string, h http.Handler, log *slog.Logger) (*Socket, error) {
	path := filepath.Join(dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("admin: remove the socket of a process that died: %w", err)
	}
	var l net.Listener
	err := reachable(dir, func(short string) (err error) {
		l, err = net.Listen("unix", short)
		if err != nil {
			return err
		}
		// The name that was bound may be a short one that is gone by the time of Close, which removes the file itself.
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("admin: listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("admin: protect the socket: %w", err)
	}
	s := newHTTP(h, log)
	s.WriteTimeout = 0 // an export of the whole backlog takes as long as its reader takes
	return &Socket{listener: &unlinking{l, path}, http: s}, nil
}

// Run serves until ctx ends; requests under way then have two seconds. It removes the socket.
func (s *Socket) Run(ctx context.Context) error { return serve(ctx, s.http, s.listener) }

// Close removes the socket of a server that is not run.
func (s *Socket) Close() error { return s.listener.Close() }

// unlinking removes the socket's file when the listener is closed.
type unlinking struct {
	net.Listener
	path string
}

func (u *unlinking) Close() error {
	err := u.Listener.Close()
	if e := os.Remove(u.path); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// Client returns an HTTP client that talks to the gateway that runs on the data folder dir, whatever host its requests
// name. A request fails with an error that wraps ErrNoGateway when none runs.
func Client(dir string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
			err = reachable(dir, func(short string) (err error) {
				conn, err = (&net.Dialer{}).DialContext(ctx, "unix", short)
				return err
			})
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ECONNREFUSED) {
				return nil, fmt.Errorf("%w on %s", ErrNoGateway, dir)
			}
			return conn, err
		},
	}}
}

// reachable calls use with a path of the socket in dir that is short enough for the kernel. Where the plain path is not,
// the folder is opened and the path goes through its descriptor, which Linux shows under /proc.
func reachable(dir string, use func(path string) error) error {
	path := filepath.Join(dir, socketName)
	if len(path) <= maxSocketPath {
		return use(path)
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return use(filepath.Join("/proc/self/fd", strconv.Itoa(int(f.Fd())), socketName))
}
