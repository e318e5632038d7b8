package main

import (
	"context"
	"log/slog"
	"strings"
	"time"
)

// watchEvery is how soon a change of a watched file is seen at the latest.
const watchEvery = 2 * time.Second

// reloader is a file that is read again when it changed; *access.Checker is one.
type reloader interface {
	Reload() (changed bool, err error)
}

// certificates are the files of one who listens with TLS; *edge.Broker and *admin.Server are two.
type certificates interface {
	ReloadCertificates() (changed []string, problems []error)
	CertificateWarnings(now time.Time) []string
}

// watched are the files that are followed while the gateway runs.
type watched struct {
	users reloader
	certs []certificates
	// rejudge applies changed users to the clients that are connected; it returns how many it disconnected. It may be nil.
	rejudge func() int
}

// watch reads the users file and the certificates again when they change, until ctx ends. It looks rather than waiting for
// events, which get lost on some file systems and when a file is replaced through a symbolic link. What goes wrong is logged
// once. What changed is logged with audit=true, as it decides who may come in.
func (w watched) watch(ctx context.Context, log *slog.Logger) error {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	audit := log.With("audit", true)
	var users, certs, warnings news
	for {
		warnings.tell(w.warnings(time.Now()), func(s string) { log.Warn("certificates", "problem", s) })
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		changed, err := w.users.Reload()
		over := users.tell(texts(err), func(s string) { log.Warn("reading the users file failed; the users stay as they were", "err", s) })
		disconnected := 0
		if changed && w.rejudge != nil {
			disconnected = w.rejudge()
		}
		if changed || over {
			audit.Info("users file read again", "disconnected", disconnected)
		}
		files, problems := w.reloadCertificates()
		certs.tell(texts(problems...), func(s string) { log.Warn("reading certificates failed; the earlier ones stay in use", "err", s) })
		if len(files) > 0 {
			audit.Info("certificates read again", "files", strings.Join(files, " "))
		}
	}
}

func (w watched) reloadCertificates() (files []string, problems []error) {
	for _, c := range w.certs {
		changed, wrong := c.ReloadCertificates()
		files, problems = append(files, changed...), append(problems, wrong...)
	}
	return files, problems
}

// warnings are those that are not about a file that could not be read: that is logged as it happens.
func (w watched) warnings(now time.Time) []string {
	var list []string
	for _, c := range w.certs {
		for _, s := range c.CertificateWarnings(now) {
			if !strings.HasSuffix(s, "in use") {
				list = append(list, s)
			}
		}
	}
	return list
}

func texts(errs ...error) []string {
	var list []string
	for _, err := range errs {
		if err != nil {
			list = append(list, err.Error())
		}
	}
	return list
}

// news is what was told last.
type news struct{ last map[string]bool }

// tell hands out what was not there last time, and reports that something was and nothing is any more.
func (n *news) tell(now []string, f func(string)) (over bool) {
	next := make(map[string]bool, len(now))
	for _, s := range now {
		if next[s] = true; !n.last[s] {
			f(s)
		}
	}
	over = len(n.last) > 0 && len(next) == 0
	n.last = next
	return over
}
