package config

import (
	"slices"
	"strconv"
	"strings"
)

func (v *validator) routes() {
	fed := map[string]bool{}
	for _, name := range names(v.c.Routes) {
		r, key := v.c.Routes[name], join("route", name)
		from := v.from(key, r)
		v.except(key, r, from)
		v.to(key, &r)
		v.oneOf(key+".retain", r.Retain, "keep", "clear")
		v.oneOf(key+".lane", r.Lane, "normal", "urgent")
		if r.QoS != 1 && r.QoS != 2 {
			v.wrong(key+".qos", "must be 1 or 2, not %d", r.QoS)
		}
		if parts := v.template(key+".topic", r.Topic, from, templateNames()); foreign(expand(parts, map[string]string{"gateway": v.c.Gateway.ID})) {
			v.wrong(key+".topic", "the topics $SYS/#, $share/# and tidegate/# are not for messages of devices: the cloud broker's own, or the gateway's")
		}
		v.c.Routes[name] = r
		for _, uplink := range r.To {
			fed[uplink] = true
		}
	}
	for _, name := range names(v.c.Uplinks) {
		if !fed[name] && v.whole {
			key := join("uplink", name)
			v.add(Warning, v.at(key).key, key, "no route leads to it, so no message goes up")
		}
	}
}

// from checks the filters of a route and returns the good ones.
func (v *validator) from(key string, r Route) []string {
	key += ".from"
	v.need(key, `name the topics to send up, such as ["plant/#"]`)
	if v.empty(key, arrayKind, len(r.From)) {
		v.wrong(key, "is empty: the route would send nothing")
	}
	var good []string
	for i, f := range r.From {
		switch err := checkFilter(f); {
		case err != nil:
			v.wrongItem(key, i, "%s", err)
		case reserved(f):
			v.wrongItem(key, i, "the topics $… and tidegate/# are the gateway's own and never sent up by a route")
		case slices.Contains(good, f):
			v.warnItem(key, i, "is listed twice")
		default:
			good = append(good, f)
		}
	}
	return good
}

// except finds exceptions that leave nothing of a filter.
func (v *validator) except(key string, r Route, from []string) {
	for i, f := range r.Except {
		if err := checkFilter(f); err != nil {
			v.wrongItem(key+".except", i, "%s", err)
			continue
		}
		reached := false
		for _, g := range from {
			if covers(f, g) {
				v.wrongItem(key+".except", i, "takes away everything that %q of from selects", g)
			}
			reached = reached || overlaps(f, g)
		}
		if !reached && len(from) == len(r.From) && len(from) > 0 {
			v.warnItem(key+".except", i, "has no effect: from selects none of it")
		}
	}
}

// to checks the names of uplinks and fills in all of them when there are none.
func (v *validator) to(key string, r *Route) {
	all := names(v.c.Uplinks)
	if len(r.To) == 0 {
		r.To = all
		if len(all) == 0 && v.whole && !v.given("uplink") {
			v.add(Warning, v.at(key).key, key, "leads nowhere: there is no [uplink.NAME]")
		}
		return
	}
	for i, name := range r.To {
		switch {
		case slices.Contains(r.To[:i], name):
			v.wrongItem(key+".to", i, "%q is listed twice", name)
		case !slices.Contains(all, name) && !v.given(join("uplink", name)):
			v.wrongItem(key+".to", i, "there is no [uplink.%s]", name).Suggestion = nearest(name, slices.Clone(all))
		}
	}
}

// foreign reports whether every topic that a template of a route makes is one that no broker takes from a client, or one on
// which the gateway speaks of itself. Other topics with a $ are for cloud services that define them, such as $aws/rules/.
func foreign(template string) bool {
	for _, own := range []string{"$SYS", "$share", "tidegate"} {
		if template == own || strings.HasPrefix(template, own+"/") {
			return true
		}
	}
	return false
}

// template checks a topic template whose levels and rest come from what the filters match, and returns its good parts.
func (v *validator) template(key, text string, filters, allowed []string) []Part {
	parts, err := parseTemplate(text, allowed)
	if err != nil {
		v.badTemplate(v.at(key).value, key, err)
	}
	if slices.ContainsFunc(parts, func(p Part) bool { return strings.ContainsAny(p.Text, "+#\x00") }) {
		v.wrong(key, "a topic name has no + and # [MQTT-3.3.2-2]")
	}
	for _, p := range parts {
		if p.Name == "rest" || p.Name != "" && p.Name[0] <= '9' {
			v.filled(key, p.Name, filters)
		}
	}
	return parts
}

// filled reports a {rest} or {N} that topics of the filters do not have.
func (v *validator) filled(key, name string, filters []string) {
	var lacking []string
	for _, f := range filters {
		n, open := levels(f)
		level, err := strconv.Atoi(name)
		if !open && (err != nil || level > n) {
			lacking = append(lacking, f)
		}
	}
	switch {
	case len(lacking) == 0:
	case len(lacking) == len(filters):
		v.wrong(key, "{%s} stays empty: %s", name, lackingText(name, lacking[0]))
	default:
		v.warn(key, "{%s} stays empty for some messages: %s", name, lackingText(name, lacking[0]))
	}
}

func lackingText(name, filter string) string {
	if name == "rest" {
		return strconv.Quote(filter) + " has no #"
	}
	n, _ := levels(filter)
	return "topics of " + strconv.Quote(filter) + " have " + strconv.Itoa(n) + " levels"
}
