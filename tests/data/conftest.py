import contextlib
import http.server
import threading

import pytest
from archive_server import Site

from xpcap.data import download


@pytest.fixture(scope="module")
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(ConnectionError):  # the client may have heard enough
                self.server.site.answer(self)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def site(server, monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    server.site = Site()
    server.site.address = f"http://127.0.0.1:{server.server_port}/coco_captioning.zip"
    return server.site


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data" / "coco"
