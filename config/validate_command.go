package config

// maxWindow bounds for how long identities of commands are remembered.
const maxWindow = 365 * day

// identities checks what a command has to say of itself.
func (v *validator) identities(k, protocol string, c *Command) {
	if v.empty(k+".id", stringKind, len(c.ID)) {
		v.wrong(k+".id", "names no user property; leave the key out for the default")
	}
	if v.empty(k+".time", stringKind, len(c.Time)) {
		v.wrong(k+".time", "names no user property; leave the key out for the default")
	}
	if c.ID == c.Time && c.ID != "" {
		at := k + ".time"
		if !v.given(at) {
			at = k + ".id"
		}
		v.wrong(at, "identity and time are not in one property: id and time must differ")
	}
	if c.ReplayWindow > Age(maxWindow) {
		v.wrong(k+".replay_window", `must be "off" or from 1s to 365d`)
	}
	if c.ReplayWindow == 0 && c.RequireID {
		v.warn(k+".require_id", "guards against nothing while replay_window is off: no identity is remembered")
	}
	if protocol == "3.1.1" {
		v.withoutProperties(k, c)
	}
}

// withoutProperties reports what cannot be had over MQTT 3.1.1, which knows neither user properties nor correlation data.
func (v *validator) withoutProperties(k string, c *Command) {
	if c.RequireID {
		v.wrong(k+".require_id", "a command over MQTT 3.1.1 carries no identity, so every one would be refused; use protocol 5")
	}
	if c.MaxAge > 0 {
		v.wrong(k+".max_age", "a command over MQTT 3.1.1 does not say when it was made, so every one would be refused; use protocol 5, or expire")
	}
	for _, name := range []string{"id", "replay_window", "time"} {
		if v.given(k + "." + name) {
			v.warn(k+"."+name, "has no effect: commands over MQTT 3.1.1 have no user properties")
		}
	}
}
