package link

import "testing"

// TestTheLedgerTellsSubscriptionsApart: a server that was started anew may use the old number again, but what belonged to
// the old subscription says nothing about the new one.
func TestTheLedgerTellsSubscriptionsApart(t *testing.T) {
	g := ledger{changed: make(chan struct{}, 1)}
	old := delivery{term: g.begin(), sequence: 1}
	lost := delivery{term: g.begin(), sequence: 2}
	g.end(delivery{term: g.begin(), sequence: 3}, nil)
	acks, term := g.takeAcks()
	g.forget()
	fresh := delivery{term: g.begin(), sequence: 1}
	g.end(old, nil)
	g.end(lost, errClosed)
	g.giveBack(term, acks)
	if acks, _ := g.takeAcks(); len(acks) > 0 {
		t.Errorf("%v is acknowledged, and not on disk", acks)
	}
	if failed := g.takeFailed(); len(failed) > 0 {
		t.Errorf("%v is asked for again", failed)
	}
	g.end(fresh, nil)
	if acks, _ := g.takeAcks(); len(acks) != 1 || acks[0] != 1 {
		t.Errorf("the acknowledgements are %v, want 1", acks)
	}
	if underway, _ := g.state(); underway != 0 {
		t.Errorf("%d underway", underway)
	}
}
