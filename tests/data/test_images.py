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

from xpcap.data.images import LONGEST_SIDE, image_from_url, open_picture
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
