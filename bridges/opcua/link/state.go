package link

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// saved is what the state file holds: enough for the next process to go on with this one's session, so that a restart, and
// even a kill, loses no more than a cut cable. It is written when a session begins or its items change, not per value:
// which notifications are still owed the server knows.
type saved struct {
	Version      int           `json:"version"`
	Server       string        `json:"server"` // endpoint, security, user and own certificate: whose session it is
	Terms        string        `json:"terms"`  // intervals and budget: what the subscription was made for
	Session      *credentials  `json:"session"`
	Subscription *subscription `json:"subscription"`
	Items        []savedItem   `json:"items"`
}

// savedItem is one monitored item. Key is its configuration.
type savedItem struct {
	Key    string `json:"key"`
	Handle uint32 `json:"handle"`
	ID     uint32 `json:"id"`
	Node   NodeID `json:"node"`
}

const stateVersion = 1

func (l *Link) serverKey() string {
	return fmt.Sprintf("%s %s %q %s", l.o.Endpoint, l.o.Security, l.o.User, l.applicationURI())
}

func (l *Link) termsKey() string {
	return fmt.Sprintf("%s %s %s", l.o.Publishing, l.o.Sampling, l.o.Budget)
}

func (it *item) key() string {
	return fmt.Sprintf("%s %v %t", it.Ref, it.Deadband, it.Percent)
}

// save writes the state, if it changed. That it cannot be written costs something only at the next start, so it is no
// reason to stop.
func (l *Link) save() {
	if l.o.State == "" {
		return
	}
	if l.session == nil {
		if err := os.Remove(l.o.State); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.log.Warn("the saved OPC UA session cannot be removed", "file", l.o.State, "error", err)
		}
		l.saved = nil
		return
	}
	st := saved{Version: stateVersion, Server: l.serverKey(), Terms: l.termsKey(), Session: l.session, Subscription: l.sub}
	for _, it := range l.items {
		if it.id != 0 {
			st.Items = append(st.Items, savedItem{it.key(), it.handle, it.id, it.node})
		}
	}
	data, err := json.Marshal(st)
	if err == nil && bytes.Equal(data, l.saved) {
		return
	}
	if err == nil {
		err = writeFile(l.o.State, data)
	}
	if err != nil {
		l.log.Warn("the OPC UA session cannot be saved; a restart will begin a new one", "file", l.o.State, "error", err)
		return
	}
	l.saved = data
}

// restore reads what an earlier process saved. Anything that does not fit is left behind: the server ends it by itself.
func (l *Link) restore() {
	if l.o.State == "" {
		return
	}
	data, err := os.ReadFile(l.o.State)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var st saved
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	if err != nil {
		l.log.Warn("the saved OPC UA session cannot be read; beginning a new one", "file", l.o.State, "error", err)
		return
	}
	if st.Version != stateVersion || st.Session == nil || st.Session.Token.IsZero() {
		return
	}
	if st.Server != l.serverKey() {
		if st.Subscription != nil {
			l.sub = st.Subscription
			l.giveUp("the configuration names another endpoint, security or user now")
		}
		return
	}
	l.session = st.Session
	if st.Subscription == nil || st.Subscription.ID == 0 || st.Subscription.KeepAlive <= 0 {
		return
	}
	l.sub = st.Subscription
	if st.Terms != l.termsKey() || len(l.items) == 0 {
		l.outdated = "the configuration has other intervals, another outage_budget or no nodes now"
		return
	}
	items := map[string]*item{}
	for _, it := range l.items {
		items[it.key()] = it
	}
	for _, old := range st.Items {
		l.handles = max(l.handles, old.Handle)
		it := items[old.Key]
		if it == nil || it.id != 0 || old.ID == 0 {
			l.orphans = append(l.orphans, old.ID)
			continue
		}
		it.handle, it.id, it.node = old.Handle, old.ID, old.Node
		l.byHandle[it.handle] = it
	}
}
