package coap

import (
	"errors"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"tidegate/bridges/coap/wire"
	"tidegate/message"
)

// retryAfter is the Max-Age of a 5.03, in seconds: the disk or the line may need that long.
const retryAfter = 5

// maxBody is what a datagram has room for beside a head and the options of a long topic: the larger half of what Size1 says.
const maxBody = 65_000

// refusal is why a request is not done.
type refusal struct {
	code   codes.Code
	why    string // for a person, the diagnostic payload (RFC 7252, 5.5.2); empty: the code says it all
	option option.Option
}

func (n refusal) response() wire.Response {
	r := wire.Response{Code: n.code}
	if n.option.ID != 0 {
		r.Options = option.Options{n.option}
	}
	if n.why != "" {
		r.Payload = []byte(n.why)
	}
	return r
}

// refusalOf translates the errors between packages. limit is the largest body that is taken.
func refusalOf(err error, limit int) refusal {
	switch {
	case errors.Is(err, message.ErrBusy):
		return refusal{code: codes.ServiceUnavailable, option: uintOption(option.MaxAge, retryAfter)}
	case errors.Is(err, message.ErrNotAllowed):
		return refusal{code: codes.Forbidden}
	case errors.Is(err, message.ErrInvalid):
		return refusal{code: codes.BadRequest, why: diagnostic(err)}
	case errors.Is(err, message.ErrTooLarge):
		return refusal{code: codes.RequestEntityTooLarge, option: uintOption(option.Size1, uint32(min(limit, maxBody)))}
	default: // the disk failed, and with it what the message was to be kept by
		return refusal{code: codes.InternalServerError}
	}
}

// maxDiagnostic bounds a diagnostic payload: it may repeat a topic, and an answer should not be larger than what was asked.
const maxDiagnostic = 64

// diagnostic is an error as text, cut where a character begins.
func diagnostic(err error) string {
	text := err.Error()
	if len(text) <= maxDiagnostic {
		return text
	}
	end := maxDiagnostic
	for end > 0 && text[end]&0xc0 == 0x80 {
		end--
	}
	return text[:end]
}
