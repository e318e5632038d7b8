package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Proxy is the way out through a proxy. The zero value is "off": servers are connected to directly.
type Proxy struct {
	// Env follows HTTPS_PROXY, ALL_PROXY and NO_PROXY of the environment, as other programs do.
	Env bool
	// URL is http://HOST:PORT or https://HOST:PORT (HTTP CONNECT), or socks5://HOST:PORT. It holds no credentials.
	URL string
	// Username and Password are for the proxy alone; empty: it is asked without.
	Username string
	Password Secret
	// CA is a PEM file of authorities for the certificate of an https:// proxy; empty: those of the system.
	CA string
}

// IsSet reports whether there is a proxy, or may be one by the environment.
func (p Proxy) IsSet() bool { return p.Env || p.URL != "" }

// maxSOCKSText is the longest user name or password of SOCKS5 (RFC 1929, 2).
const maxSOCKSText = 255

const proxyForms = `"http://HOST:PORT", "https://HOST:PORT", "socks5://HOST:PORT", "env", "off" or { url = "...", username = "...", password = { file = "PATH" } }`

// proxyKeys are the keys of a proxy that is written as a table.
func proxyKeys() []string { return []string{"url", "username", "password", "ca"} }

// proxy reads a proxy: a word, a URL or a table. Nothing it says repeats the URL as written, which may hold a password.
func (d *decoder) proxy(n *node, path string) Proxy {
	var p Proxy
	switch n.kind {
	case stringKind:
		if n.text == "off" {
			return p
		}
		if n.text == "env" {
			return Proxy{Env: true}
		}
		d.proxyURL(n, path, &p)
	case tableKind:
		d.proxyTable(n, path, &p)
	default:
		d.add(Error, n.at, path, "must be %s, not %s", proxyForms, n.kind)
	}
	if strings.HasPrefix(p.URL, "http") && strings.Contains(p.Username, ":") {
		d.add(Error, n.at, path, "a user name cannot have a colon (RFC 7617, 2)")
	}
	if strings.HasPrefix(p.URL, "socks5:") && (len(p.Username) > maxSOCKSText || len(p.Password.value) > maxSOCKSText) {
		d.add(Error, n.at, path, "a user name and a password of SOCKS5 have at most %d bytes", maxSOCKSText)
	}
	return p
}

func (d *decoder) proxyTable(n *node, path string, p *Proxy) {
	for _, name := range n.names {
		child, key := n.fields[name], join(path, name)
		d.remember(key, child)
		switch name {
		case "url":
			if d.is(child, key, stringKind) {
				d.proxyURL(child, key, p)
			}
		case "username":
			if d.is(child, key, stringKind) {
				p.Username = child.text
			}
		case "password":
			p.Password = d.secret(child, key)
		case "ca":
			if d.is(child, key, stringKind) {
				p.CA = d.absolute(child.text)
			}
		default:
			d.add(Error, child.key, key, "unknown key").Suggestion = nearest(name, proxyKeys())
		}
	}
	switch {
	case n.fields["url"] == nil:
		d.add(Error, n.at, path, "needs the address of the proxy: url = \"http://HOST:PORT\"")
	case n.fields["username"] != nil && d.userInURL(n):
		d.add(Error, n.fields["username"].at, join(path, "username"), "and a user in url exclude each other")
	case p.Password.IsSet() && p.Username == "":
		d.add(Error, n.at, path, "has a password and no username")
	}
}

// userInURL reports whether the url of a proxy's table names a user.
func (d *decoder) userInURL(n *node) bool {
	u, err := url.Parse(n.fields["url"].text)
	return err == nil && u.User != nil
}

// proxyURL reads the address of a proxy, with a user and a password in it or not.
func (d *decoder) proxyURL(n *node, path string, p *Proxy) {
	u, err := url.Parse(n.text)
	if err == nil {
		err = checkProxyURL(u)
	} else {
		err = fmt.Errorf("is no proxy; write %s", proxyForms)
	}
	if err != nil {
		d.add(Error, n.at, path, "%s", err)
		return
	}
	if u.Scheme == "socks5h" { // names are always resolved by the proxy
		u.Scheme = "socks5"
	}
	port := u.Port()
	if port == "" {
		port = "1080"
	}
	p.URL = endpoint{scheme: u.Scheme, host: u.Hostname(), port: atoi(port)}.String()
	if u.User == nil {
		return
	}
	p.Username = u.User.Username()
	if password, ok := u.User.Password(); ok && password != "" {
		secret := *n
		secret.text = password
		p.Password = d.secret(&secret, path)
	}
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s) // checked by checkProxyURL
	return n
}

func checkProxyURL(u *url.URL) error {
	schemes := []string{"http", "https", "socks5", "socks5h"}
	if !slices.Contains(schemes, u.Scheme) {
		return fmt.Errorf("is no proxy this build can use; write %s", proxyForms)
	}
	n, err := strconv.Atoi(u.Port())
	switch {
	case u.Hostname() == "":
		return errors.New("needs a host")
	case u.Port() == "" && strings.HasPrefix(u.Scheme, "http"):
		return errors.New("needs a port, as proxies have no usual one; 3128 and 8080 are frequent")
	case u.Port() != "" && (err != nil || n < 1 || n > 65535):
		return errors.New("the port is not from 1 to 65535")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("has something behind the port")
	case u.User != nil && u.User.Username() == "":
		return errors.New("has a password and no user name in front of it")
	}
	return nil
}

// way checks how an uplink gets to its servers.
func (v *validator) way(key string, u Uplink) {
	v.authority(key+".proxy.ca", u.Proxy.CA)
	if u.Proxy.CA != "" && !strings.HasPrefix(u.Proxy.URL, "https:") {
		v.wrong(key+".proxy.ca", "is only for a proxy with https://")
	}
	v.oneOf(key+".retain", u.Retain, "keep", "strip")
	if strings.ContainsFunc(u.ServerName, func(c rune) bool { return !isBare(c) && c != '.' }) || strings.HasPrefix(u.ServerName, ".") {
		v.wrong(key+".server_name", "%q is no host name", u.ServerName)
	}
	for i, p := range u.ALPN {
		if p == "" || len(p) > 255 {
			v.wrongItem(key+".alpn", i, "a protocol has 1 to 255 bytes")
		}
	}
}
