#!/usr/bin/env python3
"""Prints the messages of Tidegate batch envelopes as JSON lines (docs/envelope.md).

Usage: decode_batch.py [FILE...]     standard input where no FILE is named

Several envelopes may stand one behind the other, with line feeds between them; each is printed as soon as it is there. Only the
standard library is used: plain and gzip envelopes work everywhere, zstd from Python 3.14 on. What is no envelope, or not as
docs/envelope.md has it, is refused, as `tidegate decode` does. Exit codes: 0 fine, 1 something is no envelope, 2 wrong use, 69 zstd
is missing here.

As a module: decode(payload) returns the header and the list of messages of one envelope, with their payloads as bytes.
"""

import base64
import binascii
import io
import json
import re
import sys
import zlib

MAX_BYTES = 33 << 20  # what one envelope may unpack to
RECORD_COST = 512  # what a message counts at least against that
MAX_DEPTH = 32  # of objects and arrays within each other
BLANK = b" \t\r\n"
ZSTD = b"\x28\xb5\x2f\xfd"
GZIP = b"\x1f\x8b"


class NoZstd(Exception):
    """This Python cannot unpack zstd."""


class Malformed(Exception):
    """The bytes are no batch envelope."""


class Stream:
    """Bytes of a file, as many as are asked for and no more than there are at the moment."""

    def __init__(self, f=None, data=b""):
        self.f, self.data, self.at = f, data, 0

    def more(self):
        """Reads what is there next, waiting for it; False at the end."""
        chunk = self.f.read1(1 << 20) if self.f else b""
        if chunk:
            self.data, self.at = self.data[self.at :] + chunk, 0
        return bool(chunk)

    def left(self):
        return len(self.data) - self.at

    def take(self):
        """Takes all that is there."""
        data, self.data, self.at = self.data[self.at :], b"", 0
        return data

    def skip_line_feeds(self):
        """Passes over line feeds and reports whether anything is behind them."""
        while True:
            while self.at < len(self.data) and self.data[self.at] in b"\r\n":
                self.at += 1
            if self.left():
                return True
            if not self.more():
                return False

    def only_blanks(self):
        """Reads to the end and reports whether nothing is there."""
        while not self.take().strip(BLANK):
            if not self.more():
                return True
        return False

    def next_line(self, limit):
        """Takes the next line with anything in it, of at most limit bytes; None where there is none. Also how many bytes it took."""
        taken = 0
        while True:
            end = self.data.find(b"\n", self.at) + 1
            while end == 0 and self.left() <= limit - taken:
                seen = self.left()
                if not self.more():
                    break
                end = self.data.find(b"\n", self.at + seen) + 1
            end = end or len(self.data)
            n = end - self.at
            if n > limit - taken:
                raise Malformed("it has more than %d bytes" % MAX_BYTES)
            if n == 0:
                return None, taken
            line, self.at = self.data[self.at : end].strip(BLANK), end
            taken += n
            if line:
                return line, taken


def next_envelope(stream):
    """Takes one envelope off a stream: its header, and the lines and the objects of its messages."""
    while stream.left() < 5 and stream.more():
        pass
    begin = stream.data[stream.at : stream.at + 5]
    if begin[:4] == ZSTD or begin[:2] == GZIP:
        text = Stream(data=unpack(stream, begin[:2] == GZIP))
        h, lines, objects = messages(text)
        if not text.only_blanks():
            raise Malformed("something is behind the last message")
        return h, lines, objects
    if begin == b'{"v":':
        return messages(stream)
    raise Malformed("it begins like no batch envelope")


def unpack(stream, gzip):
    """Returns the text of the gzip member or zstd frame at the start of a stream."""
    if not gzip:
        try:
            from compression import zstd
        except ImportError:
            raise NoZstd(
                "this envelope is packed with zstd, which is in Python's standard library from 3.14 on, and this is "
                + sys.version.split()[0]
                + '; use compress = "gzip" on the gateway, or unpack it with zstd -d first'
            ) from None
        unpacker, failure = zstd.ZstdDecompressor(), zstd.ZstdError
    else:
        unpacker, failure = zlib.decompressobj(zlib.MAX_WBITS | 16), zlib.error
    text, room, packed = [], MAX_BYTES + 1, stream.take()
    try:
        while True:
            part = unpacker.decompress(packed, room)
            packed = getattr(unpacker, "unconsumed_tail", b"")
            text.append(part)
            room -= len(part)
            if room <= 0:
                raise Malformed("it unpacks to more than %d bytes" % MAX_BYTES)
            if unpacker.eof:
                stream.data = unpacker.unused_data
                return b"".join(text)
            if not part and not packed:
                if not stream.more():
                    raise Malformed("it is cut short")
                packed = stream.take()
    except failure as e:
        raise Malformed(str(e)) from None


def messages(stream):
    """Reads a header and as many messages as it says."""
    line, taken = stream.next_line(MAX_BYTES)
    if line is None:
        raise Malformed("it is empty")
    h = header(line)
    if h["n"] > MAX_BYTES // RECORD_COST:
        raise Malformed("%d messages are too many" % h["n"])
    lines, objects = [], []
    for i in range(h["n"]):
        line, n = stream.next_line(MAX_BYTES - taken)
        taken += n
        if line is None:
            raise Malformed("%d messages where the header says %d" % (i, h["n"]))
        lines.append(line)
        try:
            objects.append(message(line))
        except Malformed as e:
            raise Malformed("message %d of %d: %s" % (i + 1, h["n"], e)) from None
    return h, lines, objects


def no_constant(name):
    raise Malformed("%s is no JSON" % name)


def whole_number(text):
    """Numbers as a header and a message have them; others are only passed over."""
    return int(text) if len(text) <= 20 and not text.startswith("-") else None


def parse(line):
    """Reads the JSON object of one line."""
    try:
        text = line.decode("utf-8")
        check_text(text)
        out = json.loads(text, parse_constant=no_constant, parse_int=whole_number, parse_float=lambda _: None)
    except ValueError as e:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Malformed(str(e)) from None
    if not isinstance(out, dict):
        raise Malformed("it is no object")
    return out


def check_text(text):
    """Refuses what lies too deep, and halves of surrogate pairs."""
    if text.count("{") + text.count("[") > MAX_DEPTH:
        depth = 0
        for part in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text, re.DOTALL):
            if part.group() in "[{":
                depth += 1
            elif part.group() in "]}":
                depth -= 1
            if depth > MAX_DEPTH:
                raise Malformed("more than %d levels" % MAX_DEPTH)
    high_ends = -1
    for part in re.finditer(r"\\(?:u([0-9a-fA-F]{4})|.)", text, re.DOTALL):
        code = int(part[1], 16) if part[1] else 0
        low = 0xDC00 <= code <= 0xDFFF
        if (high_ends >= 0) != low or low and part.start() != high_ends:
            raise Malformed("half a surrogate pair")
        high_ends = part.end() if 0xD800 <= code <= 0xDBFF else -1
    if high_ends >= 0:
        raise Malformed("half a surrogate pair")


ABSENT = object()


def field(o, name, kind, must=False):
    """Returns a field of one type, ABSENT where it may be and is absent."""
    value = o.get(name, ABSENT)
    if value is ABSENT and must or value is not ABSENT and type(value) is not kind:
        raise Malformed("%s is missing, or is no %s" % (name, kind.__name__))
    return value


def number(o, name, least, most, must=False):
    value = field(o, name, int, must)
    if value is not ABSENT and not least <= value <= most:
        raise Malformed("%s is not from %d to %d" % (name, least, most))
    return value


TIME = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?(?:Z|[+-]([0-9]{2}):([0-9]{2}))")


def time(o, name, must=False):
    """Checks a time of RFC 3339."""
    value = field(o, name, str, must)
    if value is ABSENT:
        return
    m = TIME.fullmatch(value)
    if m:
        year, month, day, hour, minute, second, off_hour, off_minute = (int(x or 0) for x in m.groups())
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        days = [31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
        if 1 <= month <= 12 and 1 <= day <= days[month - 1] and hour <= 23 and minute <= 59 and second <= 59 and off_hour <= 23 and off_minute <= 59:
            return
    raise Malformed("%s is no time of RFC 3339" % name)


def unbase64(name, text):
    """Takes base64 apart, in the only form that the bytes have."""
    try:
        out = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise Malformed("%s: %s" % (name, e)) from None
    if base64.b64encode(out) != text.encode("ascii", "replace"):
        raise Malformed("%s: not the only form of base64" % name)
    return out


def header(line):
    h = parse(line)
    number(h, "v", 1, 2**31 - 1, True)
    number(h, "n", 1, 2**31 - 1, True)
    field(h, "up", str)
    if not field(h, "gw", str, True):
        raise Malformed("the first line is no header of a batch")
    if h["v"] != 1:
        raise Malformed("version %d is not known, only 1" % h["v"])
    return h


def message(line):
    """Reads the line of a message, with "payload" as bytes."""
    m = parse(line)
    for name in ("seq", "id", "source", "topic"):
        field(m, name, str, True)
    time(m, "received", True)
    number(m, "qos", 0, 2, True)
    field(m, "retain", bool)
    payload, encoding = field(m, "payload", str, True), field(m, "encoding", str, True)
    if encoding == "base64":
        m["payload"] = unbase64("payload", payload)
    elif encoding == "utf8":
        m["payload"] = payload.encode()
    else:
        raise Malformed("encoding %r: want utf8 or base64" % encoding)
    for name in ("content_type", "response_topic", "reason", "uplink", "route"):
        field(m, name, str)
    data = field(m, "correlation_data", str)
    if data is not ABSENT:
        unbase64("correlation_data", data)
    field(m, "payload_utf8", bool)
    pairs = field(m, "user_properties", list)
    for pair in [] if pairs is ABSENT else pairs:
        if type(pair) is not list or len(pair) != 2 or any(type(x) is not str for x in pair):
            raise Malformed("user_properties: want pairs of strings")
    time(m, "source_time")
    number(m, "expiry", 0, 2**32 - 1)
    return m


def decode(payload):
    """Takes one envelope apart: its header, and its messages with "payload" as bytes."""
    stream = Stream(io.BytesIO(payload))
    if not stream.skip_line_feeds():
        raise Malformed("it is empty")
    h, _, objects = next_envelope(stream)
    if not stream.only_blanks():
        raise Malformed("something is behind it")
    return h, objects


def print_all(f):
    stream = Stream(f)
    found = False
    while stream.skip_line_feeds():
        found = True
        _, lines, _ = next_envelope(stream)
        sys.stdout.buffer.write(b"".join(line + b"\n" for line in lines))
        sys.stdout.buffer.flush()
    if not found:
        raise Malformed("it is empty: want the payload of a batch")


def main(names):
    if any(n in ("-h", "--help") for n in names):
        print(__doc__.strip())
        return 0
    if any(n.startswith("-") and n != "-" for n in names):
        print("decode_batch: unknown flag; see --help", file=sys.stderr)
        return 2
    code = 0
    for name in names or ["-"]:
        try:
            if name == "-":
                print_all(sys.stdin.buffer)
            else:
                with open(name, "rb") as f:
                    print_all(f)
        except NoZstd as e:
            print("decode_batch: %s: %s" % (name, e), file=sys.stderr)
            return 69
        except (Malformed, OSError) as e:
            print("decode_batch: %s: %s" % (name, e), file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
