import html
import re

import pytest
from browser import Browser, needs_browser
from PIL import Image

from xpcap.errors import DataError
from xpcap.report.contact_sheet import write_contact_sheet

HOSTILE = "<script>alert(1)</script> \"'& \u202e \udc80"


def entry(image, *captions, **more):
    found = [{"caption": caption, "log_prob": -1.5 - k} for k, caption in enumerate(captions)]
    best = captions[0] if captions else None
    return {"image": image, "caption": best, "captions": found, **more}


def opened(address):
    if "gone" in address:
        raise DataError(f"{address} cannot be opened as an image: it is empty")
    return Image.new("RGB", (400, 30 if "wide" in address else 900), "teal")


ENTRIES = [
    entry("wide.jpg", "a cat on a mat"),
    entry("photos/a_name_without_any_space_" + 90 * "x" + ".jpg", "a cat", "the cat " * 30),
    entry("broken.jpg", error="broken.jpg cannot be opened as an image: it is damaged"),
    entry("gone.jpg", "it was there"),
    entry("https://example.org/a.jpg?b=1&c", "on the web", references=["people say so"]),
    entry(HOSTILE, HOSTILE),
]


def sheet(path, entries=ENTRIES, title="Captions by run"):
    write_contact_sheet(path, title, entries, opened)
    return path.read_text(encoding="utf-8")


def test_each_image_has_a_card_in_order(tmp_path):
    cards = sheet(tmp_path / "a.html").split('<figure class="card">')[1:]
    assert len(cards) == len(ENTRIES)
    for card, found in zip(cards[:5], ENTRIES, strict=False):
        assert f'<p class="name">{html.escape(found["image"])}</p>' in card
        for caption in found["captions"]:
            assert caption["caption"] in card
    assert ["<img " in card for card in cards] == [True, True, False, False, False, True]
    assert "-1.50" in cards[1]
    assert "-2.50" in cards[1]
    assert "-1.50" not in cards[0]
    assert '<div class="absent">cannot be opened as an image: it is damaged</div>' in cards[2]
    assert '<div class="absent">cannot be opened as an image: it is empty</div>' in cards[3]
    assert 'href="https://example.org/a.jpg?b=1&amp;c"' in cards[4]
    assert "<li>people say so</li>" in cards[4]


def test_texts_are_escaped_and_no_script_may_run(tmp_path):
    text = sheet(tmp_path / "a.html", title=HOSTILE)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 5  # twice the title; name, caption and alternative text
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert all(address.startswith("data:image/") for address in re.findall(r'src="([^"]*)"', text))


def test_thumbnails_are_made_a_few_at_a_time(tmp_path):
    told = []
    entries = [entry(f"{k}.jpg", f"number {k}") for k in range(70)]
    write_contact_sheet(tmp_path / "a.html", "", entries, opened, lambda *args: told.append(args))
    assert told == [("thumbnails", done, 70) for done in (32, 64, 70)]
    said = re.findall(r"number (\d+)", (tmp_path / "a.html").read_text())
    assert said == [str(k) for k in range(70)]


def test_a_failure_leaves_no_file(tmp_path):
    def fails(address):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_contact_sheet(tmp_path / "a.html", "", ENTRIES, fails)
    assert list(tmp_path.iterdir()) == []


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_clipped_in_a_browser(tmp_path, theme, width):
    sheet(tmp_path / "a.html", title="Captions by runs/" + 90 * "x")
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(tmp_path / "a.html", width, theme=theme)
        paper = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper))) > 380) == (theme == "light")
        assert browser.run("document.documentElement.scrollWidth") <= width
        wider = "[...document.querySelectorAll('body *')].filter(e => e.scrollWidth > e.clientWidth"
        assert browser.run(f"{wider} + 1 && getComputedStyle(e).display != 'inline').length") == 0
        sides = "[...document.images].map(e => e.naturalWidth > 0 && e.complete)"
        assert browser.run(sides) == [True] * 3
        assert not browser.complaints
        address = (tmp_path / "a.html").as_uri()
        assert [url for url in browser.requests if not url.startswith("data:")] == [address]
    finally:
        browser.close()
