"""The image helpers of the CS231n assignment."""

import zipfile

import numpy
import pytest
from own import own
from PIL import Image

from xpcap.compat import cs231n
from xpcap.compat.cs231n import (
    SQUEEZENET_MEAN,
    SQUEEZENET_STD,
    blur_image,
    deprocess_image,
    image_from_url,
    load_coco_data,
    load_image,
    preprocess_image,
    sample_coco_minibatch,
)
from xpcap.data.extractors import FilterBank
from xpcap.data.prepare import prepare
from xpcap.data.scenes import make_scenes, read_picture
from xpcap.errors import ConfigurationError, DataError, ShapeError


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blur_is_a_weighted_mean_of_nine_pixels(backend, dtype):
    X = numpy.random.RandomState(0).rand(2, 3, 4, 5).astype(dtype)
    kernel = [[1, 2, 1], [2, 188, 2], [1, 2, 1]]
    expected = numpy.zeros((2, 3, 4, 5))
    for n, c, i, j in numpy.ndindex(*X.shape):
        for k in (-1, 0, 1):
            for m in (-1, 0, 1):
                if 0 <= i + k < 4 and 0 <= j + m < 5:
                    expected[n, c, i, j] += X[n, c, i + k, j + m] * kernel[k + 1][m + 1] / 200
    blurred = blur_image(backend.to_device(X))
    assert blurred.dtype == dtype
    numpy.testing.assert_allclose(
        backend.to_host(blurred), expected, rtol=0, atol=8 * numpy.finfo(dtype).eps
    )


def test_blur_refuses_a_single_image(backend):
    with pytest.raises(ShapeError, match=r"expected X \(N, C, height, width\), got \(3, 4, 5\)"):
        blur_image(backend.to_device(numpy.zeros((3, 4, 5))))


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_preprocessing_centres_and_scales_each_colour(backend, dtype):
    img = numpy.array([[[0, 128, 255], [255, 0, 51]]], dtype=dtype)
    out = preprocess_image(backend.to_device(img))
    expected = [
        [
            [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225],
            [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225],
        ]
    ]
    assert out.dtype == numpy.float32
    numpy.testing.assert_allclose(backend.to_host(out), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_deprocessing_undoes_preprocessing(backend, dtype):
    img = numpy.random.RandomState(0).randint(256, size=(6, 5, 3)).astype(numpy.uint8)
    out = deprocess_image(preprocess_image(backend.to_device(img)).astype(dtype))
    assert out.dtype == numpy.uint8
    difference = backend.to_host(out).astype(int) - img
    assert abs(difference).max() <= 1  # the fraction is cut off


def test_deprocessing_clips_values_out_of_range(backend):
    img = (numpy.array([[[-1.0, 0.5, 2.0]]]) - SQUEEZENET_MEAN) / SQUEEZENET_STD
    assert backend.to_host(deprocess_image(backend.to_device(img))).tolist() == [[[0, 127, 255]]]


def test_deprocessing_with_rescale_uses_the_whole_range(backend):
    img = (numpy.array([[[-1.0, 0.5, 3.0]]]) - SQUEEZENET_MEAN) / SQUEEZENET_STD
    out = backend.to_host(deprocess_image(backend.to_device(img), rescale=True))
    # 255 * 1.5 / 4 = 95.625; the largest may lose a unit in rounding
    assert out[0, 0, :2].tolist() == [0, 95]
    assert out[0, 0, 2] >= 254


def test_deprocessing_with_rescale_of_a_constant_image_is_black(backend, monkeypatch):
    monkeypatch.setattr(cs231n, "SQUEEZENET_MEAN", numpy.zeros(3, numpy.float32))
    monkeypatch.setattr(cs231n, "SQUEEZENET_STD", numpy.ones(3, numpy.float32))
    flat = deprocess_image(backend.to_device(numpy.full((2, 2, 3), 0.5)), rescale=True)
    assert backend.to_host(flat).tolist() == numpy.zeros((2, 2, 3)).tolist()


def test_image_from_url_returns_the_image(monkeypatch):
    picture = numpy.zeros((2, 3, 3), numpy.uint8)
    monkeypatch.setattr(cs231n.images, "image_from_url", lambda url: picture)
    assert image_from_url("http://localhost/cat.jpg") is picture


def test_image_from_url_prints_errors_and_returns_none(monkeypatch, capsys):
    def refuse(url):
        raise DataError(f"cannot fetch {url}: gone")

    monkeypatch.setattr(cs231n.images, "image_from_url", refuse)
    assert image_from_url("http://localhost/cat.jpg") is None
    assert capsys.readouterr().out == "cannot fetch http://localhost/cat.jpg: gone\n"


def test_images_of_scenes_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_scenes(tmp_path / "scenes", train=4, val=3)
    data = load_coco_data("scenes")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for split, count in (("train", 4), ("val", 3)):
        for row in range(count):
            expected = read_picture(tmp_path / "scenes", split, row)
            numpy.testing.assert_array_equal(image_from_url(data[f"{split}_urls"][row]), expected)
    _, _, urls = sample_coco_minibatch(data, 2)
    assert image_from_url(urls[0]).shape == (64, 64, 3)


def test_own_photographs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, _ = own(tmp_path, count=4)
    prepare(file.relative_to(tmp_path), tmp_path / "mine", extractor=FilterBank())
    data = load_coco_data(tmp_path / "mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    img = image_from_url(data["train_urls"][1])
    numpy.testing.assert_array_equal(img, load_image(tmp_path / "photos" / "1.png"))


def test_addresses_are_relative_to_the_data_folder(tmp_path, capsys):
    make_scenes(tmp_path / "scenes", train=2, val=2)
    (tmp_path / "scenes" / "dataset.json").write_text('{"name": "plain"}')
    urls = tmp_path / "scenes" / "train2014_urls.txt"
    Image.new("RGB", (3, 2), "red").save(tmp_path / "scenes" / "red.png")
    urls.write_text("red.png\nHTTP://localhost/a.png\n")
    found = load_coco_data(tmp_path / "scenes")["train_urls"].tolist()
    assert found == [str(tmp_path / "scenes" / "red.png"), "HTTP://localhost/a.png"]
    assert image_from_url(found[0]).shape == (2, 3, 3)


@pytest.mark.parametrize("address", ["none.png", "", "a.zip/none.png", "a.zip/../a.png", "\0"])
def test_what_is_no_image_is_named(tmp_path, monkeypatch, capsys, address):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.png", b"no image")
    assert image_from_url(address) is None
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_load_image_returns_the_pixels(tmp_path):
    pixels = numpy.random.RandomState(0).randint(256, size=(4, 6, 3)).astype(numpy.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    numpy.testing.assert_array_equal(load_image(tmp_path / "picture.png"), pixels)
    numpy.testing.assert_array_equal(load_image(str(tmp_path / "picture.png")), pixels)


def test_load_image_converts_grey_to_rgb(tmp_path):
    pixels = numpy.arange(12, dtype=numpy.uint8).reshape(3, 4)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    numpy.testing.assert_array_equal(
        load_image(tmp_path / "grey.png"), numpy.repeat(pixels[:, :, None], 3, axis=2)
    )


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [(40, 60, 20, (20, 30, 3)), (60, 40, 20, (30, 20, 3)), (10, 10, 25, (25, 25, 3))],
)
def test_load_image_scales_the_shorter_side_to_size(tmp_path, height, width, size, expected):
    Image.new("RGB", (width, height), (200, 100, 50)).save(tmp_path / "plain.png")
    img = load_image(tmp_path / "plain.png", size=size)
    assert (img.shape, img.dtype) == (expected, numpy.uint8)
    assert numpy.unique(img.reshape(-1, 3), axis=0).tolist() == [[200, 100, 50]]


def test_load_image_refuses_a_size_that_is_not_positive(tmp_path):
    with pytest.raises(ConfigurationError, match="size must be at least 1"):
        load_image(tmp_path / "any.png", size=0)


def test_load_image_names_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.png"):
        load_image(tmp_path / "none.png")


def test_load_image_names_an_image_that_is_too_large(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"large\.png cannot be opened as an image: "):
        load_image(tmp_path / "large.png")
