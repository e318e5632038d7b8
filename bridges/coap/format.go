package coap

import (
	"strconv"
	"strings"

	option "github.com/plgd-dev/go-coap/v3/message"
)

// format is a row of the registry of Content-Formats (RFC 7252, 12.3), with the content type that it is in MQTT.
type format struct {
	number uint32
	text   string
}

// formats are those that devices use. The first row of a number is what its content type is called; further rows are other
// spellings, which are understood when a value is read.
func formats() []format {
	return []format{
		{uint32(option.TextPlain), "text/plain;charset=utf-8"},
		{uint32(option.TextPlain), "text/plain"},
		{uint32(option.AppLinkFormat), "application/link-format"},
		{uint32(option.AppXML), "application/xml"},
		{uint32(option.AppOctets), "application/octet-stream"},
		{uint32(option.AppExi), "application/exi"},
		{uint32(option.AppJSON), "application/json"},
		{uint32(option.AppJSON), "application/json;charset=utf-8"},
		{uint32(option.AppJSONPatch), "application/json-patch+json"},
		{uint32(option.AppJSONMergePatch), "application/merge-patch+json"},
		{uint32(option.AppCBOR), "application/cbor"},
		{uint32(option.AppCWT), "application/cwt"},
		{cborSequence, "application/cbor-seq"},
		{uint32(option.AppSenmlJSON), "application/senml+json"},
		{sensmlJSON, "application/sensml+json"},
		{uint32(option.AppSenmlCbor), "application/senml+cbor"},
		{sensmlCBOR, "application/sensml+cbor"},
		{senmlXML, "application/senml+xml"},
		{uint32(option.AppLwm2mTLV), "application/vnd.oma.lwm2m+tlv"},
		{uint32(option.AppLwm2mJSON), "application/vnd.oma.lwm2m+json"},
		{uint32(option.AppLwm2mCbor), "application/vnd.oma.lwm2m+cbor"},
	}
}

// Content-Formats that the codec has no name for.
const (
	cborSequence = 63
	sensmlJSON   = 111
	sensmlCBOR   = 113
	senmlXML     = 310
)

// formatPrefix is the content type of a number that is not among formats, so that it comes back as it was.
const formatPrefix = "application/x-coap-content-format;id="

// formatTable is formats, for looking up.
type formatTable struct {
	byNumber map[uint32]string
	byText   map[string]uint32
}

func newFormatTable() formatTable {
	t := formatTable{map[uint32]string{}, map[string]uint32{}}
	for _, f := range formats() {
		if _, named := t.byNumber[f.number]; !named {
			t.byNumber[f.number] = f.text
		}
		t.byText[f.text] = f.number
	}
	return t
}

// contentType is the MQTT content type of a Content-Format; none: empty.
func (t formatTable) contentType(n number) string {
	if !n.given {
		return ""
	}
	if text, ok := t.byNumber[n.value]; ok {
		return text
	}
	return formatPrefix + strconv.FormatUint(uint64(n.value), 10)
}

// contentFormat is the Content-Format of an MQTT content type, if it has one.
func (t formatTable) contentFormat(text string) number {
	if text == "" {
		return number{}
	}
	if n, ok := t.byText[text]; ok {
		return number{n, true}
	}
	text = strings.ToLower(strings.Join(strings.Fields(text), ""))
	if n, ok := t.byText[text]; ok {
		return number{n, true}
	}
	if rest, ok := strings.CutPrefix(text, formatPrefix); ok {
		if n, err := strconv.ParseUint(rest, 10, 16); err == nil {
			return number{uint32(n), true}
		}
	}
	return number{}
}
