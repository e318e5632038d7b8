package uplink

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"tidegate/config"
)

// login is what a CONNECT says of who connects.
type login struct {
	username string
	password config.Secret
	// signed and lapses say how long the password is good; zero: for ever.
	signed, lapses time.Time
	// renew is how long after signed it should be replaced.
	renew time.Duration
}

// tokens makes the passwords of an Azure IoT Hub device from its key.
type tokens struct {
	key      []byte
	lifetime time.Duration
	// renewAt is the share of the lifetime after which a password is replaced, in percent.
	renewAt int
}

// renewAt leaves room for what is in flight, and for a line that is slow.
const renewAt = 85

// hubAPI is the version of the IoT Hub interface that user names announce.
const hubAPI = "2021-04-12"

func newTokens(c config.Uplink) (tokens, error) {
	if !c.SASKey.IsSet() {
		return tokens{}, nil
	}
	key, err := base64.StdEncoding.DecodeString(c.SASKey.Reveal())
	if err != nil || len(key) == 0 {
		return tokens{}, fmt.Errorf("sas_key is no base64 key")
	}
	if c.SASLifetime <= 0 {
		return tokens{}, fmt.Errorf("sas_lifetime is missing")
	}
	return tokens{key: key, lifetime: c.SASLifetime.D(), renewAt: renewAt}, nil
}

// login returns how to log in to a server at now.
func (s *settings) login(sv server, now time.Time) (login, error) {
	l := login{username: s.username, password: s.password}
	if s.limits.Service != config.AzureIoTHub {
		return l, nil
	}
	if l.username == "" {
		l.username = sv.host + "/" + s.clientID + "/?api-version=" + hubAPI
	}
	if len(s.tokens.key) == 0 {
		return l, nil
	}
	if !plausible(now) {
		return l, ended(endClock, "the clock of this machine says %s, so the token of sas_key cannot be signed: set it, or wait for NTP",
			now.UTC().Format(time.RFC3339))
	}
	hub, _, _ := strings.Cut(l.username, "/")
	l.signed, l.lapses = now, now.Add(s.tokens.lifetime)
	l.renew = s.tokens.lifetime / 100 * time.Duration(s.tokens.renewAt)
	l.password = config.NewSecret(sharedAccessSignature(hub+"/devices/"+config.HubResource(s.clientID), s.tokens.key, l.lapses))
	return l, nil
}

// sharedAccessSignature signs a token for a resource, as "Control access to IoT Hub using SAS" (Microsoft Learn) describes it.
func sharedAccessSignature(resource string, key []byte, lapses time.Time) string {
	sr, se := url.QueryEscape(resource), strconv.FormatInt(lapses.Unix(), 10)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(sr + "\n" + se))
	sig := url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return "SharedAccessSignature sr=" + sr + "&sig=" + sig + "&se=" + se
}

// hintToken says where to look when a broker refuses a login whose password was made here.
func hintToken(err error, l login) error {
	var r *refusal
	if l.lapses.IsZero() || !errors.As(err, &r) {
		return err
	}
	return &endError{label: endLabel(err), err: fmt.Errorf("%w; check sas_key, client_id and the clock of this machine", err)}
}

// renewal reports whether a password should be replaced. It is due as soon as either clock says so: the monotonic one, or the
// wall clock, which may have been set since.
func (l login) renewal(now time.Time) bool {
	if l.lapses.IsZero() {
		return false
	}
	return now.Sub(l.signed) >= l.renew || now.Round(0).Sub(l.signed.Round(0)) >= l.renew
}
