package coap

import (
	"fmt"
	"strings"
	"testing"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"tidegate/message"
)

// fetch reads a resource block by block.
func fetch(t *testing.T, c *client, path string) (whole string, format number) {
	t.Helper()
	for num := uint32(0); ; num++ {
		var extra []option.Option
		if num > 0 {
			extra = append(extra, uintOption(option.Block2, block{num: num, szx: 6}.value()))
		}
		got := c.want(codes.Content, codes.GET, path, "", extra...)
		whole += string(got.Payload)
		k, _ := blockOf(uintOption(option.Block2, optionOf(got, option.Block2).value).Value)
		if !k.more {
			return whole, optionOf(got, option.ContentFormat)
		}
	}
}

func TestDiscovery(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	for topic, ct := range map[string]string{
		"b": "application/json", "a/1": "", "/a": "text/plain", "grün \"<>,;": "", "secret": "", "tidegate/gw/status": "", "$SYS/x": "",
	} {
		g.bus.retain(message.Message{Topic: topic, Payload: []byte("v"), ContentType: ct})
	}
	const topics = `</ps//a>;rt="core.ps.data";ct=0,</ps/a/1>;rt="core.ps.data",</ps/b>;rt="core.ps.data";ct=50,` +
		`</ps/gr%C3%BCn%20%22%3C%3E,;>;rt="core.ps.data"`
	for path, want := range map[string]string{
		"/.well-known/core":                        `</ps>;rt="core.ps";ct=40,` + topics,
		"/ps":                                      topics,
		"/.well-known/core?rt=core.ps":             `</ps>;rt="core.ps";ct=40`,
		"/.well-known/core?rt=core.*&ct=50":        `</ps/b>;rt="core.ps.data";ct=50`,
		"/.well-known/core?href=/ps/a*":            `</ps/a/1>;rt="core.ps.data"`,
		"/.well-known/core?href=/ps":               `</ps>;rt="core.ps";ct=40`,
		"/.well-known/core?rt=core.ps&rt=nonsense": "",
		"/.well-known/core?title=x":                "",
		"/ps?ct=50":                                `</ps/b>;rt="core.ps.data";ct=50`,
	} {
		got, format := fetch(t, c, path)
		if got != want || format != (number{40, true}) {
			t.Errorf("%s: %v\n got %s\nwant %s", path, format, got, want)
		}
	}
	got := c.want(codes.Content, codes.GET, "/.well-known/core", "")
	if age := optionOf(got, option.MaxAge); age != (number{listingAge, true}) {
		t.Errorf("Max-Age %v", age)
	}
	c.want(codes.NotAcceptable, codes.GET, "/.well-known/core", "", uintOption(option.Accept, 50))
	etag, _ := got.Options.GetBytes(option.ETag)
	c.want(codes.Valid, codes.GET, "/.well-known/core", "", option.Option{ID: option.ETag, Value: etag})
}

func TestDiscoveryIsBounded(t *testing.T) {
	for name, topic := range map[string]string{"by number": "t/%05d", "by bytes": "t/" + strings.Repeat("x", 200) + "/%05d"} {
		g := start(t, nil)
		c := dial(t, g.Addrs()[0])
		for i := range 2 * listedTopics {
			g.bus.retain(message.Message{Topic: fmt.Sprintf(topic, i), Payload: []byte("v")})
		}
		got, _ := fetch(t, c, "/.well-known/core")
		links := strings.Split(got, ",")
		if len(got) > maxListing || len(links) > maxLinks {
			t.Errorf("%s: %d bytes, %d links", name, len(got), len(links))
		}
		if len(got) < maxListing*9/10 && len(links) < maxLinks {
			t.Errorf("%s: only %d bytes, %d links", name, len(got), len(links))
		}
		for _, l := range links {
			if !strings.HasPrefix(l, "</ps") || !strings.Contains(l, `;rt="core.ps`) {
				t.Errorf("%s: a link is cut: %s", name, l)
			}
		}
	}
}

// TestDiscoveryIsMadeOnce: looking through all retained messages takes long, however many ask.
func TestDiscoveryIsMadeOnce(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	c.want(codes.Content, codes.GET, "/.well-known/core", "")
	g.bus.retain(message.Message{Topic: "new", Payload: []byte("v")})
	if got := c.want(codes.Content, codes.GET, "/ps", ""); len(got.Payload) != 0 {
		t.Errorf("listed anew within %d s: %s", listingAge, got.Payload)
	}
}
