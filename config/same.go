package config

import (
	"reflect"
	"slices"
)

// Same reports whether two values of a configuration mean the same: two Configs, sections or tables, of the same type. Where they
// stand in the files does not matter, and an empty list is as good as none. What secrets hold is compared, not where it came from;
// what other files hold that are named by a path is not.
func Same[T any](a, b T) bool { return same(reflect.ValueOf(a), reflect.ValueOf(b)) }

var placeType = reflect.TypeFor[Place]()

func same(a, b reflect.Value) bool {
	if a.IsValid() != b.IsValid() {
		return false
	}
	if !a.IsValid() || a.Type() == placeType {
		return true
	}
	switch a.Kind() {
	case reflect.Pointer, reflect.Interface:
		return a.IsNil() == b.IsNil() && (a.IsNil() || same(a.Elem(), b.Elem()))
	case reflect.Struct:
		for i := range a.NumField() {
			if !same(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	case reflect.Slice, reflect.Array:
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !same(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Map:
		if a.Len() != b.Len() {
			return false
		}
		for _, k := range a.MapKeys() {
			if v := b.MapIndex(k); !v.IsValid() || !same(a.MapIndex(k), v) {
				return false
			}
		}
		return true
	default:
		return a.Equal(b)
	}
}

// Differ returns the keys below a section or table whose values are not the same in a and b, such as "servers" or
// "buffer.max_bytes", in the order of the structs.
func Differ[T any](a, b T) []string { return differ("", reflect.ValueOf(a), reflect.ValueOf(b)) }

func differ(path string, a, b reflect.Value) []string {
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		a, b = a.Elem(), b.Elem()
	}
	var keys []string
	if a.Kind() == reflect.Struct {
		for i := range a.NumField() {
			if key := a.Type().Field(i).Tag.Get("toml"); key != "" && key != "-" {
				keys = append(keys, differ(join(path, key), a.Field(i), b.Field(i))...)
			}
		}
	}
	if keys == nil && !same(a, b) {
		keys = []string{path}
	}
	return keys
}

// Keep returns next with what old has in every section but those named by live, and the keys of which that changed a value.
// It is for a program that can follow changes of some sections only while it runs. What it returns shares memory with both.
func Keep(old, next *Config, live ...string) (kept *Config, keys []string) {
	c := *next
	to, from := reflect.ValueOf(&c).Elem(), reflect.ValueOf(old).Elem()
	for i := range to.NumField() {
		section := to.Type().Field(i).Tag.Get("toml")
		if section == "-" || slices.Contains(live, section) {
			continue
		}
		keys = append(keys, differ(section, from.Field(i), to.Field(i))...)
		to.Field(i).Set(from.Field(i))
	}
	return &c, keys
}
