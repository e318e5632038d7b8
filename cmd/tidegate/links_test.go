package main

import (
	"context"
	"errors"
	"testing"

	"tidegate/forwarder"
	"tidegate/forwarder/uplink"
	"tidegate/message"
)

// fakeLink answers every message with answer.
type fakeLink struct {
	uplink.Link
	answer error
	id     uplink.Identity
}

func (f *fakeLink) Send(_ context.Context, _ message.Message, id uplink.Identity, done func(error)) error {
	f.id = id
	done(f.answer)
	return nil
}

func TestLinkPort(t *testing.T) {
	for name, c := range map[string]struct {
		answer error
		is     error // what the forwarder looks for
		code   byte  // of a refusal; 0: it is none
	}{
		"accepted":       {nil, nil, 0},
		"quota":          {uplink.ErrQuota, forwarder.ErrQuota, 0},
		"not authorized": {uplink.ErrNotAuthorized, forwarder.ErrNotAuthorized, 0},
		"refused":        {&uplink.RefusedError{Code: 0x99, Reason: "no"}, nil, 0x99},
		"disconnected":   {uplink.ErrDisconnected, uplink.ErrDisconnected, 0},
	} {
		t.Run(name, func(t *testing.T) {
			fake := &fakeLink{answer: c.answer}
			l := linkPort{fake}
			var got error
			err := l.Send(t.Context(), message.Message{}, forwarder.Identity{ID: "i", Seq: "s", Source: "d"}, func(err error) { got = err })
			if err != nil || fake.id != (uplink.Identity{ID: "i", Seq: "s", Src: "d"}) {
				t.Errorf("%v, identity %+v", err, fake.id)
			}
			if (got == nil) != (c.answer == nil) || c.is != nil && !errors.Is(got, c.is) {
				t.Errorf("got %v", got)
			}
			var refused forwarder.Refusal
			if isRefusal := errors.As(got, &refused); isRefusal != (c.code != 0) || isRefusal && refused.Code() != c.code {
				t.Errorf("refusal %v", got)
			}
		})
	}
}
