package edge

import (
	"errors"

	"tidegate/message"
)

// MQTT 5 reason codes that are sent from here.
const (
	codeSuccess          = 0x00
	codeNoSubscription   = 0x11
	codeContinue         = 0x18 // of an AUTH: the exchange goes on
	codeReauthenticate   = 0x19 // of an AUTH: a new exchange
	codeUnspecified      = 0x80
	codeMalformed        = 0x81
	codeProtocolError    = 0x82
	codeVersion          = 0x84
	codeIdentifier       = 0x85
	codeBadLogin         = 0x86
	codeNotAuthorized    = 0x87
	codeBusy             = 0x89
	codeShuttingDown     = 0x8b
	codeBadAuthMethod    = 0x8c
	codeTakenOver        = 0x8e
	codeFilterInvalid    = 0x8f
	codeTopicInvalid     = 0x90
	codeUnknownPacketID  = 0x92
	codeReceiveMaximum   = 0x93
	codeTopicAlias       = 0x94
	codeTooLarge         = 0x95
	codeQuota            = 0x97
	codeAdministrative   = 0x98
	codeConnectRate      = 0x9f
	codeWillWithDelivery = 0x04 // of a DISCONNECT: publish the will
)

// CONNACK return codes of MQTT 3.1.1.
const (
	oldVersion       = 1
	oldIdentifier    = 2
	oldUnavailable   = 3
	oldNotAuthorized = 5
)

// refusal is what becomes of a message that is not taken.
type refusal struct {
	code  byte   // MQTT 5: of the PUBACK or PUBREC, or of a DISCONNECT
	label string // of the metric
	// passes says that the same message may be taken later. An MQTT 3.1.1 client, which cannot be told, is disconnected
	// without an acknowledgement then, so that it comes back and sends again; otherwise it gets its acknowledgement, lest it
	// send the same for ever.
	passes bool
	// fatal ends the connection in either version.
	fatal bool
}

// refusalOf translates an error of Ingest or of a check into what the client is told.
func refusalOf(err error) refusal {
	switch {
	case errors.Is(err, message.ErrNotAllowed):
		return refusal{code: codeNotAuthorized, label: "not_allowed"}
	case errors.Is(err, message.ErrInvalid):
		return refusal{code: codeTopicInvalid, label: "invalid"}
	case errors.Is(err, message.ErrTooLarge):
		return refusal{code: codeTooLarge, label: "too_large", fatal: true}
	default: // ErrBusy, and whatever else kept it from being taken now
		return refusal{code: codeQuota, label: "busy", passes: true}
	}
}

// connackOf translates an MQTT 5 reason code of a CONNACK into the return code of version 3.1.1.
func connackOf(code byte) byte {
	switch code {
	case codeVersion:
		return oldVersion
	case codeIdentifier:
		return oldIdentifier
	case codeBadLogin, codeNotAuthorized, codeBadAuthMethod:
		return oldNotAuthorized
	default:
		return oldUnavailable
	}
}
