from pathlib import Path

import numpy
import pytest
from PIL import Image

from xpcap.data.vocabulary import SPECIAL, Vocabulary
from xpcap.errors import ConfigurationError, DataError
from xpcap.models import AttentionRNN, CaptioningRNN, Transformer
from xpcap.report.attention_figure import attention_figure, figure_paths, not_in_font
from xpcap.runs import Run
from xpcap.runs.attention import Area, Attention, grid_area

WORDS = Vocabulary([*SPECIAL, "red"])
LEFT = numpy.zeros((1, 9))
LEFT[0, 3] = 0.4  # the middle row's first


def yellow(figure):
    """Return where a figure glows, and how strongly: red less blue."""
    pixels = numpy.asarray(figure).astype(int)
    return pixels[..., 0] - pixels[..., 2]


def test_a_tile_glows_where_the_word_looks():
    image = Image.new("RGB", (224, 224), (128, 128, 128))
    weights = numpy.concatenate([LEFT, numpy.full((1, 9), 0.1), LEFT])
    figure = attention_figure(image, Attention(["red", "a", "<END>"], weights), Area())
    glow = yellow(figure)
    first, second, third = (glow[12:236, left : left + 224] for left in (12, 248, 484))
    assert not first.any()  # the image itself
    assert second[112, 37] == second.max() > 90
    assert second[112, 75] == pytest.approx(second.max() / 2, abs=6)  # interpolated
    assert not second[:, 120:].any()
    assert (third > 90).all()
    assert figure.width == 12 + 3 * 236  # none for <END>


def test_only_the_part_that_the_network_saw_glows():
    image = Image.new("RGB", (100, 400), (128, 128, 128))
    area = Area(0, 3 / 8, 1, 5 / 8)
    figure = attention_figure(image, Attention(["red"], numpy.ones((1, 9))), area)
    rows = numpy.flatnonzero((yellow(figure)[12:236] > 60).any(axis=1))
    assert (rows[0], rows[-1]) == (84, 139)


def test_tiles_stand_in_rows_with_their_words_below():
    image = Image.new("RGB", (640, 320), "navy")
    words = ["red"] * 6 + ["incomprehensibilities" * 2]
    figure = attention_figure(image, Attention(words, numpy.ones((7, 4))), Area())
    assert figure.size == (12 + 5 * 236, 12 + 2 * (112 + 30 + 12) + 30)
    dark = numpy.asarray(figure.convert("L")) < 160
    for row in range(2):
        below = dark[12 + 154 * row + 113 :][:26]
        shown = [below[:, 12 + 236 * k :][:, :224].any() for k in range(5)]
        assert shown == ([False] + [True] * 4 if row == 0 else [True] * 3 + [False] * 2)
        between = [below[:, 236 * k + 4 :][:, :4] for k in range(1, 5)]
        assert not numpy.any(between)  # long words are written smaller


@pytest.mark.parametrize("size", [(1000, 2), (2, 1000)])
def test_a_cropped_sliver_has_a_figure(size):
    """The part that the network saw is less than a pixel wide."""
    area = grid_area({"extractor": {"preprocessing": {"size": 224, "shorter_side": 256}}}, size)
    words = ["r\u00e9d", "\u65e5" * 5000]
    figure = attention_figure(Image.new("RGB", size), Attention(words, numpy.ones((2, 4))), area)
    assert figure.size[0] > 3 * 112


def test_characters_that_the_font_lacks():
    assert not_in_font(["a ring", "caf\u65e5", "\u65e5"]) == "\u65e5"


def run_of(family=AttentionRNN, shape=(9, 5), extractor="filter-bank"):
    cell = {} if family is Transformer else {"wordvec_dim": 6, "cell_type": "gru"}
    model = family(WORDS.word_to_idx, 5, hidden_dim=8, **cell, seed=3)
    described = {"name": extractor, "output": "grid"}
    data = {"shape": list(shape), "extractor": extractor and described}
    return Run(Path("run"), {"data": data}, WORDS, model)


def test_figures_have_the_names_of_their_images(tmp_path):
    names = ["a/1.jpg", "b/1.png", "pictures.zip/val/00007.png", "c/A.JPG", "a.b.gif", "x/a.b.gif"]
    found = figure_paths(run_of(), tmp_path / "new", names)
    assert [path.name for path in found] == [
        "1.png", "1-2.png", "00007.png", "A.png", "a.b.png", "a.b-2.png",
    ]  # fmt: skip
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("run", "name", "error", "message"),
    [
        (run_of(CaptioningRNN, (5,)), "a.jpg", ConfigurationError, "has no attention"),
        (run_of(Transformer, (5,)), "a.jpg", ConfigurationError, "has no attention to regions of"),
        (run_of(shape=(8, 5)), "a.jpg", ConfigurationError, "unknown; expected .* square grid"),
        (run_of(extractor=None), "a.jpg", ConfigurationError, "places in the image are unknown"),
        (run_of(), "https://example.org/a.jpg", DataError, "is on the web; expected an image file"),
        (run_of(), "there.jpg", DataError, r"there\.png exists; expected another folder"),
    ],
)
def test_what_cannot_be_drawn_is_refused(run, name, error, message, tmp_path):
    (tmp_path / "there.png").touch()
    with pytest.raises(error, match=message):
        figure_paths(run, tmp_path, [name])


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*file/new: .*file is not a folder"):
        figure_paths(run_of(), tmp_path / "file" / "new", ["a.jpg"])
