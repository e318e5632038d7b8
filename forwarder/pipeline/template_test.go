package pipeline

import (
	"errors"
	"strings"
	"testing"

	"tidegate/message"
)

func TestTemplates(t *testing.T) {
	v := Values{
		Gateway: "gw", Uplink: "cloud", Topic: "plant/press1/temp", Rest: "press1/temp",
		Source: message.Source{Protocol: message.MQTT, Client: "c7", User: "hmi"},
	}
	for _, c := range []struct{ template, want string }{
		{"{topic}", "plant/press1/temp"},
		{"sites/{gateway}/{topic}", "sites/gw/plant/press1/temp"},
		{"{uplink}/{rest}", "cloud/press1/temp"},
		{"{3}/{2}/{1}", "temp/press1/plant"},
		{"a/{4}/b", "a//b"},
		{"{user}/{client}/{protocol}", "hmi/c7/mqtt"},
		{"fixed", "fixed"},
		{"{1}-{2}", "plant-press1"},
	} {
		tpl, err := ParseTemplate(c.template)
		if err != nil {
			t.Errorf("%s: %v", c.template, err)
			continue
		}
		if got, err := tpl.Expand(v); err != nil || got != c.want {
			t.Errorf("%s: got %q, %v; want %q", c.template, got, err, c.want)
		}
	}
}

func TestTemplateErrors(t *testing.T) {
	for _, bad := range []string{"", "{", "a}", "{nobody}", "{0}", "{10}", "{}", "{topic", "a/+/b", "a/#", "a\x00"} {
		if _, err := ParseTemplate(bad); err == nil {
			t.Errorf("template %q was taken", bad)
		}
	}
}

func TestExpandInvalidName(t *testing.T) {
	tpl, err := ParseTemplate("{user}")
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"", "a+b", "#", "a\x00b", "\xff", strings.Repeat("x", 70000)} {
		if _, err := tpl.Expand(Values{Source: message.Source{User: user}}); !errors.Is(err, message.ErrInvalid) {
			t.Errorf("user %.10q: got error %v, want ErrInvalid", user, err)
		}
	}
}

func TestRest(t *testing.T) {
	for _, c := range []struct{ filter, topic, want string }{
		{"#", "a/b", "a/b"},
		{"a/#", "a/b/c", "b/c"},
		{"a/#", "a", ""},
		{"+/b/#", "a/b/c/d", "c/d"},
		{"a/b", "a/b", ""},
		{"a/#", "a//b", "/b"},
		{"/#", "/a", "a"},
	} {
		if got := Rest(c.filter, c.topic); got != c.want {
			t.Errorf("Rest(%q, %q) = %q, want %q", c.filter, c.topic, got, c.want)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	f.Add("sites/{gateway}/{topic}", "a/b", "u")
	f.Add("{9}{rest}", "//", "")
	f.Add("{client", "a", "#")
	f.Fuzz(func(t *testing.T, text, topic, user string) {
		tpl, err := ParseTemplate(text)
		if err != nil {
			return
		}
		got, err := tpl.Expand(Values{Gateway: "g", Uplink: "u", Topic: topic, Rest: topic, Source: message.Source{User: user}})
		if err == nil && message.ValidName(got) != nil {
			t.Fatalf("template %q made %q, which is no topic name", text, got)
		}
	})
}
