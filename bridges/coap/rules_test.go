package coap

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/prometheus/client_golang/prometheus"

	"tidegate/access"
	"tidegate/bridges"
	"tidegate/config"
	"tidegate/message"
)

// TestRulesOfTheGateway asks the rules that everybody else is judged by.
func TestRulesOfTheGateway(t *testing.T) {
	c, err := config.Parse("rules.toml", []byte(`version = 1
[auth]
  anonymous = true
  [[auth.rule]]
    user         = "anonymous"
    publish      = ["plant/#"]
    subscribe    = ["plant/#", "of/{client}"]
    deny_subscribe = ["plant/+/secret"]
[coap]
  listen = ["coap://127.0.0.1:0"]
`))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := access.New(c.Auth)
	if err != nil {
		t.Fatal(err)
	}
	g := start(t, func(o *Options) { o.ACL = rules }, c.CoAP.Listen...)
	for _, topic := range []string{"plant/a", "plant/a/secret", "other", "of/127.0.0.1", "of/10.0.0.1", "$SYS/x", "tidegate/g1/status"} {
		g.bus.retain(message.Message{Topic: topic, Payload: []byte("v")})
	}
	client := dial(t, g.Addrs()[0])
	for path, want := range map[string]codes.Code{
		"/ps/plant/a":        codes.Content,
		"/ps/plant/none":     codes.NotFound,
		"/ps/plant/a/secret": codes.Forbidden,
		"/ps/other":          codes.Forbidden,
		"/ps/of/127.0.0.1":   codes.Content,
		"/ps/of/10.0.0.1":    codes.Forbidden,
		"/ps/$SYS/x":         codes.Forbidden,
		"/ps/$share/g/x":     codes.Forbidden,
	} {
		client.want(want, codes.GET, path, "")
	}
	got := client.want(codes.Content, codes.GET, "/ps", "")
	if want := `</ps/of/127.0.0.1>;rt="core.ps.data",</ps/plant/a>;rt="core.ps.data"`; string(got.Payload) != want {
		t.Errorf("listed %s, want %s", got.Payload, want)
	}
}

func TestTroubleWithSockets(t *testing.T) {
	var told []bridges.Status
	var b *Bridge
	b, err := New(config.CoAP{Listen: []string{"coap://127.0.0.1:0", "coap://127.0.0.2:0"}}, Options{
		Bus: newBus(), ACL: rules{}, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
		OnStatus: func(s bridges.Status) {
			if b.Status() != s {
				t.Errorf("told %+v, which is %+v", s, b.Status())
			}
			told = append(told, s)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	b.running(true)
	b.trouble(b.conns[0], errors.New("broken"))
	b.trouble(b.conns[1], errors.New("broken"))
	b.trouble(b.conns[1], nil)
	if s := b.Status(); s.Up {
		t.Errorf("%+v while one socket cannot be read", s)
	}
	b.trouble(b.conns[0], nil)
	b.running(false)
	var ups []bool
	for _, s := range told {
		ups = append(ups, s.Up)
	}
	if len(ups) != 5 || !ups[0] || ups[1] || ups[2] || !ups[3] || ups[4] || !strings.Contains(told[4].LastError, "broken") {
		t.Errorf("told %+v", told)
	}
}
