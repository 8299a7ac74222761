import http.server
import io
import os
import struct
import subprocess
import sys
import threading
import time

import numpy
import pytest
from PIL import Image

from xpcap.data.images import LONGEST_SIDE, image_from_url, in_rgb, open_picture
from xpcap.errors import DataError


def png(size=(4, 3)):
    file = io.BytesIO()
    Image.fromarray(numpy.arange(size[0] * size[1] * 3, dtype=numpy.uint8).reshape(*size, 3)).save(
        file, "PNG"
    )
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(1)
            return
        elsewhere = {"/away": "/png", "/file": "file:///etc/passwd", "/ftp": "ftp://localhost/x"}
        if self.path in elsewhere:
            self.send_response(302)
            self.send_header("Location", elsewhere[self.path])
            self.end_headers()
            return
        body = {"/png": png(), "/text": b"hello", "/large": b"x" * 5000}.get(self.path)
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("path", ["/png", "/away"])
def test_an_image_is_fetched(server, path):
    expected = numpy.arange(36, dtype=numpy.uint8).reshape(4, 3, 3)
    numpy.testing.assert_array_equal(image_from_url(server + path), expected)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/text", "cannot be opened as an image"),
        ("/none", "Not Found|404"),
        ("/large", "larger than 1000 bytes"),
        ("/file", "'file:///etc/passwd' is not allowed"),
        ("/ftp", "ftp://localhost/x is not an http or https address"),
        ("/slow", "timed out"),
    ],
)
def test_failed_fetches_are_one_line(server, path, message):
    with pytest.raises(DataError, match=message) as caught:
        image_from_url(server + path, timeout=0.3, max_bytes=1000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://localhost/a.png", "a.png", ""])
def test_only_the_web_is_asked(url):
    with pytest.raises(DataError, match="is not an http or https address"):
        image_from_url(url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x.png", "http://localhost:1/a b", "http://[::1", "http://"]
)
def test_nobody_answers(url):
    with pytest.raises(DataError, match="cannot fetch http://") as caught:
        image_from_url(url, timeout=1)
    assert "\n" not in str(caught.value)


def test_an_image_of_too_many_rows_is_refused_before_it_is_decoded(tmp_path):
    """They are few pixels, but each row takes time."""
    path = tmp_path / "thin.png"
    Image.new("1", (1, LONGEST_SIDE)).save(path)
    assert open_picture(path).size == (1, LONGEST_SIDE)
    Image.new("1", (1, LONGEST_SIDE + 1)).save(path)
    with pytest.raises(DataError, match="it has 65536 pixels on a side; expected at most 65535"):
        open_picture(path)


def filled(mode, *levels, palette=None):
    """An image of one colour, larger than a tile on one side."""
    image = Image.new(mode, (1030, 2), levels if len(levels) > 1 else levels[0])
    if palette:
        image.putpalette([0, 0, 0, *palette])
    return image


MODES = {
    "1": (filled("1", 1), (255, 255, 255)),
    "L": (filled("L", 77), (77, 77, 77)),
    "LA": (filled("LA", 100, 51), (224, 224, 224)),  # a fifth of 100 on white
    "La": (filled("La", 20, 51), (224, 224, 224)),  # premultiplied
    "P": (filled("P", 1, palette=(12, 34, 56)), (12, 34, 56)),
    "PA": (filled("PA", 1, 0, palette=(12, 34, 56)), (255, 255, 255)),
    "RGB": (filled("RGB", 12, 34, 56), (12, 34, 56)),
    "RGBX": (filled("RGBX", 12, 34, 56, 0), (12, 34, 56)),
    "RGBA": (filled("RGBA", 100, 50, 0, 51), (224, 214, 204)),
    "RGBa": (filled("RGBa", 20, 10, 0, 51), (224, 214, 204)),
    "CMYK": (filled("CMYK", 255, 0, 0, 0), (0, 255, 255)),
    "YCbCr": (filled("YCbCr", 76, 85, 255), (254, 0, 0)),
    "HSV": (filled("HSV", 85, 255, 200), (0, 200, 0)),
    "LAB": (filled("LAB", 128, 200, 128), (222, 34, 122)),  # L* 50, a* 72, b* 0
    "I;16": (filled("I;16", 100 * 257), (100, 100, 100)),
    "I;16B": (filled("I;16B", 100 * 257), (100, 100, 100)),
    "I;16L": (filled("I;16L", 100 * 257), (100, 100, 100)),
    "I;16N": (filled("I;16N", 100 * 257), (100, 100, 100)),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_become_rgb(mode):
    image, expected = MODES[mode]
    found = in_rgb(image)
    assert (found.mode, found.size) == ("RGB", image.size)
    pixels = numpy.asarray(found, int)
    assert (abs(pixels - expected) <= 1).all(), pixels[0, 0]


@pytest.mark.parametrize(
    ("mode", "value", "kind"),
    [
        ("I", 200, "32-bit or signed integers"),
        ("I", 70_000, "32-bit or signed integers"),
        ("F", 0.5, "32-bit floats"),
        ("F", 200, "32-bit floats"),
    ],
)
def test_32_bits_are_refused(tmp_path, mode, value, kind):
    """Nothing says which of their values are black and white."""
    Image.new(mode, (4, 3), value).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=rf"a\.tiff cannot .*: its pixels are {kind}, of unknown"):
        open_picture(tmp_path / "a.tiff")


def test_16_bits_of_a_pgm_are_scaled_by_its_maximum(tmp_path):
    """Pillow has them in 32 bits."""
    (tmp_path / "a.pgm").write_bytes(b"P5 1 2 1000\n" + struct.pack(">2H", 1000, 500))
    assert numpy.asarray(open_picture(tmp_path / "a.pgm"))[:, 0, 0].tolist() == [255, 127]


def test_a_transparent_level_of_16_bits_is_white(tmp_path):
    image = Image.fromarray(numpy.array([[100 * 257, 100 * 257 + 1]], numpy.uint16))
    image.save(tmp_path / "a.png", transparency=100 * 257)
    assert numpy.asarray(open_picture(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 100]


def test_a_premultiplied_tiff(tmp_path):
    """Its mode is La, which Pillow can convert to nothing but LA."""
    Image.new("LA", (4, 3), (20, 51)).save(tmp_path / "a.tiff")
    content = (tmp_path / "a.tiff").read_bytes()
    straight, premultiplied = (struct.pack("<HHIHH", 338, 3, 1, k, 0) for k in (2, 1))
    assert straight in content
    (tmp_path / "a.tiff").write_bytes(content.replace(straight, premultiplied))
    assert open_picture(tmp_path / "a.tiff").getpixel((0, 0)) == (224, 224, 224)


@pytest.mark.parametrize(
    ("mode", "tag", "value", "other"),
    [("I;16", 258, 16, 12), ("L", 339, 1, 2), ("I;16", 262, 1, 0)],
    ids=["12 bits", "signed", "white is zero"],
)
def test_a_tiff_that_pillow_would_read_as_other_levels_is_refused(
    tmp_path, mode, tag, value, other
):
    Image.new(mode, (4, 3), 200).save(tmp_path / "a.tiff", tiffinfo={339: 1})
    content = (tmp_path / "a.tiff").read_bytes()
    saved, changed = (struct.pack("<HHIHH", tag, 3, 1, k, 0) for k in (value, other))
    assert saved in content
    (tmp_path / "a.tiff").write_bytes(content.replace(saved, changed))
    with pytest.raises(DataError, match="expected unsigned 8 or 16 bits with 0 for black"):
        open_picture(tmp_path / "a.tiff")


def box(brand):
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand + bytes(99)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.jpg cannot be opened as an image: it is empty"),
        (box(b"heic"), r"HEIC format; convert it to JPEG first, .*: magick a\.heic a\.jpg"),
        (box(b"mif1"), "HEIC"),
        (box(b"avif"), r"AVIF format; .* magick a\.avif a\.jpg"),
        (box(b"isom"), "its format is unknown; expected one of JPEG, PNG"),  # a video
        (b"text", "its format is unknown; expected one of JPEG, PNG"),
    ],
)
def test_what_is_no_image_is_refused_by_what_it_is(tmp_path, content, message):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_picture(tmp_path / "a.jpg")


def test_pillows_logs_are_not_printed(tmp_path):
    """In a process of its own: pytest shows what is logged in this one."""
    path = tmp_path / "odd.tiff"
    Image.new("RGB", (4, 3)).save(path)
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<HHII", 277, 3, 1, 3))  # samples per pixel
    content[place + 8 : place + 10] = struct.pack("<H", 2048)
    path.write_bytes(content)
    code = (
        "import pathlib\nfrom xpcap.data.images import open_picture\n"
        "open_picture(pathlib.Path('odd.tiff'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "More samples per pixel" not in done.stderr
    assert "DataError" in done.stderr
