package session

import (
	"fmt"
	"sync"
	"testing"

	"tidegate/message"
)

// TestSettleBesideCommits: what belongs together is given up together, also where the disk takes it in the moment in which somebody looks.
// Otherwise a retained message that was cleared is there again after a restart.
func TestSettleBesideCommits(t *testing.T) {
	x := newStored(t, newDisk(), Options{RetainedLimit: 100}, 1<<20)
	stop := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				x.store.Settle()
			}
		}
	})
	for i := range 5_000 {
		for _, payload := range []string{"there", ""} {
			msg := &message.Message{ID: message.NewID(), Topic: fmt.Sprint("r/", i%8), Retain: true, Payload: []byte(payload)}
			r, err := x.Route(Publication{Msg: msg})
			if err != nil || wait(r.Ticket) != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	looking.Wait()
	x.store.Settle()
	if n := x.store.retained.Stats().Records; n > 0 {
		t.Errorf("%d records stay for topics that have nothing", n)
	}
}
