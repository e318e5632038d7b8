package forwarder

import (
	"context"
	"errors"
	"testing"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/message"
)

// TestIngestWith: records of somebody else go with a message, also one that no route wants; those that may be left out are where
// there is no room, and the message is counted once; those that must go along keep it from being taken.
func TestIngestWith(t *testing.T) {
	r := open(t, t.TempDir(), testConfig(map[string]config.Route{"a": {From: []string{"a/#"}}}, "cloud"),
		map[string]*fakeCloud{"cloud": newFakeCloud(takeAll)})
	defer r.close()
	free, err := r.f.log.Queue("other/free", buffer.QueueOptions{})
	if err != nil {
		t.Fatal(err)
	}
	small, err := r.f.log.Queue("other/small", buffer.QueueOptions{Bound: r.f.log.NewBound(100, buffer.DropOldest)})
	if err != nil {
		t.Fatal(err)
	}
	for i, topic := range []string{"a/x", "b"} {
		must := []buffer.Record{{Queue: free, Data: []byte("must")}}
		may := []buffer.Record{{Queue: small, Data: []byte("may")}}
		tk, err := r.f.IngestWith(message.Message{Topic: topic}, must, may)
		if err != nil || must[0].Seq != buffer.Seq(2*i+1) || may[0].Seq != buffer.Seq(i+1) || tk.Pos() == 0 || tk.Wait(context.Background()) != nil {
			t.Errorf("%s: %v, sequences %d and %d", topic, err, must[0].Seq, may[0].Seq)
		}
		large := []buffer.Record{{Queue: small, Data: make([]byte, 500)}}
		if _, err = r.f.IngestWith(message.Message{Topic: topic}, must, large); err != nil || large[0].Seq != 0 || must[0].Seq != buffer.Seq(2*i+2) {
			t.Errorf("%s, a record too large: %v, sequences %d and %d", topic, err, must[0].Seq, large[0].Seq)
		}
		if _, err = r.f.IngestWith(message.Message{Topic: topic}, large, nil); !errors.Is(err, message.ErrTooLarge) {
			t.Errorf("%s, one that must go along: %v", topic, err)
		}
	}
	l := r.f.Ledger()
	if l.Unrouted != 2 {
		t.Errorf("%d unrouted", l.Unrouted)
	}
	r.balance()
}
