package admin

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"tidegate/config"
)

// No page of another site, and no name that was pointed at this machine, can make a browser reload the configuration.
func TestReloadGuarded(t *testing.T) {
	source := &fakeSource{}
	base := start(t, source)
	host := strings.TrimPrefix(base, "http://")
	_, port, _ := strings.Cut(host, ":")
	for _, c := range []struct {
		host    string
		headers map[string]string
		code    int
	}{
		{host, nil, 200},
		{"localhost:" + port, nil, 200},
		{"[::1]:" + port, nil, 200},
		{host, map[string]string{"Origin": base, "Sec-Fetch-Site": "same-origin"}, 200},
		{host, map[string]string{"Origin": "http://evil.example"}, 403},
		{host, map[string]string{"Origin": "null"}, 403},
		{host, map[string]string{"Origin": "https://" + host}, 403},
		{host, map[string]string{"Origin": "http://127.0.0.1:1"}, 403},
		{host, map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{host, map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"evil.example:" + port, nil, 403},
		{"127.0.0.1.evil.example", map[string]string{"Origin": "http://127.0.0.1.evil.example"}, 403},
		{"192.0.2.1", nil, 403},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/api/v1/reload", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		for k, v := range c.headers {
			req.Header.Set(k, v)
		}
		before := source.reloads
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != c.code || source.reloads-before != map[int]int{200: 1, 403: 0}[c.code] {
			t.Errorf("Host %s, %v: %d after %d reloads, want %d", c.host, c.headers, resp.StatusCode, source.reloads-before, c.code)
		}
	}
}

// The code says how it ended, and the answer why.
func TestReloadAnswers(t *testing.T) {
	source := &fakeSource{}
	base := start(t, source)
	refused, failed := Reload{}, Reload{}
	refused.Refuse(config.Problems{{File: "gw.toml", Line: 3, Column: 1, Key: "x", Severity: config.Error, Message: "unknown key"}})
	failed.Fail(errors.New("address already in use"))
	applied := Reload{Result: ReloadApplied, Changed: []Change{{Section: "route.a", Change: "changed", Keys: []string{"from"}}}}
	for code, r := range map[int]Reload{200: applied, 422: refused, 500: failed} {
		source.reload = r
		resp, err := http.Post(base+"/api/v1/reload", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		var got Reload
		if err := json.Unmarshal(body, &got); err != nil || resp.StatusCode != code || got.Result != r.Result || got.Error != r.Error {
			t.Errorf("%d %s (%v), want %d", resp.StatusCode, body, err, code)
		}
		if !strings.Contains(string(body), `"needs_restart":[]`) {
			t.Errorf("an empty list is not written as one: %s", body)
		}
	}
	if s := applied.Changed[0].String(); s != "route.a: changed: from" {
		t.Errorf("got %q", s)
	}
}
