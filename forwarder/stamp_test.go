package forwarder

import (
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/message"
)

func TestIdentityOfACommand(t *testing.T) {
	m := message.Message{CorrelationData: []byte("c"), Properties: []message.Property{{Key: "x", Value: "1"}, {Key: "id", Value: "2"}, {Key: "id", Value: "3"}}}
	for name, want := range map[string]string{"id": "2", "x": "1", "ID": "", "": "", config.CorrelationData: "c"} {
		if got := (&stamp{id: name}).identity(&m); got != want {
			t.Errorf("identity in %q: %q, want %q", name, got, want)
		}
	}
	if keyOf("ab", "c") == keyOf("a", "bc") || keyOf("a", "b") == keyOf("a", "c") {
		t.Error("topic and identity are not told apart")
	}
}

func TestParseMade(t *testing.T) {
	want := time.Date(2026, 11, 28, 3, 4, 5, 0, time.UTC)
	for _, text := range []string{"2026-11-28T03:04:05Z", "2026-11-28T04:04:05+01:00", "1795835045", "1795835045000"} {
		if got, ok := parseMade(text); !ok || !got.Equal(want) {
			t.Errorf("%s: %v %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "yesterday", "-5", "+5", "1.5", "2026-11-28", "17958350450000", "99999999999999999999", strings.Repeat("9", 70000)} {
		if got, ok := parseMade(text); ok {
			t.Errorf("%.20s was read as %v", text, got)
		}
	}
}

func FuzzParseMade(f *testing.F) {
	f.Add("2026-11-28T03:04:05Z")
	f.Add("1795835045000")
	f.Fuzz(func(t *testing.T, text string) {
		made, ok := parseMade(text)
		m := message.Message{Properties: []message.Property{{Key: "t", Value: text}}}
		s := stamp{time: "t", window: time.Hour}
		if life := s.life(&m, time.Now()); life < s.window || life > maxLife {
			t.Errorf("%q (%v, %v) is remembered for %v", text, made, ok, life)
		}
	})
}

func TestRefusedForItsStamp(t *testing.T) {
	now := time.Now()
	at := func(ago time.Duration) []message.Property {
		return []message.Property{{Key: "t", Value: now.Add(-ago).Format(time.RFC3339Nano)}}
	}
	for _, k := range []struct {
		name  string
		s     stamp
		id    string
		props []message.Property
		want  string
	}{
		{"nothing asked for", stamp{time: "t"}, "", nil, ""},
		{"identity there", stamp{required: true}, "1", nil, ""},
		{"identity missing", stamp{required: true}, "", nil, commandUnidentified},
		{"young", stamp{time: "t", maxAge: time.Hour}, "", at(59 * time.Minute), ""},
		{"in the future", stamp{time: "t", maxAge: time.Hour}, "", at(-time.Hour), ""},
		{"old", stamp{time: "t", maxAge: time.Hour}, "", at(61 * time.Minute), commandStale},
		{"without time", stamp{time: "t", maxAge: time.Hour}, "1", nil, commandUnidentified},
		{"with a time nobody can read", stamp{time: "t", maxAge: time.Hour}, "1", []message.Property{{Key: "t", Value: "noon"}}, commandUnidentified},
		{"before the window", stamp{time: "t", window: time.Hour}, "1", at(61 * time.Minute), commandStale},
		{"before the window, without identity", stamp{time: "t", window: time.Hour}, "", at(61 * time.Minute), ""},
		{"before the window, of an unread time", stamp{time: "t", window: time.Hour}, "1", []message.Property{{Key: "t", Value: "noon"}}, ""},
	} {
		if got := k.s.refuses(&message.Message{Properties: k.props}, k.id, now); got != k.want {
			t.Errorf("%s: %q, want %q", k.name, got, k.want)
		}
	}
}

// TestCommandCannotForgeItsSource: local subscribers get no tg- property of the cloud but those that the rule names.
func TestCommandCannotForgeItsSource(t *testing.T) {
	s := stamp{id: "tg-id", time: "tg-time"}
	p := func(keys ...string) (out []message.Property) {
		for _, k := range keys {
			out = append(out, message.Property{Key: k, Value: "v"})
		}
		return out
	}
	for _, k := range []struct{ in, want []message.Property }{
		{nil, nil},
		{p("a", "b"), p("a", "b")},
		{p("tg-id", "a", "tg-time"), p("tg-id", "a", "tg-time")},
		{p("tg-src", "tg-up", "tg-seq", "tg-", "tg-whatever"), nil},
		{p("a", "tg-src", "b", "tg-id", "tg-src", "c"), p("a", "b", "tg-id", "c")},
		{p("TG-src", "xtg-src"), p("TG-src", "xtg-src")},
	} {
		before := append([]message.Property(nil), k.in...)
		if got := s.clean(k.in); !reflect.DeepEqual(got, k.want) && len(got)+len(k.want) > 0 {
			t.Errorf("%v is handed over as %v, want %v", k.in, got, k.want)
		}
		if !reflect.DeepEqual(before, k.in) {
			t.Errorf("%v was changed", before)
		}
	}
}

// TestCommandExpiry: a command that says nothing of it lives as long as its rule says, counted from when it came; one that waits for longer than
// it lives is not delivered.
func TestCommandExpiry(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		rule := guarded
		rule.Expire = config.Age(time.Minute)
		k := keepGate(t, dir, rule, buffer.Options{})
		defer k.close()
		came := time.Now()
		plain, own := command("a", "1"), command("a", "2")
		plain.Received, own.Received = came, came
		own.Expires = came.Add(time.Hour)
		k.take(plain, commandDelivered)
		k.take(own, commandDelivered)
		if d := k.delivered; !d[0].Expires.Equal(came.Add(time.Minute)) || !d[1].Expires.Equal(came.Add(time.Hour)) {
			t.Errorf("they expire after %v and %v", d[0].Expires.Sub(came), d[1].Expires.Sub(came))
		}
		waits, brief := command("a", "3"), command("a", "4")
		waits.Received, brief.Received = came, came
		brief.Expires = came.Add(time.Second)
		k.answer = message.ErrBusy
		if k.offer(waits, commandBusy) == nil || k.offer(brief, commandBusy) == nil {
			t.Error("acknowledged although nobody took it")
		}
		time.Sleep(2 * time.Second)
		k.answer = nil
		k.take(brief, commandExpired)
		time.Sleep(time.Minute)
		k.take(waits, commandExpired)
		k.take(plain, commandReplayed) // whatever its age: it was delivered
		k.wantDelivered(2)
	})
}
