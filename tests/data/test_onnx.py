import json
import shutil

import numpy
import pytest
from PIL import Image

onnx = pytest.importorskip("onnx", reason="building networks needs onnx (the extra dev)")
pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra onnx)")

from networks import flat_product, node, saved
from onnx import TensorProto

from xpcap.data.extractors import (
    OnnxExtractor,
    Preprocessing,
    make_extractor,
    open_extractor,
)
from xpcap.errors import ConfigurationError, DataError
from xpcap.runs.run import extractor_of

RNG = numpy.random.default_rng(0)
SMALL = Preprocessing(size=8, shorter_side=8, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))


def pictures(count, size=8):
    pixels = RNG.integers(256, size=(count, size, size, 3)).astype(numpy.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def conv3(x, W, b):
    """Convolution 3 x 3 with padding 1, tap by tap: `(N, C, H, W)`."""
    N, _, height, width = x.shape
    padded = numpy.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = numpy.zeros((N, len(W), height, width))
    for row in range(3):
        for column in range(3):
            window = padded[:, :, row : row + height, column : column + width]
            out += numpy.einsum("nchw,oc->nohw", window, W[:, :, row, column])
    return out + b[:, None, None]


def pool2(x):
    N, C, height, width = x.shape
    return x.reshape(N, C, height // 2, 2, width // 2, 2).max(axis=(3, 5))


def test_a_vgg_shaped_network_against_numpy(tmp_path):
    """Two blocks of convolutions, then fc6 and fc7, each with relu, as VGG-16's."""
    sizes = [(3, 4), (4, 4), (4, 6), (6, 6)]
    weights = {}
    for k, (before, after) in enumerate(sizes):
        weights[f"W{k}"] = RNG.standard_normal((after, before, 3, 3)).astype(numpy.float32) / 4
        weights[f"b{k}"] = RNG.standard_normal(after).astype(numpy.float32) / 4
    weights["fc6"] = RNG.standard_normal((6 * 4 * 4, 10)).astype(numpy.float32) / 8
    weights["fc7"] = RNG.standard_normal((10, 7)).astype(numpy.float32) / 3
    nodes, last = [], "x"
    for k in range(4):
        nodes.append(node("Conv", f"{last} W{k} b{k}", f"c{k}", pads=[1, 1, 1, 1]))
        nodes.append(node("Relu", f"c{k}", f"r{k}"))
        last = f"r{k}"
        if k in (1, 3):
            nodes.append(node("MaxPool", last, f"p{k}", kernel_shape=[2, 2], strides=[2, 2]))
            last = f"p{k}"
    nodes += [
        node("Flatten", last, "flat", axis=1),
        node("MatMul", "flat fc6", "a6"),
        node("Relu", "a6", "h6"),
        node("MatMul", "h6 fc7", "a7"),
        node("Relu", "a7", "h7"),
    ]
    path = saved(
        tmp_path / "vgg.onnx",
        nodes,
        [("x", TensorProto.FLOAT, ("N", 3, 16, 16))],
        [("h7", TensorProto.FLOAT, ("N", 7))],
        weights,
    )
    changes = {"size": 16, "shorter_side": 20}
    extractor = make_extractor("vgg16-fc7", path, changes=changes)
    assert (extractor.name, extractor.shape) == ("vgg16-fc7", (7,))
    images = numpy.stack([extractor.prepare(picture) for picture in pictures(5, 30)])
    x = images.astype(numpy.float64)
    for k in range(4):
        x = numpy.maximum(conv3(x, weights[f"W{k}"], weights[f"b{k}"]), 0)
        x = pool2(x) if k in (1, 3) else x
    h = x.reshape(5, -1)
    for name in ("fc6", "fc7"):
        h = numpy.maximum(h @ weights[name], 0)
    found = extractor(images)
    assert found.dtype == numpy.float32
    numpy.testing.assert_allclose(found, h, rtol=1e-4, atol=1e-5)
    assert (h > 0).any()


@pytest.mark.parametrize("count", [0, 1, 3, 7])
@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_any_number_of_images_in_batches_of_any_size(tmp_path, count, batch):
    W = flat_product(tmp_path / "a.onnx", (batch, 3, 8, 8))
    extractor = OnnxExtractor(tmp_path / "a.onnx", SMALL)
    images = RNG.standard_normal((count, 3, 8, 8), dtype=numpy.float32)
    found = extractor(images)
    assert found.shape == (count, 5)
    numpy.testing.assert_allclose(found, images.reshape(count, 192) @ W, rtol=1e-4, atol=1e-4)


def test_half_precision(tmp_path):
    W = flat_product(tmp_path / "a.onnx", kind=TensorProto.FLOAT16)
    images = RNG.standard_normal((2, 3, 8, 8), dtype=numpy.float32)
    found = OnnxExtractor(tmp_path / "a.onnx", SMALL)(images)
    assert found.dtype == numpy.float32
    numpy.testing.assert_allclose(found, images.reshape(2, -1) @ W.astype(float), atol=0.3)


def test_channels_last(tmp_path):
    W = flat_product(tmp_path / "a.onnx", ("N", 8, 8, 3))
    images = RNG.standard_normal((2, 3, 8, 8), dtype=numpy.float32)
    found = OnnxExtractor(tmp_path / "a.onnx", SMALL)(images)
    wanted = images.transpose(0, 2, 3, 1).reshape(2, -1) @ W
    numpy.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def mean_of_maps(path, outputs):
    """Global average pooling: `(N, 3, 1, 1)` and `(N, 3)`; and the sum of all."""
    shapes = {"mean": ("N", 3, 1, 1), "flat": ("N", 3), "sum": ()}
    nodes = [
        node("GlobalAveragePool", "x", "mean"),
        node("Flatten", "mean", "flat", axis=1),
        node("ReduceSum", "x", "sum", keepdims=0),
    ]
    return saved(
        path,
        nodes,
        [("x", TensorProto.FLOAT, ("N", 3, 8, 8))],
        [(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
    )


def test_pooled_output_and_choice_of_an_output(tmp_path):
    path = mean_of_maps(tmp_path / "a.onnx", ["flat", "mean", "sum"])
    images = RNG.standard_normal((4, 3, 8, 8), dtype=numpy.float32)
    for output in ("mean", "flat"):
        extractor = OnnxExtractor(path, SMALL, output)
        numpy.testing.assert_allclose(extractor(images), images.mean(axis=(2, 3)), atol=1e-6)
    with pytest.raises(DataError, match="has the outputs flat, mean, sum; expected the name of"):
        OnnxExtractor(path, SMALL)
    with pytest.raises(DataError, match="no output 'pool'; expected flat or mean or sum"):
        OnnxExtractor(path, SMALL, "pool")
    with pytest.raises(
        DataError, match=r"'sum' is float32 of shape \(\); expected floating \(1, D"
    ):
        OnnxExtractor(path, SMALL, "sum")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", ["N", 2])
def test_maps_are_features_of_regions_row_by_row(tmp_path, channels_last, batch):
    shape = (batch, 8, 8, 3) if channels_last else (batch, 3, 8, 8)
    cut = {"axes": numpy.array([1, 2, 3]), "first": numpy.array([0, 0, 0])}
    cut["end"] = numpy.array([8, 4, 3] if channels_last else [3, 8, 4])
    nodes = [node("Slice", "x first end axes", "maps")]
    shape_of_maps = (batch, *cut["end"].tolist())
    path = saved(
        tmp_path / "a.onnx",
        nodes,
        [("x", TensorProto.FLOAT, shape)],
        [("maps", TensorProto.FLOAT, shape_of_maps)],
        cut,
    )
    extractor = make_extractor("onnx", path, None, vars(SMALL))
    assert extractor.shape == (32, 3)
    images = RNG.standard_normal((3, 3, 8, 8), dtype=numpy.float32)
    found = extractor(images)
    assert found.dtype == numpy.float32
    numpy.testing.assert_array_equal(found[:, 4 * 5 + 2], images[:, :, 5, 2])
    assert extractor(images[:0]).shape == (0, 32, 3)
    described = extractor.describe()
    assert described.pop("grid") == [8, 4]
    assert open_extractor(described).shape == (32, 3)  # of an older version
    assert open_extractor(described).describe()["grid"] == [8, 4]
    assert extractor_of({"extractor": described}) == extractor_of(
        {"extractor": extractor.describe()}
    )


@pytest.mark.parametrize(("regions", "expected"), [(64, (64, 3)), (1, (192,))])
def test_outputs_of_three_axes_are_features_of_regions(tmp_path, regions, expected):
    sides = (-1, regions, 192 // regions)
    path = saved(
        tmp_path / "a.onnx",
        [node("Reshape", "x sides", "y")],
        [("x", TensorProto.FLOAT, ("N", 3, 8, 8))],
        [("y", TensorProto.FLOAT, ("N", *sides[1:]))],
        {"sides": numpy.array(sides)},
    )
    extractor = OnnxExtractor(path, SMALL)
    assert extractor.shape == expected
    assert "grid" not in extractor.describe()
    images = RNG.standard_normal((2, 3, 8, 8), dtype=numpy.float32)
    numpy.testing.assert_array_equal(extractor(images), images.reshape(2, *expected))


def test_a_description_opens_the_same_network_only(tmp_path):
    path = tmp_path / "a.onnx"
    flat_product(path)
    extractor = OnnxExtractor(path, SMALL, name="clip-vit")
    description = json.loads(json.dumps(extractor.describe()))
    again = open_extractor(description)
    assert again.describe() == extractor.describe()
    picture = pictures(1, 20)[0]
    numpy.testing.assert_array_equal(again.prepare(picture), extractor.prepare(picture))

    moved = path.rename(tmp_path / "b.onnx")
    with pytest.raises(
        DataError, match=r"a\.onnx does not exist; expected the weights of 'clip-vit'"
    ):
        open_extractor(description)
    assert open_extractor(description, moved).shape == (5,)

    flat_product(path)
    with pytest.raises(DataError, match="is another file than the features were computed with"):
        open_extractor(description)
    for change in ({"version": 2}, {"sha256": None}, {"preprocessing": []}):
        with pytest.raises(DataError, match="the features come from"):
            open_extractor(description | change)


def test_weights_beside_the_file_count_too(tmp_path):
    flat_product(tmp_path / "a.onnx")
    before = OnnxExtractor(tmp_path / "a.onnx", SMALL).describe()
    (tmp_path / "a.onnx.data").write_bytes(b"weights")
    with pytest.raises(DataError, match="is another file"):
        open_extractor(before)


def test_weights_in_another_file_take_no_part(tmp_path):
    flat_product(tmp_path / "a.onnx")
    for name, location in (("b.onnx", "else.bin"), ("c.onnx", "c.onnx.data")):
        model = onnx.load(tmp_path / "a.onnx")
        beside = {"save_as_external_data": True, "size_threshold": 0}
        onnx.save(model, tmp_path / name, location=location, **beside)
    with pytest.raises(DataError, match="cannot be opened as ONNX"):
        OnnxExtractor(tmp_path / "b.onnx", SMALL)
    described = OnnxExtractor(tmp_path / "c.onnx", SMALL).describe()
    shutil.copy(tmp_path / "c.onnx.data", tmp_path / "d.onnx.data")
    for location in ("else.bin", str(tmp_path / "else.bin"), "../else.bin", "c.onnx.data"):
        model = onnx.load(tmp_path / "c.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        (tmp_path / "d.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(DataError, match="cannot be opened as ONNX"):
            OnnxExtractor(tmp_path / "d.onnx", SMALL)
    data = bytearray((tmp_path / "c.onnx.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "c.onnx.data").write_bytes(data)
    with pytest.raises(DataError, match="is another file"):
        open_extractor(described)


@pytest.mark.parametrize(
    ("shape", "kind", "found"),
    [
        (("N", 3, 9, 8), TensorProto.FLOAT, r"\['N', 3, 9, 8\]"),
        (("N", 1, 8, 8), TensorProto.FLOAT, r"\['N', 1, 8, 8\]"),
        (("N", 192), TensorProto.FLOAT, r"\['N', 192\]"),
        (("N", 3, 8, 8), TensorProto.UINT8, r"tensor\(uint8\)"),
    ],
)
def test_networks_of_another_input(tmp_path, shape, kind, found):
    saved(
        tmp_path / "a.onnx",
        [node("Identity", "x", "y")],
        [("x", kind, shape)],
        [("y", kind, shape)],
    )
    with pytest.raises(DataError, match=f"takes x .*{found}.*; expected one input of float"):
        OnnxExtractor(tmp_path / "a.onnx", SMALL)


def test_two_inputs(tmp_path):
    value = ("N", 3, 8, 8)
    inputs = [(name, TensorProto.FLOAT, value) for name in "xz"]
    saved(tmp_path / "a.onnx", [node("Add", "x z", "y")], inputs, [("y", TensorProto.FLOAT, value)])
    with pytest.raises(DataError, match="expected one input"):
        OnnxExtractor(tmp_path / "a.onnx", SMALL)


def test_files_that_are_no_network(tmp_path):
    path = tmp_path / "a.onnx"
    with pytest.raises(DataError, match=r"cannot read .*a\.onnx: No such file"):
        OnnxExtractor(path, SMALL)
    for content in (b"", b"hello", bytes(RNG.integers(256, size=1000, dtype=numpy.uint8))):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be opened as ONNX") as caught:
            OnnxExtractor(path, SMALL)
        assert "\n" not in str(caught.value)
    flat_product(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be opened as ONNX"):
        OnnxExtractor(path, SMALL)


def test_a_network_that_fails_when_it_runs(tmp_path):
    """Its reshape fits no batch at all, which only running tells."""
    shape = numpy.array([7, 5], numpy.int64)
    saved(
        tmp_path / "a.onnx",
        [node("Reshape", "x shape", "y")],
        [("x", TensorProto.FLOAT, ("N", 3, 8, 8))],
        [("y", TensorProto.FLOAT, (7, 5))],
        {"shape": shape},
    )
    with pytest.raises(DataError, match=r"a\.onnx cannot be run") as caught:
        OnnxExtractor(tmp_path / "a.onnx", SMALL)
    assert "\n" not in str(caught.value)


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    flat_product(tmp_path / "a.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'xpcap\[onnx\]'"):
        OnnxExtractor(tmp_path / "a.onnx", SMALL)


def test_choosing_an_extractor(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"'vgg' is unknown; expected one of .*filter-bank, v"
    ):
        make_extractor("vgg")
    with pytest.raises(ConfigurationError, match="'onnx' needs the weights of its network"):
        make_extractor("onnx")
    with pytest.raises(ConfigurationError, match="'filter-bank' has no weights"):
        make_extractor("filter-bank", tmp_path / "a.onnx")
    flat_product(tmp_path / "a.onnx")
    changes = {"size": 8, "shorter_side": None}
    assert make_extractor("onnx", tmp_path / "a.onnx", "y", changes).shape == (5,)
    with pytest.raises(DataError, match="takes x"):
        make_extractor("clip-vit", tmp_path / "a.onnx")
