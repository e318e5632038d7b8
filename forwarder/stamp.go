package forwarder

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"strings"
	"time"

	"tidegate/config"
	"tidegate/message"
)

// stamp is what a rule wants to know of its commands: who they are and when they were made. The zero stamp asks for nothing.
type stamp struct {
	id, time string // names of user properties; id may be config.CorrelationData
	required bool   // a command without identity is refused
	window   time.Duration
	maxAge   time.Duration // 0: without end; a command that does not say when it was made is refused where there is one
	expire   time.Duration // for a command without an expiry of its own; 0: without end
}

func newStamp(c config.Command) stamp {
	return stamp{id: c.ID, time: c.Time, required: c.RequireID, window: c.ReplayWindow.D(), maxAge: c.MaxAge.D(), expire: c.Expire.D()}
}

// property returns the first user property of that name.
func property(m *message.Message, name string) string {
	for i := range m.Properties {
		if m.Properties[i].Key == name {
			return m.Properties[i].Value
		}
	}
	return ""
}

// identity returns the identity that a command carries; empty: none.
func (s *stamp) identity(m *message.Message) string {
	switch s.id {
	case "":
		return ""
	case config.CorrelationData:
		return string(m.CorrelationData)
	}
	return property(m, s.id)
}

// made returns when a command was made, if it says so in a way that can be read.
func (s *stamp) made(m *message.Message) (time.Time, bool) {
	if s.time == "" {
		return time.Time{}, false
	}
	return parseMade(property(m, s.time))
}

// parseMade reads a time as RFC 3339 has it, or as whole seconds or, with 13 digits, milliseconds since 1970.
func parseMade(text string) (time.Time, bool) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, true
	}
	n, err := strconv.ParseUint(text, 10, 63)
	switch {
	case err != nil || len(text) > 13:
		return time.Time{}, false
	case len(text) == 13:
		return time.UnixMilli(int64(n)), true
	}
	return time.Unix(int64(n), 0), true
}

// refuses returns what becomes of a command that must not be delivered for what it says, or does not say, of itself; empty: it may.
//
// What was made before the window began is refused even where its identity is not known: it may have been known and forgotten.
func (s *stamp) refuses(m *message.Message, id string, now time.Time) string {
	made, dated := s.made(m)
	age := now.Sub(made)
	switch {
	case s.required && id == "", s.maxAge > 0 && !dated:
		return commandUnidentified
	case dated && s.maxAge > 0 && age > s.maxAge, dated && id != "" && s.window > 0 && age > s.window:
		return commandStale
	}
	return ""
}

// maxLife bounds how long an identity is remembered for a command that says that it was made in the future.
const maxLife = 10 * 365 * 24 * time.Hour

// life is how long the identity of a command that comes now is to be remembered. That of one made in the future, by this machine's
// clock, is remembered longer: until the command itself is too old, whoever's clock is wrong.
func (s *stamp) life(m *message.Message, now time.Time) time.Duration {
	life := s.window
	if made, dated := s.made(m); dated && made.After(now) {
		life += min(made.Sub(now), maxLife)
	}
	return min(life, maxLife)
}

// clean returns what local subscribers get of a command's user properties: not what begins with tg-, which would pass for the
// gateway's own word on where a message comes from, but for the identity and the time that the rule names.
func (s *stamp) clean(props []message.Property) []message.Property {
	forged := func(p message.Property) bool {
		return strings.HasPrefix(p.Key, "tg-") && p.Key != s.id && p.Key != s.time
	}
	for i := range props {
		if !forged(props[i]) {
			continue
		}
		kept := append([]message.Property(nil), props[:i]...) // what came is shared
		for _, p := range props[i+1:] {
			if !forged(p) {
				kept = append(kept, p)
			}
		}
		return kept
	}
	return props
}

// commandKey stands for an identity: a hash of the topic at the cloud and the identity. Two topics may use the same identity for
// different commands.
type commandKey [16]byte

func keyOf(topic, id string) commandKey {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(topic)+len(id)), uint32(len(topic)))
	sum := sha256.Sum256(append(append(b, topic...), id...))
	return commandKey(sum[:])
}
