package edge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"

	"tidegate/certs"
	"tidegate/config"
)

// ListenerChange is a new set of listeners, with its addresses bound and its certificates read. It ends with Commit or
// Discard.
type ListenerChange struct {
	b     *Broker
	leave []*listener // removed, or replaced
	enter []*entering
}

// entering is a listener that is to be.
type entering struct {
	name   string
	config config.Listener
	// next is nil where the address can be bound only once an earlier listener has left it.
	next *listener
	from *listener // has the socket that next takes over; nil: next has its own
}

// PrepareListeners compares want with the listeners there are. What is the same, but for Anonymous, stays as it is and is not
// touched. It changes nothing: without an error either Commit or Discard has to be called. One change at a time.
func (b *Broker) PrepareListeners(want map[string]config.Listener) (*ListenerChange, error) {
	if len(want) == 0 && len(b.every()) > 0 {
		return nil, errors.New("edge: no listener")
	}
	c := &ListenerChange{b: b}
	stays := map[string]bool{}
	for _, l := range b.every() {
		if next, ok := want[l.name]; ok && sameListener(l.config, next) {
			stays[l.name] = true
			continue
		}
		c.leave = append(c.leave, l)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if stays[name] {
			continue
		}
		e, err := c.prepare(name, want[name])
		if err != nil {
			c.Discard()
			return nil, err
		}
		c.enter = append(c.enter, e)
	}
	return c, nil
}

// sameListener reports whether b needs nothing that a is not, beside who is admitted without a name.
func sameListener(a, b config.Listener) bool {
	a.Anonymous, b.Anonymous = nil, nil
	return config.Same(a, b)
}

// prepare makes a listener that is to be. It takes over the socket of one that leaves the same address.
func (c *ListenerChange) prepare(name string, want config.Listener) (*entering, error) {
	e := &entering{name: name, config: want}
	address, err := addressOf(want)
	if err != nil {
		return nil, fmt.Errorf("edge: listener %s: %w", name, err)
	}
	var p *port
	if i := slices.IndexFunc(c.leave, func(l *listener) bool { return l.port.address == address && !c.taken(l) }); i >= 0 {
		e.from = c.leave[i]
		p = e.from.port.handOn()
	} else if p, err = openPort(address); errors.Is(err, syscall.EADDRINUSE) && c.leavesPort(address) {
		// An address that overlaps, such as every address of the machine after one of them. The rest of it is tried now.
		if t, secure := want.TLS(); secure {
			if _, err = certs.NewServer(t); err != nil {
				err = fmt.Errorf("edge: listener %s: %w", name, err)
			}
			return e, err
		}
		return e, nil
	} else if err != nil {
		return nil, fmt.Errorf("edge: listener %s: %w", name, err)
	}
	if e.next, err = c.b.newListener(name, want, p); err != nil && e.from == nil {
		err = errors.Join(err, p.Close())
	}
	return e, err
}

func (c *ListenerChange) taken(l *listener) bool {
	return slices.ContainsFunc(c.enter, func(e *entering) bool { return e.from == l })
}

// leavesPort reports whether a listener that leaves has the port of address.
func (c *ListenerChange) leavesPort(address string) bool {
	_, wanted, err := net.SplitHostPort(address)
	return err == nil && slices.ContainsFunc(c.leave, func(l *listener) bool {
		_, has, err := net.SplitHostPort(l.Addr().String())
		return err == nil && has == wanted
	})
}

// Discard frees what was bound.
func (c *ListenerChange) Discard() {
	for _, e := range c.enter {
		if e.next != nil && e.from == nil {
			_ = e.next.Close()
		}
	}
}

// Commit ends the listeners that leave of a Broker that runs, with their clients, of which those of MQTT 5 are told 0x98, and starts the new ones. On
// an error everything is as it was, but for the clients of the listeners that were to leave.
func (c *ListenerChange) Commit() error {
	if len(c.leave) == 0 && len(c.enter) == 0 {
		return nil
	}
	<-c.b.begun
	for _, l := range c.leave {
		l.port.kept.Store(c.taken(l))
		_ = l.Close()
	}
	for _, l := range c.leave {
		<-l.done // nobody else accepts from its socket
	}
	err := c.bindLate()
	if err != nil {
		c.Discard()
		err = errors.Join(err, c.restore())
	}
	c.b.listening.Lock()
	c.b.listeners = slices.DeleteFunc(c.b.listeners, func(l *listener) bool { return slices.Contains(c.leave, l) })
	for _, e := range c.enter {
		if e.next != nil {
			c.b.listeners = append(c.b.listeners, e.next)
		}
	}
	c.b.listening.Unlock()
	for _, e := range c.enter {
		if e.next != nil {
			err = errors.Join(err, e.next.port.resume())
			c.b.start(e.next)
		}
	}
	c.endClients()
	return err
}

// bindLate binds what could not be bound before.
func (c *ListenerChange) bindLate() error {
	for _, e := range c.enter {
		if e.next != nil {
			continue
		}
		next, err := c.b.bindAgain(e.name, e.config)
		if err != nil {
			return err
		}
		e.next = next
	}
	return nil
}

func (b *Broker) bindAgain(name string, want config.Listener) (*listener, error) {
	address, err := addressOf(want)
	if err != nil {
		return nil, err
	}
	p, err := openPort(address)
	if err != nil {
		return nil, fmt.Errorf("edge: listener %s: %w", name, err)
	}
	l, err := b.newListener(name, want, p)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return l, nil
}

// restore makes the listeners that left again, in place of the new ones.
func (c *ListenerChange) restore() error {
	var errs []error
	c.enter = nil
	for _, l := range c.leave {
		e := &entering{name: l.name, config: l.config}
		var err error
		if l.port.kept.Load() {
			e.next, err = c.b.newListener(l.name, l.config, l.port.handOn())
		} else {
			e.next, err = c.b.bindAgain(l.name, l.config)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.enter = append(c.enter, e)
	}
	return errors.Join(errs...)
}

// endClients closes the connections of the listeners that left.
func (c *ListenerChange) endClients() {
	ctx, cancel := context.WithTimeout(context.Background(), c.b.o.Shutdown/2)
	defer cancel()
	var ending sync.WaitGroup
	for _, l := range c.leave {
		for _, conn := range l.Conns() {
			conn.Disconnect(codeAdministrative, listenerClosed)
		}
		ending.Go(func() { _ = l.Shutdown(ctx, codeAdministrative) }) // ends with ctx
	}
	ending.Wait()
}
