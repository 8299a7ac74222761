import base64
import hashlib
import html
import itertools
import json
import re
import sys
from html.parser import HTMLParser

import numpy
import pytest
from browser import Browser, needs_browser
from click.testing import CliRunner
from commands import one_line
from own import own
from runs import TRANSFORMER, begin
from tiny import make_tiny

from xpcap.cli import main
from xpcap.decoding import Beam
from xpcap.evaluation import METRICS
from xpcap.report import gather
from xpcap.runs import open_run


class Page(HTMLParser):
    """The tags of a page, in order, and the text of each kind of element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(call, runs, tmp_path):
    result = call("report", *runs, "--beam", "3", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one/report.html\n"
    return tmp_path / "one" / "report.html"


def test_page_is_self_contained_and_valid(page):
    text = page.read_text()
    found = Page(text)
    names = [tag for tag, _ in found.tags]
    assert not {"link", "iframe", "object", "embed", "base"} & set(names)
    assert all("src" not in script for script in found.all("script"))
    assert "url(" not in re.sub(r'clip-path="url\(#\w+\)"', "", text)
    assert "@import" not in text
    for image in found.all("img"):
        assert image["alt"]
        assert image["src"].startswith("data:") or image["loading"] == "lazy"
    assert found.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in found.all("meta"))
    levels = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) > 9
    assert len(ids) == len(set(ids))
    assert all(word["type"] == "button" for word in found.all("button"))


def test_only_the_pages_own_script_may_run(page):
    text = page.read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_captions_and_run_names_are_escaped(page):
    text = page.read_text()
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<b>" not in text
    assert any("<b>two" in part for part in Page(text).texts["th"])


def test_words_urls_and_data_set_names_are_escaped(call, tmp_path):
    """In attributes and plots too, where matplotlib would take dollars for mathematics."""
    data = make_tiny(tmp_path / "tiny")
    word, name = '"><img/src=x/onerror=alert(2)>', "$\\frac{<svg onload=alert(3)>&"
    vocabulary = (data / "coco2014_vocab.json").read_text()
    assert vocabulary.count('"a"') == 2
    (data / "coco2014_vocab.json").write_text(vocabulary.replace('"a"', json.dumps(word)))
    (data / "val2014_urls.txt").write_text(
        'javascript:alert(4)\nhttps://localhost/"><script>alert(5)</script>\n' * 6
    )
    description = json.loads((data / "dataset.json").read_text())
    described = {**description, "name": name, "features": word}
    (data / "dataset.json").write_text(json.dumps(described))
    words = ["--data", data, "--out", name, "--epochs", 2, "--hidden", 12, "--wordvec", 6]
    made = call("train", *words, "--batch-size", 10, "--device", "cpu")
    assert made.exit_code == 0, made.output
    result = call("report", name, "--device", "cpu")
    assert result.exit_code == 0, result.output
    text = (tmp_path / name / "report.html").read_text()
    found = Page(text)
    assert word in " ".join(itertools.chain(*found.texts.values()))
    assert not [tag for tag, _ in found.tags if tag == "script"][1:]
    for tag, attributes in found.tags:
        assert not [key for key in attributes if key.startswith("on")], (tag, attributes)
        for key in ("href", "src", "xlink:href"):
            where = attributes.get(key) or "#"
            assert where.startswith(("data:image/", "https://localhost/", "#")), (tag, where)


def test_metrics_are_those_of_evaluate(call, runs, page):
    text = page.read_text()
    row = r'<tr class="explained"><th scope="row">(.*?)</th>(.*?)</tr>\s*<tr .*?>.*?>(.+?)</td>'
    rows = re.findall(row, text)
    shown = {name: re.findall(r">([-+.\d]+)<", cells) for name, cells, _ in rows}
    assert {name: html.unescape(phrase) for name, _, phrase in rows} == {
        name: METRICS[name] for name in shown
    }
    for k, run in enumerate(runs):
        result = call("evaluate", run, "--beam", "3", "--json", "--device", "cpu")
        expected = json.loads(result.stdout)
        assert {"BLEU-4", "CIDEr-D", "perplexity"} <= shown.keys() & expected.keys()
        for name in shown:
            assert shown[name][k] == f"{expected[name]:.4f}"
        assert set(shown) == set(expected) - {"images", "decoding"}
    for first, second, difference in shown.values():
        assert float(difference) == pytest.approx(float(second) - float(first), abs=2e-4)


def test_captions_come_before_metrics_and_curves(page):
    sections = [section["id"] for section in Page(page.read_text()).all("section")]
    assert sections == ["captions", "browse", "metrics", "training", "inside"]


def test_why_there_is_no_attribution_is_said(page):
    text = page.read_text()
    for name in ("one", "&lt;b&gt;two"):
        assert f"No attribution for {name}: features by another program cannot be" in text
    assert "How captions are sorted</summary>" in text


def test_page_of_own_images(call, tmp_path):
    """With file names, and an attribution to 8 x 8 regions."""
    own(tmp_path, count=20)
    made = call("data", "prepare", "captions.json", "--out", "mine", "--extractor", "filter-bank")
    assert made.exit_code == 0, made.output
    small = ["--hidden", 4, "--wordvec", 4, "--epochs", 1, "--device", "cpu"]
    assert call("train", "--data", "mine", "--out", "run", *small).exit_code == 0
    result = call("report", "run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "run" / "report.html").read_text()
    assert re.findall(r"<h3>(.*?)</h3>", text)[2:] == ["9.png", "19.png"]
    assert {len(levels) for levels in re.findall(r'data-attribution="(\w*)"', text)} == {64}
    assert "No attribution" not in text


def test_page_of_a_single_run(call, runs, tmp_path):
    result = call("report", "one", "--beam", "2", "--count", "5", "--out", "a/b.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "a" / "b.html").read_text()
    assert not any(word in text for word in ("Most different", "difference</th>", "<b>two"))
    assert "5 of 12 images: the best, the worst and others" in text
    assert len(re.findall(r"<h3>Image", text)) == 5
    assert len(re.findall(r"<h4>Image", text)) == 4  # two best, two worst


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "none is not a run"),
        (["one", "--beam", "0"], "--beam"),
        (["one", "--length-penalty", "x"], "length penalty 'x' is unknown"),
        (["one", "--data", "none"], "none is not a folder"),
        (["one", "other"], "has other images"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_no_page(call, runs, words, message, tmp_path):
    if "other" in words:
        make_tiny(tmp_path / "others", val=7)
        small = ["--hidden", "4", "--wordvec", "4", "--epochs", "1"]
        assert call("train", "--data", "others", "--out", "other", *small).exit_code == 0
    one_line(call("report", *words, "--device", "cpu"), message)
    assert not list(tmp_path.glob("*/report.html"))


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named_before_any_work(call, runs, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    one_line(call("report", "one", "--device", "cpu"), r"xpcap\[report\]")


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@needs_browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1200), ("dark", 390)])
def test_page_in_a_browser_has_no_errors(browser, page, theme, width):
    browser.open(page, width, theme=theme)
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 380) == (theme == "light")
    assert (
        browser.run("document.documentElement.scrollWidth") <= width
    )  # nothing to scroll sideways
    assert not browser.complaints
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]


@needs_browser
def test_search_and_sorting(browser, page):
    browser.open(page)
    shown = "[...document.querySelectorAll('#all .card:not([hidden])')]"
    everything = browser.run(f"{shown}.length")
    assert everything == 12
    browser.run("form.elements.words.value = 'STAR red'; form.dispatchEvent(new Event('input'))")
    texts = browser.run(f"{shown}.map(card => card.textContent)")
    assert 0 < len(texts) < everything
    assert all("star" in text and "red" in text for text in texts)
    assert browser.run("form.querySelector('output').textContent") == f"{len(texts)} of 12"
    browser.run("form.elements.words.value = ''; form.elements.order.value = '1 1'; show()")
    values = browser.run(f"{shown}.map(card => Number(card.dataset.values.split(' ')[1]))")
    assert len(values) == everything
    assert values == sorted(values)
    assert not browser.complaints


@needs_browser
def test_many_images_are_shown_on_request(browser, page):
    browser.open(page)
    assert browser.run("more.hidden")
    browser.run("limit = 5; show()")
    shown = "document.querySelectorAll('#all .card:not([hidden])').length"
    assert browser.run(shown) == 5
    assert browser.run("form.querySelector('output').textContent") == "12 of 12"
    assert browser.run("more.textContent") == "Show all 12"
    browser.run("more.click()")
    assert browser.run(shown) == 12
    assert browser.run("more.hidden")
    assert not browser.complaints


@pytest.fixture(scope="session")
def looked(tmp_path_factory):
    """The page of a run with attention to the 8 x 8 cells of pictures, beside one without."""
    folder = tmp_path_factory.mktemp("looked")
    own(folder, count=20)
    small = ["--data", folder / "grid", "--hidden", 8, "--wordvec", 4, "--epochs", 2]
    prepared = ["--extractor", "filter-bank", "--output", "grid", "--out", folder / "grid"]
    for words in (
        ["data", "prepare", folder / "captions.json", *prepared],
        ["train", "--model", "attention", "--out", folder / "looks", "--select", "CIDEr-D", *small],
        ["train", "--out", folder / "pooled", *small],
        ["report", folder / "looks", folder / "pooled"],
    ):
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    return folder / "looks" / "report.html"


def test_page_of_attention(looked):
    text = looked.read_text()
    found = Page(text)
    captions = [tag for tag in found.all("div") if "run-caption" in tag.get("class", "")]
    kinds = {tag["class"].split()[1]: tag["data-maps"] for tag in captions}
    assert kinds == {"run1": "attention attribution", "run2": "attribution"}
    for kind in kinds["run1"].split():
        levels = re.findall(rf'data-{kind}="(\w*)"', text)
        assert {len(of_word) for of_word in levels} == {64}
    assert re.search(r"strongest at the [a-z ]+, \d+% of the attention", text)
    plots = " ".join(found.texts["figcaption"])
    assert re.search(r"Entropy of attention .* looks [\d.]+ nats, \d+% of the most possible", plots)
    assert "pooled" not in plots[plots.index("Entropy of attention") :].split("Mean norm")[0]
    assert "input" in plots  # gates
    assert "attention, wordvec 4, hidden 8, cell type lstm, scoring additive" in text
    assert "No heat maps" not in text


def test_a_transformer_of_vectors_has_no_attention_to_show(tmp_path):
    begin(make_tiny(tmp_path / "tiny"), tmp_path / "run", epochs=1, **TRANSFORMER)
    found = gather([open_run(tmp_path / "run", "cpu")], "val", Beam(), count=2)
    shown = "transformer, hidden 8, layers 1, heads 2, encoder layers 1, positions learned"
    assert found.runs[0].facts["network"].startswith(shown)
    words = [word for entry in found.entries for word in entry.captions[0].words]
    assert words
    assert not any(word.attention.text for word in words)


def test_page_shows_the_metric_that_selects(looked):
    plots = " ".join(Page(looked.read_text()).texts["figcaption"])
    selects = r"CIDEr-D of greedy validation captions, which selects the best epoch: looks after ep"
    assert re.search(selects + r"och [12], \d\.\d{3}\.", plots)


def test_regions_of_unknown_places_are_said_to_be_so(call, tmp_path):
    data = make_tiny(tmp_path / "tiny", regions=True)
    small = ["--hidden", 8, "--wordvec", 4, "--epochs", 1, "--device", "cpu"]
    made = call("train", "--data", data, "--out", "run", "--model", "attention", *small)
    assert made.exit_code == 0, made.output
    assert call("report", "run", "--device", "cpu").exit_code == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "No heat maps: the places in the image of the 3 regions are unknown" in text
    assert re.search(
        r'data-attention="" data-attention-text="strongest in region [123] of 3, ', text
    )


CHOSEN = (
    "[...document.querySelectorAll('#captions .word')].findIndex(w => w.ariaPressed === 'true')"
)
GLOW = """(() => {
    const canvas = document.querySelector('#captions canvas');
    return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];
})()"""


@needs_browser
def test_a_heat_map_is_as_strong_as_its_levels_and_can_be_switched(browser, looked):
    browser.open(looked)
    browser.run("document.querySelector('#captions .word').click()")
    for kind in ("attention", "attribution"):
        browser.run(f"document.querySelector('#captions [data-map={kind}]').click()")
        levels = browser.run(f"document.querySelector('#captions .word').dataset.{kind}")
        pixels = numpy.array(browser.run(GLOW)).reshape(64, 4)
        strengths = [(ord(letter) - ord("j")) / 9 for letter in levels]
        assert pixels[:, 3] == pytest.approx(0.8 * 255 * numpy.abs(strengths), abs=1)
        strong = numpy.abs(strengths) > 0.5
        bluish = pixels[strong, 2] > pixels[strong, 0]
        assert bluish.tolist() == (numpy.array(strengths)[strong] < 0).tolist()
        told = browser.run("document.querySelector('#captions .described').textContent")
        assert ("of the attention" in told) == (kind == "attention")
        assert (
            browser.run("document.querySelector('#captions .legend.shown').textContent")
            == ({"attention": "weakstrong", "attribution": "againstfor"}[kind])
        )
        pressed = browser.run("document.querySelectorAll('.map[aria-pressed=true]').length")
        assert pressed == browser.run(f"document.querySelectorAll('[data-map={kind}]').length")
    shown = "getComputedStyle(document.querySelector('#captions canvas')).display"
    assert browser.run(shown) == "block"
    assert browser.run("document.querySelector('#captions canvas').clientWidth") > 200
    browser.run("document.querySelector('#captions .word').click()")
    assert browser.run(shown) == "none"
    browser.run("document.querySelector('#captions .picture img').remove()")
    browser.run("document.querySelector('#captions .word').click()")
    assert not browser.run("document.querySelectorAll('#captions .legend.shown').length")
    assert not [text for text in browser.complaints if "willReadFrequently" not in text]


@pytest.fixture(scope="session")
def layered(looked):
    """The page of a Transformer on the same pictures."""
    folder = looked.parent.parent
    shape = ["--hidden", 8, "--layers", 2, "--heads", 2, "--epochs", 1, "--data", folder / "grid"]
    for words in (
        ["train", "--model", "transformer", "--out", folder / "tf", *shape],
        ["report", folder / "tf"],
    ):
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    return folder / "tf" / "report.html"


def test_page_of_a_transformer(layered):
    """Each head's attention is in the best and the worst captions alone."""
    text = layered.read_text()
    found = Page(text)
    assert all(
        {len(levels) for levels in tag["data-heads"].split()} == {64}
        and len(tag["data-heads"].split()) == 2 * (1 + 2)
        for tag in found.all("button")
        if "data-heads" in tag
    )
    captions = [tag for tag in found.all("div") if "run-caption" in tag.get("class", "")]
    assert {tag["data-maps"] for tag in captions} == {"attention attribution"}
    first, browse = text[: text.index('id="browse"')], text[text.index('id="browse"') :]
    assert first.count("data-heads") > first.count("data-among") == first.count("<article") > 0
    assert not re.search("data-(heads|among)", browse.partition("<script>")[0])
    plots = " ".join(found.texts["figcaption"])
    assert "Norms of gradients by layer" in plots
    assert "saturated" not in text
    assert "transformer, hidden 8, layers 2, heads 2" in text


@needs_browser
def test_layer_and_head_are_chosen_for_all_captions(browser, layered):
    browser.open(layered, 390)
    card = "document.querySelector('#captions .card')"
    browser.run(
        f"{card}.querySelectorAll('.word')[0].click(); {card}.querySelector('.among').open = true"
    )
    heads = browser.run(f"{card}.querySelector('.word').dataset.heads").split()
    among = browser.run(f"{card}.querySelector('.run-caption').dataset.among").split()
    count = browser.run(f"{card}.querySelectorAll('.word').length")
    for layer, head, place in (("2", "mean", 3), ("1", "mean", 0), ("1", "2", 2)):
        for name, value in (("layer", layer), ("head", head)):
            browser.run(
                f"(([select]) => {{ select.value = '{value}';"
                " select.dispatchEvent(new Event('change', {bubbles: true})); })"
                f"([...document.querySelectorAll('#captions select[name={name}]')].slice(-1))"
            )
        assert browser.run(f"{card}.querySelector('select[name=head]').value") == head
        strengths = [(ord(letter) - ord("j")) / 9 for letter in heads[place]]
        assert numpy.array(browser.run(GLOW)).reshape(64, 4)[:, 3] == pytest.approx(
            0.8 * 255 * numpy.array(strengths), abs=1
        )
        told = browser.run(f"{card}.querySelector('.described').textContent")
        assert (f"attention of layer {layer}, head {head}" in told) == (place != 3)
        cells = browser.run(
            f"[...{card}.querySelectorAll('.among tbody td')]"
            ".map(td => td.style.getPropertyValue('--weight'))"
        )
        assert len(cells) == count * (count + 1) / 2
        weights = [float(cell.rstrip("%")) / 100 for cell in cells]
        assert weights == pytest.approx([(ord(x) - ord("j")) / 9 for x in among[place]])
    assert weights[0] == 1
    assert browser.run("document.documentElement.scrollWidth") == 390
    assert not [text for text in browser.complaints if "willReadFrequently" not in text]


@needs_browser
def test_words_play_one_after_the_other_until_stopped(browser, looked):
    """Timers are called by the test."""
    browser.open(looked)
    browser.run(
        "window.due = []; window.setTimeout = (f) => window.due.push(f); clearTimeout = () => {}"
    )
    button = "document.querySelector('#captions .play')"
    count = browser.run(
        "document.querySelector('#captions .run-caption').querySelectorAll('.word').length"
    )
    browser.run(f"{button}.focus(); {button}.click()")
    for k in range(count):
        assert browser.run(CHOSEN) == k
        assert browser.run(f"{button}.textContent") == "Stop"
        browser.run("window.due.pop()()")
    assert browser.run(f"[{CHOSEN}, {button}.textContent, window.due.length]") == [
        count - 1,
        "Play",
        0,
    ]
    browser.run(f"{button}.click(); {button}.click()")  # begins again, and stops
    assert browser.run(f"[{CHOSEN}, {button}.textContent]") == [0, "Play"]
    assert not browser.complaints


@needs_browser
def test_words_do_not_move_by_themselves_where_motion_is_not_wanted(browser, looked):
    browser.open(looked, reduced_motion=True)
    browser.run("window.due = []; window.setTimeout = (f) => window.due.push(f)")
    captions = "[...document.querySelectorAll('#captions .run-caption')]"
    long = f"{captions}.find((one) => one.querySelectorAll('.word').length > 1)"
    button = f"{long}.querySelector('.play')"
    chosen = f"[...{long}.querySelectorAll('.word')].findIndex(w => w.ariaPressed === 'true')"
    for k in range(2):
        browser.run(f"{button}.click()")
        expected = [k, "Next word", 0]
        assert browser.run(f"[{chosen}, {button}.textContent, window.due.length]") == expected


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_with_heat_maps_is_not_clipped(browser, looked, width):
    browser.open(looked, width)
    browser.run(
        "document.querySelectorAll('.card').forEach((card) => card.querySelector('.word').click())"
    )
    assert browser.run("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('.card, .maps, .legend, .described')]"
    assert browser.run(f"{wide}.filter(part => part.scrollWidth > part.clientWidth).length") == 0
    covered = """[...document.querySelectorAll('.mapped')].every((picture) => {
        const place = (name) => picture.querySelector(name).getBoundingClientRect();
        const places = ['img', 'canvas'].map(place);
        const differ = (side) => Math.abs(places[0][side] - places[1][side]) >= 1;
        return !['left', 'top', 'width', 'height'].some(differ);
    })"""
    assert browser.run(covered)


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_no_column_is_clipped(browser, call, runs, width, tmp_path):
    """With names that are long, with and without a place to break."""
    names = ["a-run-with-a-name-of-many-words-to-be-broken", "x" * 40]
    for run, name in zip(runs, names, strict=True):
        (tmp_path / run).rename(tmp_path / name)
    result = call("report", *names, "--device", "cpu", "--out", "page.html")
    assert result.exit_code == 0, result.output
    browser.open(tmp_path / "page.html", width)
    assert browser.run("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('.wide, .card, form, label')]"
    assert browser.run(f"{wide}.filter(part => part.scrollWidth > part.clientWidth).length") == 0


@needs_browser
def test_a_chosen_word_shows_its_probability(browser, page):
    browser.open(page)
    browser.run("document.querySelector('.word').click()")
    assert browser.run("document.querySelector('.word').getAttribute('aria-pressed')") == "true"
    said = browser.run("document.querySelector('.described').textContent")
    assert re.fullmatch(r"\w+: probability [01]\.\d\d", said)
    browser.run("document.querySelector('.word').click()")
    assert browser.run("document.querySelector('.described').textContent") == ""
