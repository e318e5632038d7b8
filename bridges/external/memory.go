package external

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"tidegate/config"
)

// memory remembers in a file what the session at the broker subscribes to: when the configuration changes, what is not wanted
// any more has to be given up by name, or the broker would go on handing it to this member of the group.
type memory struct {
	mu       sync.Mutex
	file     string // empty: nothing is remembered
	clientID string
	filters  []string // what the session may have; nil: nothing is known
}

// remembered is the content of the file. It does not say at which server: servers may come and go in the configuration, and to give up
// what a session does not have harms nobody.
type remembered struct {
	ClientID string   `json:"client_id"`
	Filters  []string `json:"filters"`
}

func newMemory(dir string, c config.External) *memory {
	m := &memory{clientID: c.ClientID}
	if dir == "" {
		return m
	}
	m.file = filepath.Join(dir, "broker.session")
	var r remembered
	// Without the file, or with one that cannot be read, nothing is known of an earlier session.
	if b, err := os.ReadFile(m.file); err == nil && json.Unmarshal(b, &r) == nil && r.ClientID == m.clientID {
		m.filters = r.Filters
	}
	return m
}

// stale returns what the session has and nobody wants; nothing where the broker has no session.
func (m *memory) stale(wanted []string, present bool) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, f := range m.filters {
		if present && !slices.Contains(wanted, f) {
			out = append(out, f)
		}
	}
	return out
}

// add notes what the session is about to have, beside what it has when the broker kept it.
func (m *memory) add(wanted []string, present bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := slices.Clone(wanted)
	for _, f := range m.filters {
		if present && !slices.Contains(next, f) {
			next = append(next, f)
		}
	}
	return m.save(next)
}

// keep notes what the session has and nothing else.
func (m *memory) keep(filters []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.save(filters)
}

// save writes the file where it changes. The caller holds mu.
func (m *memory) save(filters []string) error {
	filters = slices.Clone(filters)
	slices.Sort(filters)
	same := slices.Equal(filters, m.filters)
	m.filters = filters
	if same || m.file == "" {
		return nil
	}
	b, err := json.Marshal(remembered{ClientID: m.clientID, Filters: filters})
	if err != nil {
		return fmt.Errorf("remember the subscriptions: %w", err)
	}
	if err := writeSynced(m.file+".new", b); err != nil {
		return fmt.Errorf("remember the subscriptions: %w", err)
	}
	if err := os.Rename(m.file+".new", m.file); err != nil {
		return fmt.Errorf("remember the subscriptions: %w", err)
	}
	return nil
}

// writeSynced writes a file that is on the disk when it returns.
func writeSynced(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// remember logs that the file could not be written: all works on, but for a change of the configuration.
func (b *Bridge) remember(err error) {
	if err != nil {
		b.log.Warn("the subscriptions at the broker cannot be written down; if the configuration changes, old ones may stay there", "error", err)
	}
}
