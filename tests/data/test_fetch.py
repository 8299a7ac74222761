import threading
import time

import pytest
from archive_server import (
    ARCHIVE,
    SIZE,
    UNPACKED,
    check_got,
    check_kept,
    check_refused,
    get,
    interrupt_at,
)

from xpcap.data import download
from xpcap.errors import DataError


@pytest.mark.parametrize("tells_length", [True, False])
def test_progress_rises_to_the_end(site, out, tells_length):
    site.tells_length = tells_length
    site.cuts = [30_000, 10_000] if tells_length else []
    calls = []
    get(site, out, lambda *call: calls.append(call))
    check_got(out)
    for what, total in (("downloading", SIZE), ("unpacking", UNPACKED)):
        steps = [(done, of) for doing, done, of in calls if doing == what]
        assert steps == sorted(steps)
        assert steps[-1] == (total, total)
        assert not tells_length or {of for _, of in steps} == {total}
    assert [what for what, *_ in calls] == sorted(what for what, *_ in calls)


@pytest.mark.parametrize(
    "cuts", [[1], [SIZE - 1], [30_000], [20_000, 20_000, 1, 5_000], [1] * 12, [0, 0, 7, 0, 0]]
)
def test_a_cut_download_is_resumed_without_repeating_bytes(site, out, cuts):
    site.cuts = list(cuts)
    get(site, out)
    check_got(out)
    assert sum(site.sent) == SIZE  # no byte twice
    starts = [sum(site.sent[: i + 1]) for i in range(len(cuts))]
    assert site.ranges == [None, *(f"bytes={start}-" if start else None for start in starts)]


def test_a_cut_in_the_headers(site, out):
    site.cuts = [10_000]
    site.instead = [
        lambda request: None,
        lambda request: request.wfile.write(b"HTTP/1.1 2"),
        lambda request: request.wfile.write(b"what?\r\n\r\n"),
    ]
    get(site, out)
    check_got(out)


def test_a_silent_server(site, out, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.25)

    heard = threading.Event()

    def stall(request):
        request.send_response(200)
        request.send_header("Content-Length", str(SIZE))
        request.end_headers()
        request.wfile.write(ARCHIVE[:10_000])
        heard.wait(5)

    site.instead = [lambda request: heard.wait(5), stall]
    begun = time.monotonic()
    get(site, out)
    assert time.monotonic() - begun < 4
    heard.set()
    check_got(out)
    assert site.ranges == [None, None, "bytes=10000-"]


def test_a_server_that_always_cuts(site, out):
    site.cuts = [20_000, 30_000, 0, 0, 0, 0]
    check_refused(
        site, out, "cannot fetch .*: the connection was cut; 50000 bytes are kept", kept=50_000
    )
    assert len(site.ranges) == 2 + len(download.PAUSES)  # tries are counted since the last byte


def test_the_next_call_resumes(site, out):
    site.cuts = [20_000, 0, 0, 0]
    check_refused(site, out, "the connection was cut", kept=20_000)
    get(site, out)
    check_got(out)
    assert sum(site.sent) == SIZE
    assert site.ranges[-1] == "bytes=20000-"


def test_an_interrupted_download_is_resumed(site, out):
    site.cuts = [20_000]
    with pytest.raises(KeyboardInterrupt):
        get(site, out, interrupt_at(lambda what, done: done == 20_000))
    check_kept(out, 20_000)
    get(site, out)
    check_got(out)
    assert site.ranges == [None, "bytes=20000-"]


def test_after_an_interrupted_unpacking_nothing_is_fetched(site, out):
    with pytest.raises(KeyboardInterrupt):
        get(site, out, interrupt_at(lambda what, done: what == "unpacking"))
    check_kept(out, SIZE)
    get(site, out)
    check_got(out)
    assert site.ranges == [None]


def leave_part(site, out, content=ARCHIVE):
    """Leave a part of an archive behind."""
    site.content, site.cuts = content, [20_000, 0, 0, 0]
    with pytest.raises(DataError, match="20000 bytes are kept"):
        get(site, out)
    site.content, site.ranges = ARCHIVE, []


def test_a_part_of_another_file_is_found_out(site, out):
    leave_part(site, out, bytes(SIZE))
    check_refused(site, out, "is damaged.*; it is removed, the next call starts over$")
    get(site, out)
    check_got(out)
    assert site.ranges == ["bytes=20000-", None]


def test_a_wrong_address_does_not_cost_the_part(site, out):
    site.cuts = [20_000, 0, 0, 0]
    check_refused(site, out, "cut; 20000", kept=20_000)
    good, site.address = site.address, "http://127.0.0.1:9/"
    with pytest.raises(DataError, match="cannot fetch"):
        get(site, out)
    site.address = good
    get(site, out)
    check_got(out)
    assert sum(site.sent) == SIZE


def test_a_part_longer_than_the_whole_is_not_resumed(site, out):
    leave_part(site, out)
    out.with_name(".coco.zip.part").write_bytes(bytes(SIZE + 1))
    site.instead = [lambda request: site.reply(request, 416)]
    get(site, out)
    check_got(out)
    assert site.ranges == [f"bytes={SIZE + 1}-", None]


def test_a_server_without_ranges_starts_over(site, out):
    site.knows_ranges = False
    site.cuts = [20_000, 30_000]
    get(site, out)
    check_got(out)
    assert site.sent == [20_000, 30_000, SIZE]


def test_a_server_without_ranges_that_always_cuts(site, out):
    site.knows_ranges = False
    site.cuts = [20_000] * 100
    check_refused(site, out, "the connection was cut", kept=20_000)
    assert len(site.ranges) == 1 + len(download.PAUSES)


def test_an_empty_answer(site, out):
    site.content = b""
    check_refused(site, out, "cannot fetch .*: the connection was cut$")


def test_a_cut_without_content_length(site, out):
    site.tells_length = False
    site.cuts = [20_000]
    check_refused(site, out, "not a whole zip file.*; it is removed, the next call starts over$")


def send_chunks(pieces, end=True):
    def send(request):
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for piece in pieces:
            request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        request.wfile.write(b"0\r\n\r\n" if end else b"ff\r\nhalf of i")

    return send


def test_a_server_that_sends_chunks(site, out):
    site.instead = [
        send_chunks([ARCHIVE[:9_000]], end=False),
        send_chunks([ARCHIVE[:9_000], ARCHIVE[9_000:]]),
    ]
    get(site, out)
    check_got(out)
    assert len(site.ranges) == 2


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (416, {"Content_Range": f"bytes */{SIZE}"}),
        (416, {}),
        (206, {"Content_Range": f"bytes 0-{SIZE - 1}/{SIZE}"}),
        (206, {"Content_Range": f"bytes 19999-{SIZE - 1}/{SIZE}"}),
        (206, {"Content_Range": f"bytes 20000-{SIZE - 1}/*"}),
        (206, {"Content_Range": "what?"}),
        (206, {}),
    ],
)
def test_an_answer_that_does_not_fit_the_part(site, out, status, headers):
    leave_part(site, out)
    site.instead = [lambda request: site.reply(request, status, bytes(SIZE - 20_000), **headers)]
    get(site, out)
    check_got(out)
    assert site.ranges == ["bytes=20000-", None]


def test_a_server_that_sends_a_range_unasked(site, out):
    site.instead = [
        lambda request: site.reply(request, 206, ARCHIVE, Content_Range=f"bytes 5-9/{SIZE}")
    ] * 9
    check_refused(site, out, "cannot fetch .*: the server sends another range")


def test_a_server_that_sends_a_range_in_pieces(site, out):
    def piece(request):
        begin = int(request.headers["Range"][6:-1])
        end = min(begin + 9_000, SIZE)
        value = f"bytes {begin}-{end - 1}/{SIZE}"
        site.reply(request, 206, ARCHIVE[begin:end], Content_Range=value)

    site.cuts = [9_000]
    site.instead = [lambda request: site.reply(request, 200, ARCHIVE)] + [piece] * 99
    get(site, out)
    check_got(out)
    assert sum(site.sent) == SIZE


def test_a_server_that_sends_more_than_it_said(site, out):
    def more(request):
        site.tells_length = False
        value = f"bytes 20000-{SIZE - 1}/{SIZE}"
        site.reply(request, 206, bytes(SIZE), Content_Range=value)

    leave_part(site, out)
    site.instead = [more]
    check_refused(site, out, f"is longer than {SIZE} bytes")


def test_endless_bytes(site, out, monkeypatch):
    def endless(request):
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(bytes(10_000))

    monkeypatch.setattr(download, "LARGEST", 300_000)
    site.instead = [endless]
    check_refused(site, out, "is longer than 300000 bytes")


def test_an_archive_that_is_too_large(site, out, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", SIZE - 1)
    check_refused(site, out, f"is {SIZE} bytes; expected at most {SIZE - 1}")


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_transient_errors_are_retried(site, out, status):
    site.cuts = [20_000, 0, 0]
    site.instead = [lambda request: site.reply(request, 200, ARCHIVE)] + [
        lambda request: site.reply(request, status)
    ] * 2
    get(site, out)
    check_got(out)
    assert site.ranges == [None] + ["bytes=20000-"] * 3


@pytest.mark.parametrize(
    ("status", "message", "tries"),
    [
        (404, "Not Found", 1), (403, "Forbidden", 1), (410, "Gone", 1), (416, "Requested", 1),
        (500, "Internal Server Error", 4), (204, "the server answers 204", 1),
    ],
)  # fmt: skip
def test_a_server_that_refuses(site, out, status, message, tries):
    site.instead = [lambda request: site.reply(request, status)] * 9
    check_refused(site, out, f"cannot fetch http://127.*{message}")
    assert len(site.ranges) == tries
    assert not out.parent.exists()


def test_a_refusal_keeps_the_part(site, out):
    site.cuts = [20_000]
    site.instead = [
        lambda request: site.reply(request, 200, ARCHIVE),
        lambda request: site.reply(request, 404),
    ]
    with pytest.raises(DataError, match="Not Found"):
        get(site, out)
    check_kept(out, 20_000)


def redirect(target):
    return lambda request: request.server.site.reply(request, 302, Location=target)


@pytest.mark.parametrize("target", ["/elsewhere.zip", "http://127.0.0.1:{port}/elsewhere.zip"])
def test_a_redirection_is_followed_with_the_range(site, server, out, target):
    site.cuts = [0, 20_000, 0]  # each redirection takes one
    where = redirect(target.format(port=server.server_port))
    site.instead = [where, lambda request: site.reply(request, 200, ARCHIVE), where]
    get(site, out)
    check_got(out)
    assert site.ranges == [None, None, "bytes=20000-", "bytes=20000-"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x.zip", "data:,x"])
def test_a_redirection_out_of_the_web(site, out, target):
    site.instead = [redirect(target)]
    check_refused(site, out, "cannot fetch http://127.*(is not allowed|not an http or https)")
    assert len(site.ranges) == 1


def test_redirections_without_end(site, out):
    site.instead = [redirect("/again")] * 99
    check_refused(site, out, "cannot fetch .* infinite loop")
    assert len(site.ranges) < 20


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://localhost/a.zip", "a.zip", ""])
def test_only_the_web_is_asked(site, out, url):
    site.address = url
    check_refused(site, out, "is not an http or https address")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x.zip", "http://localhost:1/a b", "http://[::1", "http://"]
)
def test_nobody_answers(site, out, url):
    site.address = url
    check_refused(site, out, "cannot fetch http://")
