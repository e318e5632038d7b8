package forwarder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// work is what Run has under way.
type work struct {
	sending context.Context // ends the drains
	stop    func()          // ends it
	deliver Deliver
	keeping context.Context // ends the keepers, after the drains
	keepers sync.WaitGroup
	kept    map[*gaps]bool
	// uplinks and kept are guarded by Forwarder.changing.
	uplinks []*atWork
	links   errgroup.Group // their connections
}

// atWork is one uplink with its drain.
type atWork struct {
	out                     *output
	stopSending, disconnect context.CancelFunc
	drained, gone           chan struct{} // closed when the drain, or the connection, has ended
}

// Run keeps the uplinks connected and sends until ctx ends. Then it stops sending, gives acknowledgements on the way a short
// time to arrive, lets the uplinks say goodbye, and returns when every goroutine it started has ended. Commands of the
// cloud are handed to deliver; one that nobody subscribes to is offered again in the first 10 s, in which devices connect
// again, and given up after that. An error means that an uplink ended although it should not have.
func (f *Forwarder) Run(ctx context.Context, deliver Deliver) error {
	sending, stopSending := context.WithCancel(ctx)
	defer stopSending()
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopKeeping()
	w := &work{sending: sending, stop: stopSending, deliver: deliver, keeping: keeping, kept: map[*gaps]bool{}}
	f.changing.Lock()
	f.work = w
	for _, o := range f.outputs() {
		w.keep(o.gaps)
		w.start(f, o)
	}
	f.changing.Unlock()
	var counting sync.WaitGroup
	counting.Go(func() { f.count(sending) }) // ends with sending

	<-sending.Done()
	f.changing.Lock() // a change under way comes to its end
	f.work = nil
	uplinks := w.uplinks
	f.changing.Unlock()
	for _, u := range uplinks {
		<-u.drained
	}
	counting.Wait()
	f.log.StopExpiring() // what expired from here on would be announced to nobody
	stopKeeping()
	w.keepers.Wait()
	for _, u := range uplinks {
		u.disconnect()
	}
	return w.links.Wait()
}

// keep keeps gap reports on disk. It goes on when their uplink is removed, as what that left may still be lost.
func (w *work) keep(g *gaps) {
	if w.kept[g] {
		return
	}
	w.kept[g] = true
	w.keepers.Go(func() { g.keep(w.keeping) }) // ends with keeping
}

// start connects an uplink and sends what is in its buffer.
func (w *work) start(f *Forwarder, o *output) {
	u := &atWork{out: o, drained: make(chan struct{}), gone: make(chan struct{})}
	sending, stopSending := context.WithCancel(w.sending)
	// The connection outlives the drain, which still waits for acknowledgements when it ends.
	connected, disconnect := context.WithCancel(context.WithoutCancel(w.sending))
	u.stopSending, u.disconnect = stopSending, disconnect
	c := &commands{
		gateway: f.gateway, uplink: o.name, rules: o.rules, deliver: w.deliver, results: f.metrics.commands,
		log: f.logger.With("uplink", o.name), settled: time.Now().Add(commandGrace), guard: o.guard,
	}
	w.links.Go(func() error { // ends with connected
		defer close(u.gone)
		err := o.uplink.Run(connected, c.accept)
		if connected.Err() != nil {
			return nil
		}
		w.stop()
		return errors.Join(fmt.Errorf("forwarder: uplink %s ended", o.name), err)
	})
	go func() { // ends with sending
		defer close(u.drained)
		o.drain.run(sending)
	}()
	w.uplinks = append(w.uplinks, u)
}

// leave ends an uplink in order: what is in flight is waited for a short time, then it says goodbye.
func (u *atWork) leave() {
	u.stopSending()
	<-u.drained
	u.disconnect()
	<-u.gone
}
