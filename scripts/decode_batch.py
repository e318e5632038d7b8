#!/usr/bin/env python3
"""Prints the messages of Tidegate batch envelopes as JSON lines (docs/envelope.md).

Usage: decode_batch.py [FILE...]     standard input where no FILE is named

Several envelopes may stand one behind the other. Only the standard library is used: plain and gzip envelopes work
everywhere, zstd from Python 3.14 on. Exit codes: 0 fine, 1 something is no envelope, 2 wrong use, 69 zstd is missing here.

As a module: decode(payload) returns the header and the list of messages of one envelope, with their payloads as bytes.
"""

import base64
import json
import sys
import zlib

MAX_BYTES = 16 << 20  # what one envelope may unpack to


class NoZstd(Exception):
    """This Python cannot unpack zstd."""


class Malformed(Exception):
    """The bytes are no batch envelope."""


def unpack(data):
    """Returns the text of the first envelope in data, as bytes, and what is behind it."""
    if data[:4] == b"\x28\xb5\x2f\xfd":
        try:
            from compression import zstd
        except ImportError:
            raise NoZstd(
                "this envelope is packed with zstd, which is in Python's standard library from 3.14 on, and this is "
                + sys.version.split()[0]
                + '; use compress = "gzip" on the gateway, or unpack it with zstd -d first'
            ) from None
        unpacker, failure = zstd.ZstdDecompressor(), zstd.ZstdError
    elif data[:2] == b"\x1f\x8b":
        unpacker, failure = zlib.decompressobj(zlib.MAX_WBITS | 16), zlib.error
    elif data[:5] == b'{"v":':
        return plain(data)
    else:
        raise Malformed("it begins like no batch envelope")
    try:
        text = unpacker.decompress(data, MAX_BYTES + 1)
    except failure as e:
        raise Malformed(str(e)) from None
    if len(text) > MAX_BYTES:
        raise Malformed("it unpacks to more than %d bytes" % MAX_BYTES)
    if not unpacker.eof:
        raise Malformed("it is cut short")
    return text, unpacker.unused_data


def plain(data):
    """Cuts one envelope that is not packed off data: its header says how many lines it has."""
    end = data.find(b"\n") + 1
    for _ in range(header(data[:end])["n"]):
        next_end = data.find(b"\n", end) + 1
        if next_end == 0:
            next_end = len(data)
        if next_end <= end:
            raise Malformed("it is cut short")
        end = next_end
    if end > MAX_BYTES:
        raise Malformed("it has more than %d bytes" % MAX_BYTES)
    return data[:end], data[end:].lstrip(b"\r\n")


def header(line):
    try:
        h = json.loads(line)
    except ValueError as e:
        raise Malformed("the header: %s" % e) from None
    if not isinstance(h, dict) or not isinstance(h.get("n"), int) or h["n"] < 1 or not h.get("gw"):
        raise Malformed("the first line is no header of a batch")
    if h.get("v") != 1:
        raise Malformed("version %r is not known, only 1" % h.get("v"))
    return h


def lines(text):
    """Returns the header and the lines of the messages."""
    all_lines = [line for line in text.split(b"\n") if line.strip()]
    if not all_lines:
        raise Malformed("it is empty")
    h = header(all_lines[0])
    if len(all_lines) != h["n"] + 1:
        raise Malformed("%d messages where the header says %d" % (len(all_lines) - 1, h["n"]))
    return h, all_lines[1:]


def decode(payload):
    """Takes one envelope apart: its header, and its messages with "payload" as bytes."""
    text, rest = unpack(payload)
    if rest.strip():
        raise Malformed("%d bytes behind it" % len(rest))
    h, messages = lines(text)
    out = []
    for line in messages:
        m = json.loads(line)
        if m.get("encoding") == "base64":
            m["payload"] = base64.b64decode(m["payload"], validate=True)
        else:
            m["payload"] = m["payload"].encode()
        out.append(m)
    return h, out


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
                data = sys.stdin.buffer.read()
            else:
                with open(name, "rb") as f:
                    data = f.read()
            while data:
                text, data = unpack(data)
                for line in lines(text)[1]:
                    json.loads(line)  # what is printed is JSON
                    sys.stdout.buffer.write(line + b"\n")
        except NoZstd as e:
            print("decode_batch: %s: %s" % (name, e), file=sys.stderr)
            return 69
        except (Malformed, OSError, ValueError) as e:
            print("decode_batch: %s: %s" % (name, e), file=sys.stderr)
            code = 1
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
