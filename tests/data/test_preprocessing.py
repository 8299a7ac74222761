import dataclasses
import json

import numpy
import pytest
from PIL import Image

from xpcap.data.extractors import PRESETS, Preprocessing
from xpcap.errors import ConfigurationError

PLAIN = Preprocessing(size=4, shorter_side=None, scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))


def noise(width, height):
    pixels = numpy.random.default_rng(0).integers(256, size=(height, width, 3)).astype(numpy.uint8)
    return pixels, Image.fromarray(pixels)


def test_values_are_scaled_and_centred_by_channel():
    pixels, picture = noise(4, 4)
    preprocessing = PLAIN.changed({"scale": 0.5, "mean": [1, 2, 3], "std": [2, 4, 5]})
    found = preprocessing(picture)
    assert found.dtype == numpy.float32
    assert found.flags.c_contiguous
    for channel, (mean, std) in enumerate([(1, 2), (2, 4), (3, 5)]):
        numpy.testing.assert_allclose(
            found[channel], (0.5 * pixels[..., channel] - mean) / std, rtol=1e-6
        )


def test_bgr_turns_the_channels_before_mean_and_std():
    pixels, picture = noise(4, 4)
    found = PLAIN.changed({"channels": "bgr", "mean": [10, 20, 30]})(picture)
    numpy.testing.assert_array_equal(found[0], pixels[..., 2].astype(float) - 10)
    numpy.testing.assert_array_equal(found[2], pixels[..., 0].astype(float) - 30)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_whole_image_is_resized_where_no_shorter_side_is_given(interpolation):
    _, picture = noise(20, 10)
    found = PLAIN.changed({"interpolation": interpolation})(picture)
    how = Image.Resampling[interpolation.upper()]
    numpy.testing.assert_array_equal(
        found.transpose(1, 2, 0), numpy.asarray(picture.resize((4, 4), how))
    )


@pytest.mark.parametrize(
    ("size", "corner"), [((6, 9), (1, 2)), ((9, 6), (2, 1)), ((6, 6), (1, 1)), ((7, 6), (2, 1))]
)
def test_the_centre_is_cut_out(size, corner):
    pixels, picture = noise(*size)
    found = PLAIN.changed({"shorter_side": 6})(picture)
    left, top = corner  # (7 - 4) / 2 is rounded to the even 2, as torchvision does
    numpy.testing.assert_array_equal(
        found.transpose(1, 2, 0), pixels[top : top + 4, left : left + 4]
    )


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (225, 224), (100, 30), (50, 1700)])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_those_of_torchvision(size, preset):
    """Written out from torchvision's Resize, CenterCrop and Normalize."""
    _, picture = noise(*size)
    chosen = PRESETS[preset]
    short, long = min(size), max(size)
    scaled = int(chosen.shorter_side * long / short)
    whole = (chosen.shorter_side, scaled) if size[0] == short else (scaled, chosen.shorter_side)
    how = Image.Resampling[chosen.interpolation.upper()]
    resized = numpy.asarray(picture.resize(whole, how), numpy.float64)
    top, left = (int(round((side - 224) / 2.0)) for side in resized.shape[:2])  # noqa: RUF046
    cut = resized[top : top + 224, left : left + 224]
    if preset == "vgg16-fc7-caffe":
        wanted = cut[..., ::-1] - [103.939, 116.779, 123.68]
    elif preset == "clip-vit":
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        wanted = (cut / 255 - mean) / std
    else:
        wanted = (cut / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    if long > 8 * short:  # our picture is cut shorter first, which shifts it by a part of a pixel
        assert chosen(picture).shape == (3, 224, 224)
    else:
        numpy.testing.assert_allclose(
            chosen(picture), wanted.transpose(2, 0, 1), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (1, 1), (2, 3)])
def test_a_very_long_image_takes_no_more_memory_than_another(size):
    picture = Image.new("RGB", size, (255, 0, 0))
    found = PRESETS["vgg16-fc7"](picture)
    numpy.testing.assert_allclose(found[0], (1 - 0.485) / 0.229, rtol=1e-6)


def test_it_goes_through_json():
    for preset in PRESETS.values():
        stored = json.loads(json.dumps(dataclasses.asdict(preset)))
        assert Preprocessing().changed(stored) == preset


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sise": 3}, "has no 'sise'; expected size, shorter_side"),
        ({"size": 0}, "size is 0; expected 1 to 4096"),
        ({"size": "224"}, "size is '224'"),
        ({"size": True}, "size is True"),
        ({"size": 10**9}, "size is 1000000000"),
        ({"shorter_side": 100}, "shorter_side 100 is less than size 224"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'; expected bilinear or bicubic"),
        ({"interpolation": []}, "interpolation is"),
        ({"channels": "grb"}, "channels is 'grb'"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": "1"}, "scale is '1'"),
        ({"mean": [1, 2]}, "mean is .*; expected three numbers"),
        ({"mean": 3}, "mean is 3"),
        ({"std": [1, 2, None]}, "std is"),
        ({"std": [1, 0, 1]}, "std has a 0"),
        ({"scale": 10**400}, "scale is 1000"),
        ({"mean": [True, 0, 0]}, "mean is"),
        (["size"], "preprocessing is .*; expected an object"),
        ("size", "preprocessing is"),
        (5, "preprocessing is"),
        (None, "preprocessing is"),
    ],
)
def test_invalid_values_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        Preprocessing().changed(changes)
