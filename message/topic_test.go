package message

import (
	"errors"
	"strings"
	"testing"
)

func TestValidName(t *testing.T) {
	for _, c := range []struct {
		why, topic string
		ok         bool
	}{
		{"plain", "plant/press1/temp", true},
		{"leading slash is an empty first level [MQTT-4.7.3]", "/a", true},
		{"only a slash", "/", true},
		{"space and UTF-8", "Halle 3/Öfen", true},
		{"longest [MQTT-4.7.3-3]", strings.Repeat("a", 65535), true},
		{"empty [MQTT-4.7.3-1]", "", false},
		{"too long [MQTT-4.7.3-3]", strings.Repeat("a", 65536), false},
		{"single-level wildcard [MQTT-3.3.2-2]", "a/+", false},
		{"multi-level wildcard [MQTT-3.3.2-2]", "a/#", false},
		{"wildcard inside a level [MQTT-3.3.2-2]", "a/b+c", false},
		{"NUL [MQTT-4.7.3-2]", "a/\x00", false},
		{"control character (MQTT 5.0, 1.5.4)", "a/\x02z", false},
		{"DEL (MQTT 5.0, 1.5.4)", "a\x7f", false},
		{"control character of two bytes (MQTT 5.0, 1.5.4)", "ä/\u0085", false},
		{"no control character", "ä/\u00a0", true},
		{"not UTF-8 [MQTT-1.5.4-1]", "a/\xff", false},
		{"surrogate half [MQTT-1.5.4-1]", "a/\xed\xa0\x80", false},
	} {
		err := ValidName(c.topic)
		if (err == nil) != c.ok {
			t.Errorf("%s: ValidName = %v, want ok %v", c.why, err, c.ok)
		}
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v does not wrap ErrInvalid", c.why, err)
		}
	}
}

func TestValidFilter(t *testing.T) {
	for _, c := range []struct {
		why, filter string
		ok          bool
	}{
		{"everything", "#", true},
		{"one level", "+", true},
		{"mixed", "+/a/+/#", true},
		{"empty levels", "//#", true},
		{"$SYS", "$SYS/#", true},
		{"shared", "$share/g/a/+", true},
		{"shared with a slash first", "$share/g//a", true},
		{"# not last [MQTT-4.7.1-1]", "a/#/b", false},
		{"# within a level [MQTT-4.7.1-1]", "a#", false},
		{"+ within a level [MQTT-4.7.1-2]", "a+/b", false},
		{"shared without group [MQTT-4.8.2-1]", "$share//a", false},
		{"shared group with wildcard [MQTT-4.8.2-1]", "$share/g+/a", false},
		{"shared without filter [MQTT-4.8.2-2]", "$share/g", false},
		{"shared with an empty filter [MQTT-4.8.2-2]", "$share/g/", false},
		{"shared with a bad filter", "$share/g/a#", false},
		{"empty", "", false},
		{"NUL", "a\x00", false},
	} {
		if err := ValidFilter(c.filter); (err == nil) != c.ok {
			t.Errorf("%s: ValidFilter(%q) = %v, want ok %v", c.why, c.filter, err, c.ok)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true},
		{"a/b", "a/b/c", false},
		{"a/b/c", "a/b", false},
		{"a/#", "a", true},
		{"a/#", "a/", true},
		{"a/#", "a/b/c", true},
		{"a/#", "ab", false},
		{"#", "a/b", true},
		{"#", "/", true},
		{"+", "a", true},
		{"+", "/a", false},
		{"+/+", "/a", true},
		{"/+", "/a", true},
		{"a/+", "a", false},
		{"a/+", "a/", true},
		{"a/+/c", "a//c", true},
		{"+/#", "a", true},
		{"a/+/#", "a", false},
		{"#", "$SYS/x", false},
		{"+/x", "$SYS/x", false},
		{"$SYS/#", "$SYS/x", true},
		{"$SYS/#", "$SYS", true},
		{"$share/g/a/#", "a/b", true},
	} {
		if got := Match(c.filter, c.topic); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.filter, c.topic, got)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		filter, sub string
		want        bool
	}{
		{"#", "a/b", true},
		{"#", "#", true},
		{"#", "$SYS/#", false},
		{"a/#", "a/#", true},
		{"a/#", "a", true},
		{"a/#", "a/+/b", true},
		{"a/#", "#", false},
		{"a/+", "a/#", false},
		{"a/+", "a/+", true},
		{"a/+", "a/b", true},
		{"a/b", "a/+", false},
		{"+/b", "a/b", true},
		{"+/+", "a/b/c", false},
		{"a/+/#", "a/b", true},
		{"a/+/#", "a", false},
		{"a", "$share/g/a", true},
	} {
		if got := Covers(c.filter, c.sub); got != c.want {
			t.Errorf("Covers(%q, %q) = %v", c.filter, c.sub, got)
		}
	}
}

func TestOverlaps(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"#", "a/b", true},
		{"#", "$SYS/a", false},
		{"a/+", "+/b", true},
		{"a/+", "b/+", false},
		{"a/#", "a", true},
		{"a/b/#", "a", false},
		{"a/+", "a/b/#", true},
		{"a/+", "a/b/c", false},
	} {
		if got := Overlaps(c.a, c.b); got != c.want {
			t.Errorf("Overlaps(%q, %q) = %v", c.a, c.b, got)
		}
		if got := Overlaps(c.b, c.a); got != c.want {
			t.Errorf("Overlaps(%q, %q) = %v", c.b, c.a, got)
		}
	}
}

func TestReserved(t *testing.T) {
	for topic, want := range map[string]bool{
		"$SYS/x": true, "$": true, "tidegate": true, "tidegate/gw/status": true, "tidegates/x": false, "a/tidegate": false,
	} {
		if Reserved(topic) != want {
			t.Errorf("Reserved(%q) = %v", topic, !want)
		}
	}
}

// slowMatch is the definition of matching, level by level, without thought of speed.
func slowMatch(filter, topic string) bool {
	f, s := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && (f[0] == "+" || f[0] == "#") {
		return false
	}
	for i, level := range f {
		if level == "#" {
			return true
		}
		if i >= len(s) || level != "+" && level != s[i] {
			return false
		}
	}
	return len(f) == len(s)
}

func FuzzMatch(f *testing.F) {
	f.Add("a/+/#", "a/b/c")
	f.Add("#", "$SYS/a")
	f.Add("+/#", "")
	f.Add("$share/g/a", "a")
	f.Fuzz(func(t *testing.T, filter, topic string) {
		if ValidFilter(filter) != nil || ValidName(topic) != nil {
			return
		}
		bare := filter
		if strings.HasPrefix(filter, "$share/") {
			bare = strings.SplitN(filter, "/", 3)[2]
		}
		want := slowMatch(bare, topic)
		if got := Match(filter, topic); got != want {
			t.Errorf("Match(%q, %q) = %v, want %v", filter, topic, got, want)
		}
	})
}

func FuzzCovers(f *testing.F) {
	f.Add("a/#", "a/+/c", "a/x/c")
	f.Add("+/b", "a/b", "a/b")
	f.Fuzz(func(t *testing.T, filter, sub, topic string) {
		if ValidFilter(filter) != nil || ValidFilter(sub) != nil || ValidName(topic) != nil {
			return
		}
		inFilter, inSub := Match(filter, topic), Match(sub, topic)
		if Covers(filter, sub) && inSub && !inFilter {
			t.Errorf("%q covers %q, but only the latter selects %q", filter, sub, topic)
		}
		if inFilter && inSub && !Overlaps(filter, sub) {
			t.Errorf("%q and %q both select %q, but do not overlap", filter, sub, topic)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	for b.Loop() {
		Match("plant/+/line/#", "plant/press1/line/3/temp")
	}
}
