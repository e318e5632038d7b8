package session

import "iter"

// branches are what stands below one level of a topic, by the name of the next level. Most levels have one, for which a map would
// take several times the memory.
type branches[T any] struct {
	name string        // of only
	only *T            // nil: there is none, or there are several
	many map[string]*T // nil: there is one at most
}

func (b *branches[T]) get(name string) *T {
	if b.many != nil {
		return b.many[name]
	}
	if b.name == name {
		return b.only
	}
	return nil
}

// set adds c under a name that is not there yet.
func (b *branches[T]) set(name string, c *T) {
	switch {
	case b.many != nil:
		b.many[name] = c
	case b.only == nil:
		b.name, b.only = name, c
	default:
		b.many = map[string]*T{b.name: b.only, name: c}
		b.name, b.only = "", nil
	}
}

// drop removes what is there under name.
func (b *branches[T]) drop(name string) {
	if b.many == nil {
		b.name, b.only = "", nil
		return
	}
	if delete(b.many, name); len(b.many) == 1 {
		for name, c := range b.many {
			b.name, b.only = name, c
		}
		b.many = nil
	}
}

func (b *branches[T]) none() bool { return b.only == nil && b.many == nil }

// each returns all of them in no order.
func (b *branches[T]) each() iter.Seq2[string, *T] {
	return func(yield func(string, *T) bool) {
		if b.only != nil {
			yield(b.name, b.only)
			return
		}
		for name, c := range b.many {
			if !yield(name, c) {
				return
			}
		}
	}
}
