"""Features read from their file: every way in which HDF5 can hold them, and files gone wrong."""

import struct
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy
import pytest

from xpcap.data import features
from xpcap.data.features import BlockRows, LazyFeatures, PlainRows, read_features
from xpcap.errors import DataError

VALUES = numpy.random.default_rng(0).standard_normal((50, 6)).astype("float32")


def plainly(**options):
    return lambda file: file.create_dataset("features", data=VALUES, **options)


def of_dtype(dtype):
    return plainly(dtype=dtype)


def compact(file):
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(VALUES.shape)
    h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, properties)
    file["features"][...] = VALUES


def padded(file):
    """Write a format of float32's size that NumPy lacks: 16 bits of four bytes count."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_precision(16)
    h5py.h5d.create(file.id, b"features", kind, h5py.h5s.create_simple(VALUES.shape))
    file["features"][...] = VALUES


def never_written(file):
    file.create_dataset("features", VALUES.shape, "f4")


PLAIN = {
    "plain": plainly(),
    "big-endian": of_dtype(">f4"),
    "float16": of_dtype("f2"),
    "float64": of_dtype("f8"),
    "big-endian float64": of_dtype(">f8"),
}
BLOCKS = {
    "chunked": plainly(chunks=(8, 6)),
    "cut both ways": plainly(chunks=(7, 4)),
    "compressed": plainly(chunks=(16, 6), compression="gzip"),
    "shuffled": plainly(chunks=(1, 6), shuffle=True),
    "shuffled and compressed": plainly(chunks=(16, 4), compression="gzip", shuffle=True),
    "growing": plainly(maxshape=(None, 6)),
    "compact": compact,
    "padded": padded,
    "never written": never_written,
}
INDICES = [
    [7, 3, 3, 49, 0],
    [5],
    [-1, 0, -50],
    list(range(50)),
    [[1, 2], [2, 1]],
    slice(2, 9),
    slice(None),
    slice(40, 99),
    slice(-3, None),
    slice(1, 40, 7),
    slice(None, None, -1),
    slice(9, 2),
    numpy.zeros(0, int),
]


def write(path, fill, **options):
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return path


def in_file(path):
    with h5py.File(path) as file:
        return file["features"][...].astype("float32")


@pytest.mark.parametrize("userblock", [0, 1024])
@pytest.mark.parametrize("name", [*PLAIN, *BLOCKS])
def test_rows_are_those_that_h5py_reads(name, userblock, tmp_path):
    path = write(tmp_path / "f.h5", {**PLAIN, **BLOCKS}[name], userblock_size=userblock)
    expected = in_file(path)
    lazy = LazyFeatures(path)
    assert isinstance(lazy._reader, PlainRows if name in PLAIN else BlockRows)
    assert (lazy.shape, len(lazy), lazy.dtype) == ((50, 6), 50, numpy.float32)
    for rows in INDICES:
        found = lazy[rows]
        assert found.dtype == numpy.float32
        numpy.testing.assert_array_equal(found, expected[rows])
    rng = numpy.random.default_rng(1)
    for count in (1, 10, 100, 100):
        rows = rng.integers(50, size=count)
        numpy.testing.assert_array_equal(lazy[rows], expected[rows])
    numpy.testing.assert_array_equal(read_features(path), expected)
    half = expected.astype("float16")
    numpy.testing.assert_array_equal(read_features(path, "float16"), half)
    numpy.testing.assert_array_equal(LazyFeatures(path, "float16")[::-1], half[::-1])


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "f2"}, {"chunks": (8, 3, 2)}, {"chunks": (7, 2, 1), "shuffle": True}]
)
def test_rows_of_regions(options, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BLOCK_BYTES", 11 * 3 * 2 * 4)
    regions = VALUES.reshape(50, 3, 2)

    def fill(file):
        file.create_dataset("features", data=regions, **options)

    path = write(tmp_path / "f.h5", fill)
    expected = in_file(path)
    lazy = LazyFeatures(path)
    assert lazy.shape == (50, 3, 2)
    assert [block.stop for block in features.row_blocks(lazy)] == [11, 22, 33, 44, 50]
    for rows in INDICES:
        numpy.testing.assert_array_equal(lazy[rows], expected[rows])
    numpy.testing.assert_array_equal(read_features(path), expected)


def test_features_have_one_axis_or_two(tmp_path):
    for shape in ((6,), (2, 1, 1, 3)):
        path = write(
            tmp_path / "f.h5", lambda file, s=shape: file.create_dataset("features", s, "f4")
        )
        with pytest.raises(DataError, match="expected a 2-dimensional or 3-dimensional floating"):
            LazyFeatures(path)


@pytest.mark.parametrize("options", [{}, {"chunks": True, "maxshape": (None, None)}])
@pytest.mark.parametrize("shape", [(0, 6), (5, 0), (0, 0)])
def test_features_may_be_empty(shape, options, tmp_path):
    values = numpy.zeros(shape, "f4")
    path = write(
        tmp_path / "f.h5", lambda file: file.create_dataset("features", data=values, **options)
    )
    lazy = LazyFeatures(path)
    assert lazy[:].shape == read_features(path).shape == shape
    assert lazy[numpy.zeros(0, int)].shape == (0, shape[1])


@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_row_indices_out_of_range_raise(name, tmp_path):
    lazy = LazyFeatures(write(tmp_path / "f.h5", {**PLAIN, **BLOCKS}[name]))
    for rows in ([50], [0, -51], 50):
        with pytest.raises(IndexError):
            lazy[rows]


def test_adjacent_rows_are_read_at_once(tmp_path, monkeypatch):
    lazy = LazyFeatures(write(tmp_path / "f.h5", PLAIN["plain"]))
    original, sizes = features.os.preadv, []

    def preadv(file, buffers, position):
        sizes.append(len(buffers[0]) // 24)
        return original(file, [buffers[0][:50]], position)  # less than asked for

    monkeypatch.setattr(features.os, "preadv", preadv)
    numpy.testing.assert_array_equal(lazy[[9, 5, 4, 30, 5]], VALUES[[9, 5, 4, 30, 5]])
    assert sizes == [2, 1, 1]
    numpy.testing.assert_array_equal(lazy[:], VALUES)


def test_hdf5_reads_where_preadv_is_missing(tmp_path, monkeypatch):
    monkeypatch.delattr(features.os, "preadv")
    lazy = LazyFeatures(write(tmp_path / "f.h5", PLAIN["plain"]))
    numpy.testing.assert_array_equal(lazy[[9, 0]], VALUES[[9, 0]])


def counted(height, kept, monkeypatch):
    """A reader of blocks, and a list of those that it reads."""
    monkeypatch.setattr(features, "KEPT_BYTES", kept)
    read = []

    def part(first, end):
        read.append(first // height)
        return VALUES[first:end]

    return BlockRows(part, lambda: None, VALUES, height), read


def test_recently_used_blocks_are_cached(monkeypatch):
    reader, read = counted(10, 2 * 10 * 24 + 239, monkeypatch)  # not quite three blocks
    for row, expected in [(5, [0]), (15, [0, 1]), (7, [0, 1]), (25, [0, 1, 2]), (9, [0, 1, 2])]:
        numpy.testing.assert_array_equal(reader.read(numpy.array([row])), VALUES[[row]])
        assert read == expected
    reader.read(numpy.array([1, 12, 13]))  # 1 made way for 2, as 0 had been used since
    assert read == [0, 1, 2, 1]
    reader.read(numpy.arange(50))
    assert reader._block.cache_info().currsize == 2


def test_one_block_is_cached_even_if_large(monkeypatch):
    reader, read = counted(10, 100, monkeypatch)
    reader.read(numpy.array([1, 2, 11]))
    reader.read(numpy.array([12, 13]))
    assert read == [0, 1]
    assert reader._block.cache_info().maxsize == 1
    reader.close()
    assert reader._block.cache_info().currsize == 0


@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_concurrent_reads(name, tmp_path):
    lazy = LazyFeatures(write(tmp_path / "f.h5", {**PLAIN, **BLOCKS}[name]))

    def work(seed):
        rng = numpy.random.default_rng(seed)
        for rows in rng.integers(50, size=(100, 9)):
            numpy.testing.assert_array_equal(lazy[rows], VALUES[rows])

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, seed) for seed in range(4)]:
            done.result()


def one_line(path, rows=slice(None), dtype="float32"):
    with pytest.raises(DataError) as caught:
        LazyFeatures(path, dtype)[rows]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["plain", "float64", "chunked", "compressed"])
@pytest.mark.parametrize("value", [numpy.nan, numpy.inf])
def test_non_finite_features_are_refused_when_read(name, value, tmp_path):
    path = write(tmp_path / "f.h5", {**PLAIN, **BLOCKS}[name])
    with h5py.File(path, "a") as file:
        file["features"][30, 2] = value
    assert "NaN or infinite values (as float32); expected finite ones" in one_line(path, [1, 30])
    with pytest.raises(DataError, match="NaN or infinite"):
        read_features(path)
    numpy.testing.assert_array_equal(LazyFeatures(path)[:30], in_file(path)[:30])


def test_an_unknown_dtype_is_refused(tmp_path):
    path = write(tmp_path / "f.h5", PLAIN["plain"])
    with pytest.raises(DataError, match="feature dtype 'int8' is unknown"):
        LazyFeatures(path, "int8")


def test_other_filters_are_refused_by_name(tmp_path):
    path = write(tmp_path / "f.h5", plainly(compression="lzf", fletcher32=True))
    assert "is stored with lzf, fletcher32; expected gzip" in one_line(path)


def test_overflow_in_half_precision_is_refused(tmp_path):
    path = write(tmp_path / "f.h5", PLAIN["plain"])
    with h5py.File(path, "a") as file:
        file["features"][30, 2] = 1e6
    assert "infinite values (as float16)" in one_line(path, [30], "float16")
    assert LazyFeatures(path)[30][2] == 1e6


@pytest.mark.parametrize("name", ["plain", "chunked"])
def test_a_file_cut_short_is_truncated(name, tmp_path):
    path = write(tmp_path / "f.h5", {**PLAIN, **BLOCKS}[name])
    path.write_bytes(path.read_bytes()[:-1])
    assert "is truncated; expected a whole HDF5 file" in one_line(path)


def test_a_file_cut_short_while_it_is_open_is_damaged(tmp_path):
    path = write(tmp_path / "f.h5", PLAIN["plain"])
    lazy = LazyFeatures(path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 24)
    numpy.testing.assert_array_equal(lazy[:49], VALUES[:49])
    with pytest.raises(DataError, match="is damaged: 'features' cannot be read"):
        lazy[[49]]


def test_an_offset_beyond_the_end_of_the_file_is_damaged(tmp_path):
    path = write(tmp_path / "f.h5", PLAIN["plain"])
    with h5py.File(path) as file:
        place = struct.pack("<QQ", file["features"].id.get_offset(), VALUES.nbytes)
    whole = path.read_bytes()
    assert whole.count(place) == 1
    for wrong in (len(whole) - 100, 2**63 - 1):
        path.write_bytes(whole.replace(place, struct.pack("<QQ", wrong, VALUES.nbytes)))
        assert "is damaged" in one_line(path, [0, 40])


def test_a_damaged_chunk_is_named(tmp_path):
    path = write(tmp_path / "f.h5", BLOCKS["compressed"])
    with h5py.File(path) as file:
        chunk = file["features"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    assert "is damaged: 'features' cannot be read" in one_line(path, [20])
    numpy.testing.assert_array_equal(LazyFeatures(path)[:16], VALUES[:16])


@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_closed_features_cannot_be_read(name, tmp_path):
    lazy = LazyFeatures(write(tmp_path / "f.h5", {**PLAIN, **BLOCKS}[name]))
    lazy.close()
    lazy.close()
    with pytest.raises(DataError, match="cannot be read"):
        lazy[:3]


def test_garbage_collected_features_are_closed(tmp_path):
    lazy = LazyFeatures(write(tmp_path / "f.h5", PLAIN["plain"]))
    file = lazy._reader._file
    del lazy
    assert file.closed
