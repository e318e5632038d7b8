package uplink

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/config"
)

// The signatures were made with openssl and, once more, with another language's library:
//
//	printf '%s\n%s' SR SE | openssl dgst -sha256 -mac HMAC -macopt hexkey:KEY -binary | base64
func TestSharedAccessSignature(t *testing.T) {
	for _, c := range []struct {
		key, resource string
		lapses        int64
		want          string
	}{
		{
			"MDEyMzQ1Njc4OWFiY2RlZg==", "contoso.azure-devices.net/devices/press-hall-3", 1790000000,
			"SharedAccessSignature sr=contoso.azure-devices.net%2Fdevices%2Fpress-hall-3&sig=h3bYiPm7n7tNyjkGuj%2BC5ALM8D7yt02WJHMAVBSVCUM%3D&se=1790000000",
		},
		{
			"/+8AAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0=", "h.azure-devices.net/devices/d:1(a)*b", 2000000001,
			"SharedAccessSignature sr=h.azure-devices.net%2Fdevices%2Fd%3A1%28a%29%2Ab&sig=m%2BYcHJBJMlCxTZlmGnF2Uju7uQCs80tSoG4wcLdmwEM%3D&se=2000000001",
		},
		{"AA==", "h/devices/d", 1, "SharedAccessSignature sr=h%2Fdevices%2Fd&sig=UBn1E5d9S3DhqHBuqIFbpwfDvItBZIT%2F826xQQDnQ1w%3D&se=1"},
	} {
		key, err := base64.StdEncoding.DecodeString(c.key)
		if err != nil {
			t.Fatal(err)
		}
		if got := sharedAccessSignature(c.resource, key, time.Unix(c.lapses, 0)); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.resource, got, c.want)
		}
	}
}

func hubSettings(t *testing.T, edit func(*config.Uplink)) *settings {
	t.Helper()
	c := config.Uplink{
		Servers: []string{"mqtts://contoso.azure-devices.net", "mqtts://other.azure-devices.net"}, Protocol: "3.1.1",
		ClientID: "press-hall-3", SASKey: config.NewSecret("MDEyMzQ1Njc4OWFiY2RlZg=="), SASLifetime: config.Duration(time.Hour),
		Limits: config.Limits{Service: config.AzureIoTHub},
	}
	if edit != nil {
		edit(&c)
	}
	s, err := newSettings("hub", c, "gw")
	if err != nil {
		t.Fatal(err)
	}
	return &s
}

func TestLogin(t *testing.T) {
	s := hubSettings(t, nil)
	now := time.Unix(1790000000-3600, 0)
	l, err := s.login(s.servers[0], now)
	if err != nil || l.username != "contoso.azure-devices.net/press-hall-3/?api-version=2021-04-12" ||
		l.renew != 51*time.Minute || !strings.Contains(l.password.Reveal(), "sig=h3bYiPm7n7tNyjkGuj%2BC5ALM8D7yt02WJHMAVBSVCUM%3D&se=1790000000") {
		t.Errorf("logs in as %q with %q, %v", l.username, l.password.Reveal(), err)
	}
	if l, _ := s.login(s.servers[1], now); !strings.HasPrefix(l.username, "other.") || !strings.Contains(l.password.Reveal(), "sr=other.azure-devices.net%2F") {
		t.Errorf("at another hub as %q with %q", l.username, l.password.Reveal())
	}
	for _, wrong := range []time.Time{time.Unix(0, 0), time.Unix(100, 0), time.Date(2025, 12, 31, 0, 0, 0, 0, time.UTC)} {
		_, err := s.login(s.servers[0], wrong)
		if err == nil || endLabel(err) != endClock || !strings.Contains(err.Error(), "the clock of this machine says "+wrong.UTC().Format(time.RFC3339)) {
			t.Errorf("at %s: %v", wrong, err)
		}
	}
	named := hubSettings(t, func(c *config.Uplink) { c.Username = "real.azure-devices.net/press-hall-3/?api-version=2020-09-30" })
	if l, _ := named.login(named.servers[0], now); !strings.Contains(l.password.Reveal(), "sr=real.azure-devices.net%2Fdevices%2Fpress-hall-3&") {
		t.Errorf("behind another address: %q", l.password.Reveal())
	}
	module := hubSettings(t, func(c *config.Uplink) { c.ClientID = "d1/m1" })
	if l, _ := module.login(module.servers[0], now); !strings.Contains(l.password.Reveal(), "%2Fdevices%2Fd1%2Fmodules%2Fm1&") || !strings.HasSuffix(l.username, "net/d1/m1/?api-version=2021-04-12") {
		t.Errorf("a module as %q with %q", l.username, l.password.Reveal())
	}
	plain := hubSettings(t, func(c *config.Uplink) {
		c.Limits = config.Limits{}
		c.Username = "u"
		c.Password = config.NewSecret("p")
	})
	if l, err := plain.login(plain.servers[0], time.Unix(0, 0)); err != nil || l.username != "u" || l.password.Reveal() != "p" || !l.lapses.IsZero() {
		t.Errorf("without a preset: %+v, %v", l, err)
	}
}

func TestRenewalIsDue(t *testing.T) {
	signed := time.Now()
	l := login{signed: signed, lapses: signed.Add(time.Hour), renew: 51 * time.Minute}
	for after, due := range map[time.Duration]bool{0: false, 50 * time.Minute: false, 52 * time.Minute: true, 2 * time.Hour: true} {
		if l.renewal(signed.Add(after)) != due {
			t.Errorf("after %s: due %t, want %t", after, !due, due)
		}
	}
	// The wall clock is set an hour ahead: the monotonic clock says nothing, and the broker would end the connection soon.
	if !l.renewal(signed.Round(0).Add(time.Hour)) {
		t.Error("not due although the wall clock is past the end")
	}
	if (login{}).renewal(time.Now().Add(1000 * time.Hour)) {
		t.Error("a password that is good for ever is renewed")
	}
}

func TestRenewalComesBeforeTheEnd(t *testing.T) {
	for _, life := range []time.Duration{time.Minute, time.Hour, 365 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			h := open(t, variants()[0], nil, "mqtt://s0")
			now := time.Now()
			m := h.awaitRenewal(t.Context(), 0, login{signed: now, lapses: now.Add(life), renew: life / 100 * renewAt})
			if took := time.Since(now); m == nil || m.label != endRenewed || took < life*85/100 || took > life*90/100 {
				t.Errorf("a token of %s is renewed after %s: %+v", life, took, m)
			}
		})
	}
}

// noDriver fails the test when somebody connects.
type noDriver struct{ t *testing.T }

func (d noDriver) connect(context.Context, *settings, hello) (conn, error) {
	d.t.Error("connects without a token")
	return nil, errors.New("not here")
}

// TestWrongClockIsSaidAndTriedAgain: the clock of the bubble says 2000.
func TestWrongClockIsSaidAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, variants()[0], func(c *config.Uplink) {
			c.Protocol, c.ClientID, c.Limits = "3.1.1", "d", config.Limits{Service: config.AzureIoTHub}
			c.SASKey, c.SASLifetime = config.NewSecret("MDEyMzQ1Njc4OWFiY2RlZg=="), config.Duration(time.Hour)
		}, "mqtts://h")
		h.driver, h.pace = noDriver{t}, defaultPace()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx, nil) }()
		time.Sleep(5 * time.Minute)
		cancel()
		<-ended
		if e := h.Status().LastError; !strings.Contains(e, "connect to mqtts://h: the clock of this machine says 2000-01-01T0") || !strings.Contains(e, "set it, or wait for NTP") {
			t.Errorf("last error %q", e)
		}
		if n := h.reconnects(endClock); n < 10 {
			t.Errorf("tried %g times in five minutes", n)
		}
	})
}
