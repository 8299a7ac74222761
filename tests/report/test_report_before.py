"""The report of a run made with --from: its captions before and after, and what has changed."""

import html
import json
import re
import shutil

import pytest
from browser import Browser, needs_browser
from click.testing import CliRunner

from xpcap.cli import main
from xpcap.decoding import Beam
from xpcap.report import gather
from xpcap.runs import open_run


def run_xpcap(*words):
    result = CliRunner().invoke(main, [str(word) for word in (*words, "--device", "cpu")])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def after(trained, tmp_path_factory):
    """A run that goes on from the run `one`, and its report."""
    folder = tmp_path_factory.mktemp("before") / "runs"
    shutil.copytree(trained, folder)
    how = ["--stage", "self-critical", "--samples", 2, "--epochs", 2, "--lr", 0.01]
    run_xpcap("train", "--from", folder / "one", "--out", folder / "after", *how)
    run_xpcap("report", folder / "after", "--beam", 2)
    return folder / "after"


@pytest.fixture
def page(after):
    return after / "report.html"


def captions_of(run, file):
    """Return the captions of a run by image, with their CIDEr-D, and all metrics."""
    scores = json.loads(run_xpcap("evaluate", run, "--beam", 2, "--json", "--images", file))
    images = map(json.loads, file.read_text().splitlines())
    by_image = {f"Image {image['id']}": (image["caption"], image["CIDEr-D"]) for image in images}
    return by_image, scores


def test_each_caption_is_shown_with_the_one_before(after, page, tmp_path):
    text = page.read_text()
    found = (captions_of(run, tmp_path / run.name) for run in (after.parent / "one", after))
    (before, scores), (now, new_scores) = found
    assert before != now
    cards = re.findall(r"<h[34]>(Image \d+)</h[34]>(.*?)</article>", text, re.DOTALL)
    assert {name for name, _ in cards} == before.keys()
    for name, card in cards:
        shown = re.findall(r"<dt>(before|after): CIDEr-D ([\d.]+)</dt><dd>(.*?)</dd>", card)
        for (when, value, caption), (expected, score) in zip(
            shown, (before[name], now[name]), strict=True
        ):
            assert (html.unescape(caption), value) == (expected, f"{score:.2f}"), when
    table = text[text.index('<table class="changes">') :].partition("</table>")[0]
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(<td class="number">.*?)</tr>', table))
    for metric in ("CIDEr-D", "BLEU-4"):
        cells = re.findall(r">([^<]+)<", rows[metric])
        assert cells == [f"{of[metric]:.4f}" for of in (scores, new_scores)] + ["–"]
    lengths = [
        sum(len(caption.split()) for caption, _ in of.values()) / len(of) for of in (before, now)
    ]
    cells = re.findall(r">([^<]+)<", rows["words per caption, mean"])
    assert cells[:2] == [f"{length:.2f}" for length in lengths]
    used = [len({w for caption, _ in of.values() for w in caption.split()}) for of in (before, now)]
    assert re.findall(r">([^<]+)<", rows["different words"]) == [*map(str, used), "–"]


def test_the_most_changed_images_are_among_those_listed(after):
    """And the best are those of the run itself."""
    some, every = (gather([open_run(after, "cpu")], "val", Beam(2), count=n) for n in (9, 12))
    known = {entry.name: entry.captions[0] for entry in every.entries}
    for entry in some.entries:
        assert entry.captions[0].before == known[entry.name].before
    changes = {name: abs(one.value - one.before[1]) for name, one in known.items()}
    listed = [some.entries[k].name for k in some.different]
    assert [changes[name] for name in listed] == sorted(changes.values())[::-1][:3]
    assert changes[listed[2]] > 0
    best = [some.entries[k].captions[0].value for k in some.best]
    assert best == sorted((one.value for one in known.values()), reverse=True)[:3]


def test_figures_of_training_are_drawn_and_explained(page):
    text = page.read_text()
    for phrase in ("Mean reward of the captions drawn", "Share of captions in which two or more"):
        assert f"<figcaption>{phrase}" in text
    assert "has as its loss the entropy of the captions drawn" in text
    assert "reward CIDEr-D, samples 2, baseline mean" in text


def test_without_the_run_before_the_report_says_so(after, tmp_path):
    moved = (after.parent / "one").rename(after.parent / "elsewhere")
    run_xpcap("report", after, "--out", tmp_path / "report.html")
    moved.rename(after.parent / "one")
    text = (tmp_path / "report.html").read_text()
    assert "Training started from one, whose captions cannot be shown: " in text
    assert f"{after.parent}/one/best.safetensors is not a run" in text
    assert "<dt>before" not in text
    assert "Most changed" not in text


def test_reports_of_other_runs_are_as_they_were(after, tmp_path):
    run_xpcap("report", after.parent / "one", "--out", tmp_path / "report.html")
    shown = (tmp_path / "report.html").read_text().partition("</style>")[2]
    for words in ("before:", "Before and after", "Most changed", "drawn", "baseline", "entropy"):
        assert words not in shown


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(page, tmp_path, theme):
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(page, 390, theme=theme)
        assert browser.run("document.documentElement.scrollWidth") == 390
        boxes = browser.run(
            "[...document.querySelector('.change').children]"
            ".map(div => div.getBoundingClientRect()).map(r => [r.left, r.right, r.top])"
        )
        (left, middle, top), (beside, right, other) = boxes
        assert 0 < left < middle <= beside < right < 390
        assert top == other
        assert not browser.complaints
    finally:
        browser.close()
