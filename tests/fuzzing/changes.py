"""Valid files, cut, flipped and rewritten: bytes, JSON, and the header of safetensors.

Each strategy takes the bytes of a valid file, and draws the bytes of others.
"""

import copy
import functools
import json
import struct
import zlib

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st


def generated(count):
    """Hypothesis' settings for so many cases that are drawn and not remembered."""
    return settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066 \r\n\x7f\x00"
TOKENS = [
    token.encode("utf-8", "surrogatepass")
    for token in (
        ESCAPES, "\n", ",", '"', "'", "\\", "{}", "[]", "null", "-1", "NaN", "1e999", "\ufeff",
        "\ud800", '"\\ud800"', "[" * 2000, '{"a":' * 2000, "9" * 400, "9" * 5000, "A" * 70000,
        "../../../etc/passwd", "/dev/zero", "<script>alert(1)</script>", "<NULL>", " ",
    )
] + [b"\xff\xfe", b"\x80", b"PK\x05\x06", b"\x89HDF\r\n\x1a\n"]  # fmt: skip
NUMBERS = [0, 1, 2, 3] + [
    number % 2**64
    for k in (7, 8, 15, 16, 24, 31, 32, 40, 53, 63, 64)
    for number in (2**k, 2**k - 1, -(2**k))
]
VALUES = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**53 + 1, 2**63, 2**64, 10**400, -(10**400), 0.5, -0.0,
    1e308, 5e-324, float("nan"), float("inf"), float("-inf"), "", " ", "a b", "<NULL>", "<END>",
    ESCAPES, "\ud800", "\0", "A" * 70000, "../../../etc/passwd", "/dev/zero", "nan", "float64",
    "O", "javascript:alert(1)", [], {}, [[]], [None], [1, "a"], {"a": 1}, ["a"] * 5000,
    {ESCAPES: ESCAPES}, [{}] * 300, list(range(2000)),
    *(functools.reduce(lambda inner, _: [inner], range(depth), []) for depth in (300, 900, 960)),
]  # fmt: skip


def one_or_more(change, most=4):
    return st.lists(change, min_size=1, max_size=most)


def flipped(valid):
    """Cut, flip, overwrite, move, remove and insert bytes."""
    place = st.integers(0, max(0, len(valid) - 1))
    length = st.sampled_from([1, 2, 4, 8, 16, 64, 512, 4096])
    width = st.sampled_from(["<B", "<H", "<I", "<Q", ">H", ">I", ">Q"])
    change = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("byte"), place, st.integers(0, 255)),
        st.tuples(st.just("number"), place, st.sampled_from(NUMBERS), width),
        st.tuples(st.just("copy"), place, place, length),
        st.tuples(st.just("remove"), place, length),
        st.tuples(st.just("insert"), place, st.sampled_from(TOKENS)),
        st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("cut"), place),
    )
    return one_or_more(change, 6).map(lambda changes: _flip(valid, changes))


def _flip(valid, changes):
    content = bytearray(valid)
    for change in changes:
        match change:
            case "flip", place, bit if place < len(content):
                content[place] ^= 1 << bit
            case "byte", place, value if place < len(content):
                content[place] = value
            case "number", place, number, width:
                size = struct.calcsize(width)
                content[place : place + size] = struct.pack(width, number % 256**size)
            case "copy", place, source, length:
                content[place : place + length] = content[source : source + length]
            case "remove", place, length:
                del content[place : place + length]
            case "insert", place, new:
                content[place:place] = new
            case "cut", place:
                del content[place:]
    return bytes(content)


def rewritten(value):
    """Change values inside a JSON document."""
    change = st.tuples(
        st.lists(st.integers(0, 10**6), min_size=1, max_size=6),
        st.sampled_from(["value", "value", "remove", "twice", "name"]),
        st.sampled_from(VALUES),
    )
    return one_or_more(change, 3).map(lambda changes: _rewrite(value, changes))


def _rewrite(value, changes):
    root = [copy.deepcopy(value)]
    for path, kind, new in changes:
        holder, key, new = root, 0, copy.deepcopy(new)
        for step in path:
            inner = holder[key]
            if not isinstance(inner, (list, dict)) or not inner:
                break
            holder = inner
            key = step % len(inner) if isinstance(inner, list) else list(inner)[step % len(inner)]
        if holder is root or kind == "value":
            holder[key] = new
        elif kind == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[str(new)] = holder.pop(key)
    return root[0]


def as_text(value):
    return json.dumps(value).encode()


def json_file(valid):
    """Rewrite a JSON file, by its values or by its bytes."""
    return rewritten(json.loads(valid)).map(as_text) | flipped(valid)


def json_lines(valid):
    """Rewrite one line of a file of JSON lines, or its bytes."""
    lines = valid.splitlines()

    def line(k):
        return rewritten(json.loads(lines[k])).map(
            lambda value: b"\n".join([*lines[:k], as_text(value), *lines[k + 1 :], b""])
        )

    return st.integers(0, len(lines) - 1).flatmap(line) | flipped(valid)


def safetensors(valid, key="xpcap"):
    """Rewrite the header of a file of safetensors, the JSON inside it, or its bytes."""
    size = int.from_bytes(valid[:8], "little")
    header, data = json.loads(valid[8 : 8 + size]), valid[8 + size :]

    def whole(header, length=None):
        text = as_text(header)
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    ways = [
        rewritten(header).map(whole),
        st.sampled_from(NUMBERS).map(lambda length: whole(header, length)),
        flipped(valid),
    ]
    if "__metadata__" in header:
        said = json.loads(header["__metadata__"][key])
        ways.append(
            rewritten(said).map(
                lambda value: whole({**header, "__metadata__": {key: json.dumps(value)}})
            )
        )
    return st.one_of(ways)


@functools.cache
def deflated(size, wbits):
    """Compress so many zeros, to a thousandth; return the bytes and their checksum.

    A piece that is flushed is compressed as the one before: it need be done once only.
    """
    deflater, piece = zlib.compressobj(9, wbits=-zlib.MAX_WBITS), bytes(2**20)
    again = deflater.compress(piece) + deflater.flush(zlib.Z_FULL_FLUSH)
    content = again * (size >> 20) + deflater.flush()
    if wbits < 0:
        checksum = 0
        for _ in range(size >> 20):
            checksum = zlib.crc32(piece, checksum)
        return content, checksum
    checksum = (size % 65521) << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + content + checksum.to_bytes(4, "big"), checksum
