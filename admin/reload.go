package admin

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"tidegate/config"
)

// How a reload can end.
const (
	ReloadApplied   = "applied"   // something changed
	ReloadUnchanged = "unchanged" // nothing that can change without a restart did
	ReloadRefused   = "refused"   // the configuration is wrong
	ReloadFailed    = "failed"    // it is right, and could not be made to hold
)

// Reload is how one reload of the configuration ended. When it was refused or failed, nothing changed.
type Reload struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"` // SIGHUP, api or command
	File   string    `json:"file"`
	Result string    `json:"result"`
	// Changed holds now.
	Changed []Change `json:"changed"`
	// NeedsRestart are keys whose old values stay in force until the gateway is started again.
	NeedsRestart []string `json:"needs_restart"`
	// Error says in one line why nothing changed; empty when it is not so.
	Error string `json:"error"`
	// Problems of the configuration, warnings among them.
	Problems config.Problems `json:"problems"`
}

// Change is one section or table of the configuration that changed.
type Change struct {
	Section string `json:"section"` // such as route.telemetry
	Change  string `json:"change"`  // added, removed or changed
	// Keys are those that changed; none where the whole table came or went.
	Keys []string `json:"keys,omitempty"`
	// Left is how many records an uplink that was removed left on disk.
	Left uint64 `json:"left,omitempty"`
}

// String is a change for people.
func (c Change) String() string {
	s := c.Section + ": " + c.Change
	if len(c.Keys) > 0 {
		s += ": " + strings.Join(c.Keys, ", ")
	}
	if c.Left > 0 {
		s += fmt.Sprintf("; %d records stay on disk until it is back, or tidegate buffer purge --yes --uplink %s",
			c.Left, strings.TrimPrefix(c.Section, "uplink."))
	}
	return s
}

// Fail notes that the configuration could not be made to hold.
func (r *Reload) Fail(err error) {
	r.Result, r.Error, r.NeedsRestart = ReloadFailed, strings.ReplaceAll(err.Error(), "\n", "; "), nil
}

// Refuse notes that the configuration is wrong.
func (r *Reload) Refuse(problems config.Problems) {
	r.Result, r.Problems = ReloadRefused, problems
	for _, p := range problems {
		if p.Severity == config.Error {
			r.Error = p.String()
			return
		}
	}
}

// MarshalJSON writes empty lists as such.
func (r Reload) MarshalJSON() ([]byte, error) {
	type plain Reload
	p := plain(r)
	if p.Changed == nil {
		p.Changed = []Change{}
	}
	if p.NeedsRestart == nil {
		p.NeedsRestart = []string{}
	}
	if p.Problems == nil {
		p.Problems = config.Problems{}
	}
	return json.Marshal(p)
}

// reload answers 200 when the configuration holds now, 422 when it is wrong and 500 when it could not be made to hold.
func reload(source Source) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		r := source.Reload("api")
		w.Header().Set("Content-Type", "application/json")
		switch r.Result {
		case ReloadRefused:
			w.WriteHeader(http.StatusUnprocessableEntity)
		case ReloadFailed:
			w.WriteHeader(http.StatusInternalServerError)
		}
		_ = json.NewEncoder(w).Encode(r)
	})
}

// guarded lets a request that changes something pass only where no web page of another site can have made the browser send it:
// its Host must be this machine, so that a name that was pointed here does not help, and its Origin, which browsers add, must be
// that of the surface itself.
func guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !ownHost(r.Host) {
			http.Error(w, "the Host of the request is not this machine's", http.StatusForbidden)
			return
		}
		if site := r.Header.Get("Sec-Fetch-Site"); !ownOrigin(r) || site != "" && site != "same-origin" && site != "none" {
			http.Error(w, "the request comes from a page of another origin", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// ownHost reports whether a Host header names this machine by its loopback address or as localhost.
func ownHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}

// ownOrigin reports whether the request has no Origin or that of the surface.
func ownOrigin(r *http.Request) bool {
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return true
	}
	u, err := url.Parse(origins[0])
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return err == nil && len(origins) == 1 && u.Scheme == scheme && u.Host == r.Host
}
