"""Pictures whose headers promise more than there is."""

import io
import struct
import zlib

from hypothesis import strategies as st
from PIL import Image

from fuzzing.changes import deflated, flipped

SIDES = [0, 1, 2**8, 2**12, 9000, 2**14, 2**15, 2**16 - 1]
LONG = [2**17, 2**20, 2**24, 2**31 - 1, 2**32 - 1]
_PNG = 8  # bytes before its first chunk


def picture(valid):
    """Rewrite the size in a picture's header, its other parts, or its bytes."""
    ways = [flipped(valid)]
    if valid.startswith(b"\x89PNG"):
        sides, kind = st.sampled_from(SIDES + LONG), st.sampled_from([0, 2, 3, 4, 6, 7])
        header = st.tuples(sides, sides, st.sampled_from([1, 2, 8, 16]), kind, st.integers(0, 1))
        extra = st.sampled_from([b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"tRNS", b"PLTE"])
        swelling = st.sampled_from([2**20, 2**26, 2**30]).map(lambda size: deflated(size, 15)[0])
        ways += [
            header.map(lambda new: _png(new, chunks(valid)[1:])),
            st.builds(lambda new, data: _png(new, [(b"IDAT", data)]), header, swelling),
            st.builds(lambda name, data: _with(valid, (name, b"key\0\0" + data)), extra, swelling),
            st.builds(lambda name, data: _with(valid, (name, data)), extra, st.binary(max_size=40)),
        ]
    if size := _size_of(valid):
        place, how = size
        sides = st.sampled_from(
            [side for side in SIDES + LONG if side < 256 ** struct.calcsize(how)]
        )
        ways.append(
            st.tuples(sides, sides).map(
                lambda new: (
                    valid[:place]
                    + struct.pack(how[0] + 2 * how[1], *new)
                    + valid[place + 2 * struct.calcsize(how) :]
                )
            )
        )
    return st.one_of(ways)


def chunks(valid):
    """Return the chunks of a PNG file: names and data."""
    found, place = [], _PNG
    while place < len(valid):
        size = int.from_bytes(valid[place : place + 4], "big")
        found.append((valid[place + 4 : place + 8], valid[place + 8 : place + 8 + size]))
        place += 12 + size
    return found


def _png(header, others):
    width, height, bits, kind, interlaced = header
    first = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (first, *others)
    )


def _with(valid, chunk):
    first, *others = chunks(valid)
    width, height, *rest = struct.unpack(">IIBBBBB", first[1])
    return _png((width, height, rest[0], rest[1], rest[4]), [chunk, *others])


def _size_of(valid):
    """Return where a file says its width or height, and in which form, two in a row."""
    if valid.startswith(b"GIF8"):
        return 6, "<H"
    if valid.startswith(b"BM"):
        return 18, "<I"
    if valid.startswith(b"\xff\xd8"):
        frame = max(valid.find(b"\xff\xc0"), valid.find(b"\xff\xc2"))
        return frame + 5, ">H"
    return None


def made(kind, mode="RGB", size=(24, 16), **options):
    """Return the bytes of a picture."""
    image = Image.linear_gradient("L").resize(size).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
