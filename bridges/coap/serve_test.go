package coap

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"tidegate/message"
)

func TestPostPublishesAnEvent(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	before := time.Now()
	c.want(codes.Changed, codes.POST, "/ps/plant/press1/temp", "21.5", uintOption(option.ContentFormat, 50))
	m := g.bus.list()[0]
	if m.Topic != "plant/press1/temp" || string(m.Payload) != "21.5" || m.Retain || m.QoS != 1 || m.ContentType != "application/json" {
		t.Errorf("published %+v", m)
	}
	if m.Source != (message.Source{Protocol: message.CoAP, Client: "127.0.0.1"}) {
		t.Errorf("source %+v", m.Source)
	}
	if m.Received.Before(before) || time.Since(m.Received) > time.Minute || !m.Expires.IsZero() {
		t.Errorf("received %v, expires %v", m.Received, m.Expires)
	}
	c.want(codes.NotFound, codes.GET, "/ps/plant/press1/temp", "") // not retained
}

func TestPutIsCreatedThenChanged(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	c.want(codes.Created, codes.PUT, "/ps/a", "1")
	c.want(codes.Changed, codes.PUT, "/ps/a", "2")
	if m := g.bus.list()[1]; !m.Retain || string(m.Payload) != "2" {
		t.Errorf("published %+v", m)
	}
	if got := c.want(codes.Content, codes.GET, "/ps/a", ""); string(got.Payload) != "2" {
		t.Errorf("read %q", got.Payload)
	}
	c.want(codes.Deleted, codes.DELETE, "/ps/a", "")
	c.want(codes.NotFound, codes.GET, "/ps/a", "")
	c.want(codes.Deleted, codes.DELETE, "/ps/a", "") // as often as one likes (RFC 7252, 5.8.4)
	c.want(codes.Created, codes.PUT, "/ps/a", "3")
}

func TestPathsAreTopics(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	for path, topic := range map[string]string{
		"/ps/a":         "a",
		"/ps//a":        "/a",
		"/ps/a/":        "a/",
		"/ps//":         "/",
		"/ps/a//b":      "a//b",
		"/ps/ps":        "ps",
		"/ps/grün und ": "grün und ",
		"/ps/a/" + strings.Repeat("l/", 200) + "z": "a/" + strings.Repeat("l/", 200) + "z",
	} {
		c.want(codes.Changed, codes.POST, path, "x")
		all := g.bus.list()
		if got := all[len(all)-1].Topic; got != topic {
			t.Errorf("%s is the topic %q, want %q", path, got, topic)
		}
		c.want(codes.Created, codes.PUT, path, "x")
		c.want(codes.Content, codes.GET, path, "")
	}
}

func TestWhatIsNoTopic(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	for _, method := range []codes.Code{codes.GET, codes.POST, codes.PUT, codes.DELETE} {
		for path, want := range map[string]codes.Code{
			"/ps/":            codes.BadRequest, // no topic
			"/ps/a/+":         codes.BadRequest,
			"/ps/#":           codes.BadRequest,
			"/ps/a\x00b":      codes.BadRequest,
			"/ps/\xff":        codes.BadRequest,
			"/":               codes.NotFound,
			"":                codes.NotFound,
			"/other":          codes.NotFound,
			"/PS/a":           codes.NotFound,
			"/.well-known":    codes.NotFound,
			"/.well-known/ps": codes.NotFound,
		} {
			c.want(want, method, path, "x")
		}
		if method != codes.GET {
			c.want(codes.MethodNotAllowed, method, "/ps", "x")
			c.want(codes.MethodNotAllowed, method, "/.well-known/core", "x")
		}
	}
	for method := codes.Code(5); method < 32; method++ { // FETCH, PATCH, iPATCH and what is not assigned
		c.want(codes.MethodNotAllowed, method, "/ps/a", "x")
	}
	if n := len(g.bus.list()); n != 0 {
		t.Errorf("%d messages published", n)
	}
}

func TestQueries(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	for path, want := range map[string]message.Message{
		"/ps/a":                       {QoS: 1},
		"/ps/a?qos=0":                 {QoS: 0},
		"/ps/a?qos=2":                 {QoS: 2},
		"/ps/a?retain=true":           {QoS: 1, Retain: true},
		"/ps/a?retain=0&qos=0":        {},
		"/ps/a?ct=text/csv":           {QoS: 1, ContentType: "text/csv"},
		"/ps/a?ct=60":                 {QoS: 1, ContentType: "application/cbor"},
		"/ps/a?ct=a=b":                {QoS: 1, ContentType: "a=b"},
		"/ps/a?expiry=60":             {QoS: 1, Expires: time.Unix(60, 0)},
		"/ps/a?expiry=4294967295":     {QoS: 1, Expires: time.Unix(4294967295, 0)},
		"/ps/a?qos=1&expiry=5&ct=any": {QoS: 1, Expires: time.Unix(5, 0), ContentType: "any"},
	} {
		c.want(codes.Changed, codes.POST, path, "x")
		all := g.bus.list()
		m := all[len(all)-1]
		if m.QoS != want.QoS || m.Retain != want.Retain || m.ContentType != want.ContentType {
			t.Errorf("%s: %+v", path, m)
		}
		if !want.Expires.IsZero() && m.Expires.Sub(m.Received) != want.Expires.Sub(time.Unix(0, 0)) || want.Expires.IsZero() != m.Expires.IsZero() {
			t.Errorf("%s expires %v after %v", path, m.Expires, m.Received)
		}
	}
	published := len(g.bus.list())
	for _, bad := range []string{
		"qos=3", "qos=-1", "qos=", "qos", "qos=1&qos=1", "retain=maybe", "retain=", "expiry=0", "expiry=4294967296", "expiry=1h",
		"expiry=-5", "ct=", "ct=\xff", "ct=a\x00", "retian=true", "token=x", "=", "QOS=1",
	} {
		c.want(codes.BadRequest, codes.POST, "/ps/a?"+bad, "x")
	}
	c.want(codes.BadRequest, codes.PUT, "/ps/a?retain=false", "x")
	c.want(codes.BadRequest, codes.DELETE, "/ps/a?retain=true", "")
	c.want(codes.BadRequest, codes.GET, "/ps/a?qos=1", "")
	c.want(codes.BadRequest, codes.POST, "/ps/a?"+strings.Repeat("qos=1&", 20), "x")
	if n := len(g.bus.list()); n != published {
		t.Errorf("%d bad requests were published", n-published)
	}
	c.want(codes.Deleted, codes.DELETE, "/ps/a?qos=0", "")
}

func TestDefaultQoSFollowsTheType(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	m := c.request(codes.POST, "/ps/a", "x")
	m.Type = option.NonConfirmable
	got := c.exchange(m)
	if got.Type != option.NonConfirmable || got.Code != codes.Changed || string(got.Token) != string(m.Token) {
		t.Errorf("answered %v", got)
	}
	if q := g.bus.list()[0].QoS; q != 0 {
		t.Errorf("QoS %d, want 0", q)
	}
}

func TestContentFormats(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	for n, text := range map[uint32]string{
		0: "text/plain;charset=utf-8", 40: "application/link-format", 41: "application/xml", 42: "application/octet-stream",
		50: "application/json", 60: "application/cbor", 110: "application/senml+json", 112: "application/senml+cbor",
		12345: "application/x-coap-content-format;id=12345", 65535: "application/x-coap-content-format;id=65535",
	} {
		path := fmt.Sprintf("/ps/f/%d", n)
		c.want(codes.Created, codes.PUT, path, "x", uintOption(option.ContentFormat, n))
		all := g.bus.list()
		if got := all[len(all)-1].ContentType; got != text {
			t.Errorf("%d is %q, want %q", n, got, text)
		}
		if got := optionOf(c.want(codes.Content, codes.GET, path, ""), option.ContentFormat); got != (number{n, true}) {
			t.Errorf("%d comes back as %v", n, got)
		}
	}
	for text, want := range map[string]number{
		"":                                  {},
		"text/csv":                          {},
		"Application/JSON":                  {50, true},
		"application/json; charset=utf-8":   {50, true},
		"text/plain":                        {0, true},
		"text/plain; charset=UTF-8":         {0, true},
		"application/x-coap-content-format": {},
		"application/x-coap-content-format;id=70000": {},
	} {
		g.bus.retain(message.Message{Topic: "t", Payload: []byte("v"), ContentType: text})
		if got := optionOf(c.want(codes.Content, codes.GET, "/ps/t", ""), option.ContentFormat); got != want {
			t.Errorf("content type %q is the format %v, want %v", text, got, want)
		}
	}
}

func TestGetValidates(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	c.want(codes.Created, codes.PUT, "/ps/a?expiry=100", "1")
	got := c.want(codes.Content, codes.GET, "/ps/a", "")
	etag, err := got.Options.GetBytes(option.ETag)
	if err != nil || len(etag) != 8 {
		t.Fatalf("ETag %x, %v", etag, err)
	}
	if age := optionOf(got, option.MaxAge); !age.given || age.value < 95 || age.value > 100 {
		t.Errorf("Max-Age %v", age)
	}
	valid := c.want(codes.Valid, codes.GET, "/ps/a", "", option.Option{ID: option.ETag, Value: []byte("other")}, option.Option{ID: option.ETag, Value: etag})
	if again, _ := valid.Options.GetBytes(option.ETag); string(again) != string(etag) || len(valid.Payload) != 0 || !optionOf(valid, option.MaxAge).given {
		t.Errorf("2.03 is %v", valid)
	}
	c.want(codes.Changed, codes.PUT, "/ps/a", "2")
	got = c.want(codes.Content, codes.GET, "/ps/a", "", option.Option{ID: option.ETag, Value: etag})
	if string(got.Payload) != "2" || optionOf(got, option.MaxAge).given {
		t.Errorf("read %v", got)
	}
	// The same bytes of another format are another representation.
	first, _ := got.Options.GetBytes(option.ETag)
	c.want(codes.Changed, codes.PUT, "/ps/a", "2", uintOption(option.ContentFormat, 50))
	c.want(codes.Content, codes.GET, "/ps/a", "", option.Option{ID: option.ETag, Value: first})
}

func TestAccept(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	g.bus.retain(message.Message{Topic: "json", Payload: []byte("{}"), ContentType: "application/json"})
	g.bus.retain(message.Message{Topic: "csv", Payload: []byte("1,2"), ContentType: "text/csv"})
	g.bus.retain(message.Message{Topic: "text", Payload: []byte("v")})
	g.bus.retain(message.Message{Topic: "bytes", Payload: []byte{0xff}})
	for _, k := range []struct {
		topic  string
		accept uint32
		want   codes.Code
	}{
		{"json", 50, codes.Content},
		{"json", 60, codes.NotAcceptable},
		{"json", 0, codes.NotAcceptable},
		{"csv", 0, codes.NotAcceptable},
		{"text", 0, codes.Content},
		{"text", 42, codes.Content},
		{"text", 50, codes.NotAcceptable},
		{"bytes", 0, codes.NotAcceptable},
		{"bytes", 42, codes.Content},
	} {
		got := c.want(k.want, codes.GET, "/ps/"+k.topic, "", uintOption(option.Accept, k.accept))
		if f := optionOf(got, option.ContentFormat); k.want == codes.Content && f != (number{k.accept, true}) {
			t.Errorf("%s for %d comes as %v", k.topic, k.accept, f)
		}
	}
	c.want(codes.Created, codes.PUT, "/ps/new", "x", uintOption(option.Accept, 50)) // nothing to be accepted there
}

// TestCriticalOptions [RFC 7252, 5.4.1 and 5.4.3].
func TestCriticalOptions(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	value := func(id option.OptionID, v ...byte) option.Option { return option.Option{ID: id, Value: v} }
	for name, bad := range map[string][]option.Option{
		"unknown":                {value(2053, 1)},
		"If-Match":               {value(option.IfMatch, 1)},
		"If-None-Match":          {value(option.IfNoneMatch)},
		"OSCORE":                 {value(9, 1)},
		"Uri-Port of 3 bytes":    {value(option.URIPort, 1, 2, 3)},
		"Uri-Host of none":       {value(option.URIHost)},
		"Uri-Host twice":         {value(option.URIHost, 'a'), value(option.URIHost, 'b')},
		"Accept of 3 bytes":      {value(option.Accept, 0, 0, 50)},
		"Uri-Path of 256 bytes":  {value(option.URIPath, make([]byte, 256)...)},
		"Uri-Query of 256 bytes": {value(option.URIQuery, make([]byte, 256)...)},
		"Block1 of 4 bytes":      {value(option.Block1, 0, 0, 0, 6)},
	} {
		c.want(codes.BadOption, codes.POST, "/ps/a", name, bad...)
		m := c.request(codes.POST, "/ps/a", name, bad...)
		m.Type = option.NonConfirmable
		if got := c.exchange(m); got.Type != option.Reset || got.MessageID != m.MessageID {
			t.Errorf("%s, non-confirmable: answered %v, want a reset", name, got)
		}
	}
	c.want(codes.ProxyingNotSupported, codes.GET, "/ps/a", "", value(option.ProxyURI, []byte("coap://x/")...))
	c.want(codes.ProxyingNotSupported, codes.GET, "/ps/a", "", value(option.ProxyScheme, []byte("coap")...))
	if n := len(g.bus.list()); n != 0 {
		t.Fatalf("%d published", n)
	}
	for name, good := range map[string][]option.Option{
		"elective, unknown":         {value(2054, 1)},
		"elective, of wrong length": {value(option.ETag, 1, 2, 3, 4, 5, 6, 7, 8, 9), value(option.ContentFormat, 1, 2, 3)},
		"Uri-Host and Uri-Port":     {value(option.URIHost, 'h'), value(option.URIPort, 22, 51)},
		"Observe":                   {value(option.Observe)},
		"Size1":                     {value(option.Size1, 1)},
	} {
		c.want(codes.Changed, codes.POST, "/ps/a", name, good...)
	}
	if m := g.bus.list()[0]; m.ContentType != "" {
		t.Errorf("content type %q", m.ContentType)
	}
}

func TestRefusals(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	for _, k := range []struct {
		err    error
		code   codes.Code
		option option.OptionID
		value  uint32
	}{
		{message.ErrBusy, codes.ServiceUnavailable, option.MaxAge, retryAfter},
		{message.ErrNotAllowed, codes.Forbidden, 0, 0},
		{message.ErrInvalid, codes.BadRequest, 0, 0},
		{message.ErrTooLarge, codes.RequestEntityTooLarge, option.Size1, 60000},
		{fmt.Errorf("something else"), codes.InternalServerError, 0, 0},
	} {
		g.bus.setRefuse(func(message.Message) error { return fmt.Errorf("publish %q: %w", "a", k.err) })
		for _, method := range []codes.Code{codes.POST, codes.PUT, codes.DELETE} {
			got := c.want(k.code, method, "/ps/a", "x")
			if k.option != 0 && optionOf(got, k.option) != (number{k.value, true}) {
				t.Errorf("%v: option %v is %v", k.err, k.option, optionOf(got, k.option))
			}
		}
		m := c.request(codes.POST, "/ps/a", "x")
		m.Type = option.NonConfirmable
		if got := c.exchange(m); got.Type != option.NonConfirmable || got.Code != k.code {
			t.Errorf("%v, non-confirmable: %v", k.err, got)
		}
	}
}

// TestRefusalsAreTold: what the bridge refuses by itself is told once, with the reason; what the bus refuses it knows already.
func TestRefusalsAreTold(t *testing.T) {
	var mu sync.Mutex
	var told []error
	g := start(t, func(o *Options) {
		o.MaxPayload = 10
		o.OnRefuse = func(err error) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, err)
		}
	})
	c := dial(t, g.Addrs()[0])
	for _, k := range []struct {
		method        codes.Code
		path, payload string
		code          codes.Code
		want          error
	}{
		{codes.POST, "/ps/a", "eleven byte", codes.RequestEntityTooLarge, message.ErrTooLarge},
		{codes.POST, "/ps/a+b", "x", codes.BadRequest, message.ErrInvalid},
		{codes.PUT, "/ps/a", "", codes.BadRequest, message.ErrInvalid},
		{codes.POST, "/ps/", "x", codes.BadRequest, message.ErrInvalid},
		{codes.POST, "/elsewhere", "x", codes.NotFound, nil},
		{codes.GET, "/ps/secret", "", codes.Forbidden, nil},
		{codes.POST, "/ps/a", "x", codes.Changed, nil},
	} {
		mu.Lock()
		told = nil
		mu.Unlock()
		c.want(k.code, k.method, k.path, k.payload)
		mu.Lock()
		if k.want == nil && len(told) > 0 || k.want != nil && (len(told) != 1 || !errors.Is(told[0], k.want)) {
			t.Errorf("%v %s: told %v, want %v", k.method, k.path, told, k.want)
		}
		mu.Unlock()
	}
	mu.Lock()
	told = nil
	mu.Unlock()
	g.bus.setRefuse(func(message.Message) error { return message.ErrBusy })
	c.want(codes.ServiceUnavailable, codes.POST, "/ps/a", "x")
	mu.Lock()
	defer mu.Unlock()
	if len(told) > 0 {
		t.Errorf("what the bus refused was told: %v", told)
	}
}

func TestPermissions(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	g.bus.retain(message.Message{Topic: "secret", Payload: []byte("v")})
	c.want(codes.Forbidden, codes.GET, "/ps/secret", "")
	if got := c.want(codes.Content, codes.GET, "/.well-known/core", ""); strings.Contains(string(got.Payload), "secret") {
		t.Errorf("listed: %s", got.Payload)
	}
}

func TestNobodyWithoutAName(t *testing.T) {
	g := start(t, func(o *Options) { o.Anonymous = false })
	c := dial(t, g.Addrs()[0])
	g.bus.retain(message.Message{Topic: "a", Payload: []byte("v")})
	for _, path := range []string{"/ps/a", "/ps", "/.well-known/core", "/other"} {
		for _, method := range []codes.Code{codes.GET, codes.POST, codes.PUT, codes.DELETE, 5} {
			c.want(codes.Forbidden, method, path, "x")
		}
	}
	if n := len(g.bus.list()); n != 0 {
		t.Errorf("%d published", n)
	}
}

func TestSizes(t *testing.T) {
	g := start(t, func(o *Options) { o.MaxPayload = 2000 })
	c := dial(t, g.Addrs()[0])
	c.want(codes.Changed, codes.POST, "/ps/a", strings.Repeat("x", 2000))
	for _, method := range []codes.Code{codes.POST, codes.PUT} {
		got := c.want(codes.RequestEntityTooLarge, method, "/ps/a", strings.Repeat("x", 2001))
		if size := optionOf(got, option.Size1); size != (number{2000, true}) {
			t.Errorf("Size1 %v", size)
		}
	}
	c.want(codes.Changed, codes.POST, "/ps/a", "")
	c.want(codes.BadRequest, codes.PUT, "/ps/a", "")
	c.want(codes.BadRequest, codes.POST, "/ps/a?retain=1", "")
	if n := len(g.bus.list()); n != 2 {
		t.Errorf("%d published, want 2", n)
	}
}

func TestLargestDatagram(t *testing.T) {
	g := start(t, func(o *Options) { o.MaxPayload = 1 << 20 })
	c := dial(t, g.Addrs()[0])
	body := strings.Repeat("x", 65_000)
	c.want(codes.Changed, codes.POST, "/ps/a", body)
	if m := g.bus.list()[0]; string(m.Payload) != body {
		t.Errorf("%d bytes came in", len(m.Payload))
	}
	got := c.want(codes.RequestEntityTooLarge, codes.POST, "/ps/a", "part", uintOption(option.Block1, 8|6))
	if size := optionOf(got, option.Size1); size != (number{maxBody, true}) {
		t.Errorf("Size1 %v", size)
	}
}

// TestBlocksAreNotBodies: a part of a body is never taken for the whole.
func TestBlocksAreNotBodies(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	for _, method := range []codes.Code{codes.POST, codes.PUT} {
		for _, k := range []struct {
			num  uint32
			more bool
			want codes.Code
		}{{0, true, codes.RequestEntityTooLarge}, {1, true, codes.RequestEntityIncomplete}, {2, false, codes.RequestEntityIncomplete}} {
			b := block{num: k.num, more: k.more, szx: 6}
			got := c.want(k.want, method, "/ps/a", "part", uintOption(option.Block1, b.value()))
			if k.want == codes.RequestEntityTooLarge && optionOf(got, option.Size1) != (number{60000, true}) {
				t.Errorf("Size1 %v", optionOf(got, option.Size1))
			}
		}
		c.want(codes.BadRequest, method, "/ps/a", "part", uintOption(option.Block1, 7))
	}
	if n := len(g.bus.list()); n != 0 {
		t.Fatalf("%d published", n)
	}
	got := c.want(codes.Changed, codes.POST, "/ps/a", "whole", uintOption(option.Block1, 6)) // one block is all of it
	if optionOf(got, option.Block1) != (number{6, true}) || string(g.bus.list()[0].Payload) != "whole" {
		t.Errorf("%v", got)
	}
}

func TestLargeValuesAreReadInBlocks(t *testing.T) {
	g := start(t, nil)
	c := dial(t, g.Addrs()[0])
	large := strings.Repeat("0123456789abcdef", 200) + "end"
	g.bus.retain(message.Message{Topic: "large", Payload: []byte(large)})
	g.bus.retain(message.Message{Topic: "small", Payload: []byte(large[:100])})
	g.bus.retain(message.Message{Topic: "edge", Payload: []byte(large[:1024])})
	for _, topic := range []string{"small", "edge"} {
		for _, extra := range [][]option.Option{nil, {uintOption(option.Block2, 6)}} {
			got := c.want(codes.Content, codes.GET, "/ps/"+topic, "", extra...)
			if optionOf(got, option.Block2).given || !strings.HasPrefix(large, string(got.Payload)) || len(got.Payload) < 100 {
				t.Errorf("%s: %v", topic, got)
			}
		}
	}
	for szx := range uint8(7) {
		var whole string
		var etag string
		for num := uint32(0); ; num++ {
			var extra []option.Option
			if num > 0 || szx < 6 {
				extra = append(extra, uintOption(option.Block2, block{num: num, szx: szx}.value()))
			}
			got := c.want(codes.Content, codes.GET, "/ps/large", "", extra...)
			v, err := got.Options.GetBytes(option.Block2)
			if err != nil {
				t.Fatalf("no Block2: %v", got)
			}
			k, _ := blockOf(v)
			tag, _ := got.Options.GetBytes(option.ETag)
			if k.num != num || k.szx != szx || len(got.Payload) > k.size() || num > 0 && string(tag) != etag {
				t.Fatalf("block %d of size %d: %+v", num, szx, k)
			}
			if num == 0 && optionOf(got, option.Size2) != (number{uint32(len(large)), true}) {
				t.Errorf("Size2 %v", optionOf(got, option.Size2))
			}
			etag = string(tag)
			whole += string(got.Payload)
			if !k.more {
				break
			}
		}
		if whole != large {
			t.Errorf("size %d: %d bytes came together, want %d", szx, len(whole), len(large))
		}
	}
	c.want(codes.BadRequest, codes.GET, "/ps/large", "", uintOption(option.Block2, block{num: 4, szx: 6}.value()))
	c.want(codes.BadRequest, codes.GET, "/ps/large", "", uintOption(option.Block2, block{num: 1<<20 - 1, szx: 6}.value()))
	c.want(codes.BadRequest, codes.GET, "/ps/large", "", uintOption(option.Block2, 7))
}
