import io
import math
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image

from xpcap.backend import Backend, namespace, to_host
from xpcap.data.extractors import FilterBank, make_extractor, open_extractor
from xpcap.data.images import open_picture
from xpcap.errors import ConfigurationError, DataError, ShapeError


def load_image(path: Path) -> numpy.ndarray:
    return FilterBank().prepare(open_picture(path))


def some_pictures(count: int) -> numpy.ndarray:
    """Noise with a bright, a red and a blue block, so that many maps have something to measure."""
    rng = numpy.random.default_rng(3)
    pictures = rng.integers(90, 150, (count, 64, 64, 3)).astype(numpy.uint8)
    pictures[:, 5:20, 8:30] = (230, 20, 30)
    pictures[:, 40:60, 30:44] = (20, 40, 220)
    pictures[:, 30:36, 2:60] = (250, 250, 245)
    return pictures


def colour_map(picture: numpy.ndarray, channel: int) -> numpy.ndarray:
    """Return one colour map, pixel by pixel as the module's text says it."""
    result = numpy.zeros((64, 64))
    for row in range(64):
        for column in range(64):
            red, green, blue = (float(value) / 255 for value in picture[row, column])
            alpha, beta = red - (green + blue) / 2, math.sqrt(3) / 2 * (green - blue)
            chroma, hue = math.hypot(alpha, beta), math.atan2(beta, alpha)
            response = chroma**4 / (chroma**4 + 0.3**4)
            if channel < 6:
                centre = math.radians((0, 33, 57, 128, 242, 285)[channel])
                value = response * math.exp(25 * (math.cos(hue - centre) - 1))
            else:
                contrast = 2 * (red + green + blue) / 3 - 1
                q = max(0.0, contrast if channel == 6 else -contrast)
                value = (1 - response) * q**8 / (q**8 + 0.7**8)
            result[row, column] = value
    return result


def convolved(image: numpy.ndarray, orders: tuple[int, int], sigma: float) -> numpy.ndarray:
    """Convolve with Gaussian derivatives tap by tap, on an image continued by its mirror image."""
    reach = 30
    taps = numpy.arange(-reach, reach + 1)
    gauss = numpy.exp(-(taps**2) / (2 * sigma**2))
    gauss = gauss / gauss.sum()
    t = taps / sigma
    kernels = [gauss, -t * gauss, (t**2 - 1) * gauss]
    for axis, order in enumerate(orders):
        widths = [(reach, reach) if axis == other else (0, 0) for other in (0, 1)]
        padded = numpy.pad(image, widths, mode="symmetric")
        image = sum(
            weight * numpy.take(padded, numpy.arange(64) + reach - tap, axis=axis)
            for tap, weight in zip(taps, kernels[order], strict=True)
        )
    return image


def averaged(channel: numpy.ndarray, width: float) -> numpy.ndarray:
    y, x = numpy.mgrid[:64, :64]
    cells = numpy.zeros((8, 8))
    for row in range(8):
        for column in range(8):
            square = (y - (8 * row + 3.5)) ** 2 + (x - (8 * column + 3.5)) ** 2
            weights = numpy.exp(-square / (2 * width**2))
            cells[row, column] = (channel * weights).sum() / weights.sum()
    return cells


def form_measures(image: numpy.ndarray, sigma: float) -> list[numpy.ndarray]:
    orders = [(1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
    m_y, m_x, m_yy, m_xy, m_xx = (convolved(image, order, sigma) for order in orders)
    w = m_x**2 + m_y**2
    phi = numpy.arctan2(m_x, m_y)
    v = -(m_x**2 * m_yy - 2 * m_x * m_y * m_xy + m_y**2 * m_xx) / (w + 1e-3)
    det = m_xx * m_yy - m_xy**2
    measures = [4 * w * numpy.cos(k * phi) for k in (3, 4, 5, 6, 8, 10)]
    measures += [2 * numpy.maximum(0, v), 4 * numpy.maximum(0, -v)]
    measures += [2.5 * numpy.sqrt(numpy.maximum(0, det)), 2 * numpy.sqrt(numpy.maximum(0, -det))]
    measures = [measure / (w.mean() + 2e-4) for measure in measures]
    return [*measures, 6 * numpy.sqrt(w) / (image.mean() + 2e-4)]


def channel_maps(picture: numpy.ndarray) -> list[tuple[numpy.ndarray, float]]:
    """Return what each channel is an average of, and under how wide a window."""
    maps = [colour_map(picture, channel) for channel in range(8)]
    coarse, fine = [], []
    for image in maps:
        e_1, e_5 = ((convolved(image, (0, 0), scale) ** 2).mean() for scale in (1, 5))
        present = e_1**2 / (e_1**2 + 8e-4**2)
        power = (e_5 / (e_1 + 1e-6)) ** 12
        large = power / (power + 0.335**12)
        coarse.append(present * large)
        fine.append(present * (1 - large))
    channels: list[tuple[numpy.ndarray, float]] = []
    for weights in (coarse, fine):
        form_map = sum(weight * image for weight, image in zip(weights, maps, strict=True))
        area = 2 * form_map / (form_map.mean() + 2e-4)
        for sigma in (0.9, 1.8):
            channels += [(measure, 40) for measure in form_measures(form_map, sigma)]
            channels.append((area, 12))
        channels += [
            (2 * weight * image / (image.mean() + 2e-4), 12)
            for weight, image in zip(weights, maps, strict=True)
        ]
    return channels


def test_features_are_what_the_formulas_say() -> None:
    picture = some_pictures(1)[0]
    expected = [averaged(*channel) for channel in channel_maps(picture)]
    found = FilterBank()(picture[None]).reshape(64, 8, 8)
    assert abs(found).max() > 1
    numpy.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_a_grid_has_the_channels_of_each_cell_under_narrow_windows() -> None:
    picture = some_pictures(1)[0]
    expected = numpy.stack([averaged(values, 6) for values, _ in channel_maps(picture)], axis=-1)
    extractor = FilterBank("grid")
    assert extractor.shape == (64, 64)
    found = extractor(picture[None])
    assert found.flags.c_contiguous
    numpy.testing.assert_allclose(found[0], expected.reshape(64, 64), rtol=2e-3, atol=2e-3)


def test_a_description_has_the_output_if_it_is_a_grid() -> None:
    assert FilterBank().describe() == {"name": "filter-bank", "version": 1}
    for output in (None, "grid"):
        extractor = make_extractor("filter-bank", output=output)
        assert open_extractor(extractor.describe()).shape == extractor.shape
    with pytest.raises(DataError, match="cannot be computed here"):
        open_extractor({**FilterBank().describe(), "output": "maps"})
    with pytest.raises(
        ConfigurationError, match="'filter-bank' has no output 'maps'; expected gri"
    ):
        make_extractor("filter-bank", output="maps")


@pytest.mark.parametrize("region", [(0, 2), (1, 0), (6, 5)])
def test_a_regions_contribution_is_the_average_of_its_pixels(region: tuple[int, int]) -> None:
    picture = some_pictures(1)[0]
    y, x = numpy.mgrid[:64, :64]
    inside = (y // 8 == region[0]) & (x // 8 == region[1])
    expected = [averaged(inside * values, width) for values, width in channel_maps(picture)]
    found = FilterBank().regions(picture[None])[0][region].reshape(64, 8, 8)
    assert abs(found).max() > 0.1
    numpy.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_contributions_of_all_regions_sum_to_the_features(backend: Backend) -> None:
    pictures = backend.to_device(some_pictures(51))  # more than a block
    parts = FilterBank().regions(pictures)
    assert namespace(parts) is backend.xp
    assert parts.shape == (51, 8, 8, 4096)
    assert parts.dtype == numpy.float32
    for index in (0, 49, 50):
        together = to_host(parts[index]).sum(axis=(0, 1))
        features = to_host(FilterBank()(pictures[index : index + 1])[0])
        numpy.testing.assert_allclose(together, features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "columns", "region"),
    [((0, 8), (56, 64), (0, 7)), ((56, 64), (0, 8), (7, 0)), ((16, 24), (40, 48), (2, 5))],
)
def test_regions_attribute_a_thing_to_its_place(
    rows: tuple[int, int], columns: tuple[int, int], region: tuple[int, int]
) -> None:
    empty = numpy.full((1, 64, 64, 3), 120, numpy.uint8)
    picture = empty.copy()
    picture[:, slice(*rows), slice(*columns)] = (230, 20, 30)
    channels = (FilterBank()(picture) - FilterBank()(empty)).reshape(64, 8, 8)
    for channel in (11, 23, 24, 32 + 11, 32 + 23, 32 + 24):  # area and red, coarse and fine
        assert numpy.unravel_index(channels[channel].argmax(), (8, 8)) == region
    strength = abs(FilterBank().regions(picture)[0]).sum(axis=-1)
    assert numpy.unravel_index(strength.argmax(), (8, 8)) == region


def test_features_do_not_depend_on_the_batch() -> None:
    pictures = some_pictures(70)  # more than two blocks
    bank = FilterBank()
    together = bank(pictures)
    assert together.shape == (70, 4096)
    assert together.dtype == numpy.float32
    assert numpy.isfinite(together).all()
    for index in (0, 31, 32, 69):
        numpy.testing.assert_array_equal(bank(pictures[index : index + 1])[0], together[index])
    numpy.testing.assert_array_equal(FilterBank()(pictures), together)


def test_no_images_give_no_features() -> None:
    assert FilterBank()(numpy.zeros((0, 64, 64, 3), numpy.uint8)).shape == (0, 4096)


def test_flat_images_have_finite_features() -> None:
    flat = numpy.stack([numpy.full((64, 64, 3), value, numpy.uint8) for value in (0, 127, 255)])
    assert numpy.isfinite(FilterBank()(flat)).all()


def test_the_features_are_computed_where_the_images_are(backend: Backend) -> None:
    pictures = some_pictures(3)
    found = FilterBank()(backend.to_device(pictures))
    assert namespace(found) is backend.xp
    numpy.testing.assert_allclose(to_host(found), FilterBank()(pictures), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "images",
    [
        numpy.zeros((64, 64, 3), numpy.uint8),
        numpy.zeros((1, 32, 64, 3), numpy.uint8),
        numpy.zeros((1, 64, 64, 3), numpy.float32),
    ],
)
def test_other_arrays_are_refused(images: numpy.ndarray) -> None:
    for compute in (FilterBank(), FilterBank().regions):
        with pytest.raises(ShapeError, match=r"expected \(N, 64, 64, 3\) uint8"):
            compute(images)


def test_an_extractor_is_found_again_by_its_description() -> None:
    assert open_extractor(FilterBank().describe()).describe() == {
        "name": "filter-bank",
        "version": 1,
    }


@pytest.mark.parametrize(
    "description",
    [{}, {"name": "vgg16", "version": 1}, {"name": "filter-bank", "version": 2}],
)
def test_another_extractor_is_refused(description: dict[str, object]) -> None:
    with pytest.raises(DataError, match="filter-bank"):
        open_extractor(description)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_an_image_of_the_right_size_is_read_as_it_is(tmp_path: Path) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(numpy.uint8)
    found = load_image(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    assert found.dtype == numpy.uint8
    numpy.testing.assert_array_equal(found, pixels)


def test_a_large_image_is_resized_to_a_square(tmp_path: Path) -> None:
    found = load_image(saved(tmp_path / "a.png", Image.new("RGB", (300, 100), (10, 200, 30))))
    numpy.testing.assert_array_equal(found, numpy.full((64, 64, 3), (10, 200, 30)))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = numpy.zeros((64, 64, 3), numpy.uint8)
    pixels[:32, :32] = 255  # top left, which a quarter turn clockwise brings to the top right
    exif = Image.Exif()
    exif[0x0112] = 6
    found = load_image(saved(tmp_path / "a.png", Image.fromarray(pixels), exif=exif))
    numpy.testing.assert_array_equal(found, numpy.rot90(pixels, -1))


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    found = load_image(saved(tmp_path / "a.png", Image.new("L", (64, 64), 77)))
    assert (found == 77).all()


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    deep = Image.fromarray(numpy.full((64, 64), 100 * 257, numpy.uint16))
    found = load_image(saved(tmp_path / "a.png", deep))
    assert found.shape == (64, 64, 3)
    assert (found == 100).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_places_are_white(tmp_path: Path, mode: str) -> None:
    found = load_image(saved(tmp_path / "a.png", Image.new(mode, (64, 64))))
    assert (found == 255).all()


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([0, 0, 0, 12, 34, 56])
    found = load_image(saved(tmp_path / "plain.png", image))
    numpy.testing.assert_array_equal(found, numpy.full((64, 64, 3), (12, 34, 56)))
    found = load_image(saved(tmp_path / "clear.png", image, transparency=1))
    assert (found == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_broken_image_is_refused(tmp_path: Path, kind: str) -> None:
    noise = numpy.random.default_rng(0).integers(0, 256, (99, 99, 3)).astype(numpy.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, kind)
    path = tmp_path / "half"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(DataError, match="half cannot be opened as an image"):
        load_image(path)


def test_a_small_file_that_claims_a_huge_image_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"bomb\.png cannot be opened as an image"):
        load_image(path)
