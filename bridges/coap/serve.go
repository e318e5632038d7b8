package coap

import (
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"tidegate/access"
	"tidegate/bridges/coap/wire"
	"tidegate/message"
)

// serve answers one request. It runs on the goroutine that reads the socket: nothing in it waits for anything.
func (b *Bridge) serve(r *wire.Request) {
	a, no := newAsk(r)
	switch {
	case no != nil && no.code == codes.BadOption && !r.Confirmable():
		b.metrics.count(r.Code, codes.BadOption)
		b.note(r, codes.BadOption)
		r.Reject() // a 4.02 is for confirmable requests (RFC 7252, 5.4.1)
		return
	case no != nil:
	case !b.anonymous.Load():
		no = &refusal{code: codes.Forbidden, why: "clients without a name are not admitted"}
	case r.Code < codes.GET || r.Code > codes.DELETE:
		no = &refusal{code: codes.MethodNotAllowed}
	case a.place == nowhere:
		no = &refusal{code: codes.NotFound}
	case a.place == topic && a.topic == "":
		no = &refusal{code: codes.BadRequest, why: "no topic behind /ps/"}
	case a.place != topic && r.Code != codes.GET:
		no = &refusal{code: codes.MethodNotAllowed}
	}
	switch {
	case no != nil:
		b.refuse(r, *no)
	case a.place != topic:
		b.discover(r, &a)
	case r.Code == codes.GET:
		b.get(r, &a)
	default:
		b.publish(r, &a)
	}
}

// reply answers a request and counts it.
func (b *Bridge) reply(r *wire.Request, resp wire.Response) {
	b.metrics.count(r.Code, resp.Code)
	r.Reply(resp)
}

// refuse answers a request that the bus has not seen.
func (b *Bridge) refuse(r *wire.Request, no refusal) {
	b.note(r, no.code)
	b.reply(r, no.response())
}

// note tells of a refused message. What names no topic, or only reads, is none.
func (b *Bridge) note(r *wire.Request, code codes.Code) {
	if b.o.OnRefuse == nil || r.Code < codes.POST || r.Code > codes.DELETE {
		return
	}
	switch code {
	case codes.Forbidden:
		b.o.OnRefuse(message.ErrNotAllowed)
	case codes.RequestEntityTooLarge:
		b.o.OnRefuse(message.ErrTooLarge)
	case codes.ServiceUnavailable:
		b.o.OnRefuse(message.ErrBusy)
	case codes.BadRequest, codes.BadOption, codes.RequestEntityIncomplete:
		b.o.OnRefuse(message.ErrInvalid)
	}
}

// replyLater answers a parked request and counts it.
func (b *Bridge) replyLater(x *wire.Exchange, resp wire.Response) {
	b.metrics.count(x.Request(), resp.Code)
	x.Reply(resp)
}

// identity is who sent a request, for the rules: nobody by name, from an address. The port is left out: a device may have
// another one each time.
func identity(r *wire.Request) access.Identity {
	return access.Identity{Client: r.Remote().Addr().String()}
}
