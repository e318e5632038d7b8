package config

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
)

// bound is an address that this configuration binds.
type bound struct {
	key string
	at  Place // of the address
	endpoint
}

func (v *validator) listeners() {
	if len(v.c.Listeners) == 0 && v.c.Broker.Mode != ModeExternal {
		name, l := v.defaults.listener()
		v.c.Listeners[name] = l
	}
	for _, name := range names(v.c.Listeners) {
		l, key := v.c.Listeners[name], join("listener", name)+".listen"
		if l.Listen == "" && !v.empty(key, stringKind, 0) {
			v.need(key, `say where to listen, such as "mqtt://127.0.0.1:1883"`)
			continue
		}
		e, err := parseEndpoint(l.Listen, listenerSchemes(), nil)
		if err != nil {
			v.badEndpoint(v.at(key).value, key, err)
			continue
		}
		if strings.Contains(e.path, "?") {
			v.wrong(key, "%q has a query; a listener has a path at most", l.Listen)
		}
		l.Listen = e.String()
		v.secure(join("listener", name), &l, e)
		v.c.Listeners[name] = l
		v.endpoints = append(v.endpoints, bound{key, v.at(key).value, e})
	}
}

func (v *validator) badEndpoint(at Place, key string, err error) {
	p := v.add(Error, at, key, "%s", err)
	if s := (*schemeError)(nil); errors.As(err, &s) {
		p.Suggestion = s.suggestion()
	}
}

func (v *validator) admin() {
	if v.c.Admin == nil {
		return
	}
	const key = "admin.listen"
	a := v.c.Admin
	e, err := parseEndpoint(a.Listen, []string{"http", "https"}, nil)
	v.files([]fileKey{{"admin.cert", &a.Cert}, {"admin.key", &a.Key}, {"admin.client_ca", &a.ClientCA}})
	if err != nil {
		v.badEndpoint(v.at(key).value, key, err)
		return
	}
	v.adminTLS(a, e)
	if !e.loopback() && (a.ClientCA == "" || !e.encrypted()) {
		v.wrong(key, "away from loopback [admin] wants a login: https:// with client_ca, so that only holders of a certificate come in; or listen on 127.0.0.1")
	}
	a.Listen = e.String()
	v.endpoints = append(v.endpoints, bound{key, v.at(key).value, e})
}

// adminTLS checks the keys for https.
func (v *validator) adminTLS(a *Admin, e endpoint) {
	if e.encrypted() {
		v.serverCertificate("admin", a.Cert, a.Key)
		v.authorities("admin.client_ca", a.ClientCA)
		return
	}
	for _, k := range []string{"admin.cert", "admin.key", "admin.client_ca"} {
		if v.given(k) {
			v.wrong(k, "is only for https://; write listen = \"https://...\", or remove it")
		}
	}
	a.Cert = ""
}

// addresses finds two listeners that want the same address.
func (v *validator) addresses() {
	for i, a := range v.endpoints {
		for _, b := range v.endpoints[:i] {
			if a.conflicts(b.endpoint) {
				v.add(Error, a.at, a.key, "%s is taken by %s (%s)", a.endpoint, b.key, b.endpoint)
				break
			}
		}
	}
}

// auth settles who may connect without a name: everybody while only this machine can reach the listeners, else only where
// the file says so.
func (v *validator) auth() {
	a := &v.c.Auth
	explicit := a.Anonymous != nil
	if !explicit {
		away := slices.ContainsFunc(v.endpoints, func(b bound) bool { return !b.loopback() })
		anonymous := !away
		a.Anonymous = &anonymous
	}
	v.coapLogin()
	admitted := false
	for name, l := range v.c.Listeners {
		if l.Anonymous == nil {
			value := *a.Anonymous
			l.Anonymous = &value
			v.c.Listeners[name] = l
		}
		admitted = admitted || *l.Anonymous || l.ClientAuth == ClientAuthOptional || l.ClientAuth == ClientAuthRequire
	}
	v.oneOf("auth.client_id", a.ClientID, ClientIDAny, ClientIDUser)
	for _, name := range slices.Sorted(maps.Keys(v.c.Listeners)) {
		if a.ClientID == ClientIDUser && *v.c.Listeners[name].Anonymous {
			v.wrong("auth.client_id", `"user" needs every client to have one, and listener %s admits clients without; set anonymous = false in [auth] or there`, name)
		}
	}
	users := v.users()
	for _, l := range v.c.Listeners {
		if l.ClientAuth == ClientAuthOptional || l.ClientAuth == ClientAuthRequire {
			users = nil // certificates have names that no file lists
		}
	}
	if a.UsersFile == "" && !v.given("auth.users_file") && !admitted && len(v.c.Listeners) > 0 {
		v.nobody(explicit)
	}
	for i := range a.Rules {
		v.rule(indexed("auth.rule", i), a.Rules[i], users)
	}
}

// nobody reports that no client can connect: an error when the file says so itself, a warning when it follows from an
// address that other machines can reach.
func (v *validator) nobody(explicit bool) {
	const text = "nobody can connect: no listener admits anonymous clients and there is no auth.users_file"
	if explicit {
		v.wrong("auth.anonymous", "%s", text)
		return
	}
	for _, b := range v.endpoints {
		if !b.loopback() {
			v.add(Warning, b.at, b.key, "%s; other machines can reach this address, so anonymous clients are only admitted by auth.anonymous = true", text)
			return
		}
	}
	v.warn("listener", "%s", text) // each listener says so itself
}

// users checks the users file and returns the names in it; nil when they are not known.
func (v *validator) users() []string {
	const key = "auth.users_file"
	a := &v.c.Auth
	if a.UsersFile == "" {
		if v.empty(key, stringKind, 0) {
			v.emptyPath(key)
		}
		return nil
	}
	a.UsersFile = v.absolute(a.UsersFile)
	info, err := os.Stat(a.UsersFile)
	if err != nil {
		v.wrong(key, "%s; `tidegate passwd USER` writes it", fileError(a.UsersFile, err))
		return nil
	}
	if info.Mode().Perm()&0o004 != 0 {
		v.warn(key, "everybody on this machine can read %s; chmod o-r it", a.UsersFile)
	}
	list, err := LoadUsers(a.UsersFile)
	if ps := Problems(nil); errors.As(err, &ps) {
		for _, p := range ps {
			v.wrong(key, "%s", p)
		}
		return nil
	}
	found := make([]string, len(list))
	for i, u := range list {
		found[i] = u.Name
	}
	return found
}

func (v *validator) emptyPath(key string) {
	v.wrong(key, "is empty; leave the key out when there is no such file")
}

// rule checks one [[auth.rule]]. users may be nil: not known.
func (v *validator) rule(key string, r Rule, users []string) {
	switch {
	case !v.given(key + ".user"):
		v.need(key+".user", `say whom it is for: a name, "press-*", "anonymous" or "*"`)
	case v.empty(key+".user", stringKind, len(r.User)):
		v.wrong(key+".user", `is empty; for clients without a name write "anonymous"`)
	case users != nil && r.User != AnonymousUser && !matchesAny(r.User, users):
		v.warn(key+".user", "the users file has nobody of that name").Suggestion = nearest(r.User, slices.Clone(users))
	}
	lists := []struct {
		key     string
		filters []string
	}{{"publish", r.Publish}, {"subscribe", r.Subscribe}, {"deny_publish", r.DenyPublish}, {"deny_subscribe", r.DenySubscribe}}
	any := false
	for _, list := range lists {
		k := key + "." + list.key
		any = any || v.given(k)
		for i, f := range list.filters {
			v.ruleFilter(k, i, f, list.key == "publish")
		}
	}
	if !any && v.whole {
		v.add(Error, v.at(key).key, key, "names no topics: give it publish, subscribe, deny_publish or deny_subscribe")
	}
}

func (v *validator) ruleFilter(key string, i int, filter string, publish bool) {
	if _, err := parseTemplate(filter, []string{"user", "client"}); err != nil && filter != "" {
		v.badTemplate(v.item(key, i), key, err)
		return
	}
	if err := checkFilter(filter); err != nil {
		v.wrongItem(key, i, "%s", err)
		return
	}
	if publish && reserved(filter) {
		v.warnItem(key, i, "has no effect: no device may publish to $… and tidegate/#")
	}
}

// badTemplate reports each of the errors that parseTemplate joined.
func (v *validator) badTemplate(at Place, key string, err error) {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	for _, err := range all {
		p := v.add(Error, at, key, "%s", err)
		if u := (*unknownNameError)(nil); errors.As(err, &u) {
			if name := nearest(u.name, slices.Clone(u.allowed)); name != "" {
				p.Suggestion = "{" + name + "}"
			}
		}
	}
}
