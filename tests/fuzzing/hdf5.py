"""HDF5 files with one array that is not what it should be: its kind, size, numbers, and place."""

import io
import shutil

import h5py
import numpy
from hypothesis import strategies as st

from fuzzing.changes import deflated, flipped

DTYPES = [
    "f2", "f4", "f8", ">f4", ">f8", "longdouble", "i1", "i8", "u8", ">i4", "?", "S3", "c8", "V5",
    h5py.string_dtype(), h5py.vlen_dtype(numpy.float32), h5py.ref_dtype,
    numpy.dtype([("a", "f4"), ("b", "i8")]), numpy.dtype(("f4", (3,))),
    h5py.enum_dtype({"a": 1}, "i4"), h5py.opaque_dtype(numpy.dtype("M8[s]")),
]  # fmt: skip
SHAPES = [
    (), (0,), (0, 0), (1,), (1, 1), (3, 2**20), (2**40, 7), (2**60, 4), (2**31, 2**30), (48, 2**50),
    (24,), (24, 7), (24, 7, 1), (2**24,), (2**27,), (2**23, 7), (5, 2**26), (2**60,),
]  # fmt: skip
FILTERS = [
    {}, {"compression": "gzip", "shuffle": True}, {"compression": "lzf"}, {"fletcher32": True},
    {"scaleoffset": 3}, {"compression": "gzip", "fletcher32": True},
]  # fmt: skip
NUMBERS = [-1, 10**6, 2**31 - 1, -(2**31), numpy.nan, numpy.inf, 1e300]


def with_decoys(path):
    """Lay the files beside a valid one to which others may point; nothing may be read from them."""
    shutil.copy(path, path.with_name("decoy.h5"))
    path.with_name("decoy.raw").write_bytes(bytes(4096))
    return path


def hdf5(valid):
    """Rewrite one array of an HDF5 file, or the bytes of the file."""
    with h5py.File(io.BytesIO(valid)) as file:
        arrays = {key: file[key][...] for key in file}
    key, filters = st.sampled_from(sorted(arrays)), st.sampled_from(FILTERS)
    change = st.one_of(
        st.builds(_shaped, st.sampled_from(SHAPES), filters),
        st.sampled_from(DTYPES).map(_of_dtype),
        st.sampled_from(NUMBERS).map(_with_number),
        st.builds(_with_chunk, filters, flipped(bytes(64)).filter(len)),
        st.sampled_from([2**20, 2**26, 2**30]).map(_swelling),
        st.sampled_from([_soft, _loop, _external_link, _group, _type, _missing]),
        st.sampled_from([_external, _virtual, _virtual_itself, _virtual_growing]),
    )
    return st.one_of(
        st.builds(_written, st.just(arrays), key, change),
        st.builds(_chunked, st.just(arrays), filters, st.sampled_from([None, "latest"])).flatmap(
            flipped
        ),
        flipped(valid),
    )


def _written(arrays, key, put):
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        for other in arrays.keys() - {key}:
            opened[other] = arrays[other]
        put(opened, key, arrays[key])
    return file.getvalue()


def _chunked(arrays, filters, libver):
    file = io.BytesIO()
    with h5py.File(file, "w", libver=libver) as opened:
        for key, array in arrays.items():
            dtype = _stored(array, filters)
            opened.create_dataset(key, None, dtype, array, chunks=_halves(array), **filters)
    return file.getvalue()


def _stored(array, filters):
    """Return the dtype, but float32 where HDF5 would have to scale half precision."""
    half = "scaleoffset" in filters and array.dtype == numpy.float16
    return numpy.dtype(numpy.float32) if half else array.dtype


def _halves(array):
    return tuple(max(1, size // 2) for size in array.shape)


def _shaped(shape, filters):
    chunks = tuple(min(max(size, 1), 64) for size in shape)
    options = {"chunks": chunks, **filters} if shape and 0 not in shape and filters else {}
    return lambda file, key, array: file.create_dataset(
        key, shape, _stored(array, options), **options
    )


def _of_dtype(dtype):
    return lambda file, key, array: file.create_dataset(key, array.shape, dtype)


def _with_number(number):
    def put(file, key, array):
        array = array.copy()
        if array.dtype.kind != "f":
            number_ = int(numpy.nan_to_num(numpy.clip(number, -(2**31), 2**31 - 1)))
        else:
            number_ = number
        with numpy.errstate(over="ignore"):
            array.flat[array.size // 2] = number_
        file[key] = array

    return put


def _with_chunk(filters, content):
    def put(file, key, array):
        dtype = _stored(array, filters)
        made = file.create_dataset(key, array.shape, dtype, chunks=_halves(array), **filters)
        made.id.write_direct_chunk((0,) * array.ndim, content)

    return put


def _swelling(size):
    """Compress a chunk that swells to more than a chunk has room for."""

    def put(file, key, array):
        made = file.create_dataset(
            key, array.shape, array.dtype, chunks=array.shape, compression="gzip"
        )
        made.id.write_direct_chunk((0,) * array.ndim, deflated(size, 15)[0])

    return put


def _soft(file, key, array):
    file["real"], file[key] = array, h5py.SoftLink("/real")


def _loop(file, key, array):
    file[key] = h5py.SoftLink(f"/{key}")


def _external_link(file, key, array, name="decoy.h5"):
    file[key] = h5py.ExternalLink(name, f"/{key}")


def _group(file, key, array):
    file.create_group(key)


def _type(file, key, array):
    file[key] = array.dtype


def _missing(file, key, array):
    pass


def _external(file, key, array, name="decoy.raw"):
    file.create_dataset(key, array.shape, array.dtype, external=[(name, 0, array.nbytes)])


def _virtual(file, key, array, name="decoy.h5"):
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[...] = h5py.VirtualSource(name, key, array.shape)
    file.create_virtual_dataset(key, layout)


def _virtual_itself(file, key, array):
    _virtual(file, key, array, ".")


def _virtual_growing(file, key, array, name="decoy.h5"):
    largest = (None, *array.shape[1:])
    layout = h5py.VirtualLayout(array.shape, array.dtype, maxshape=largest)
    source = h5py.VirtualSource(name, key, array.shape, maxshape=largest)
    rows = (slice(0, h5py.h5s.UNLIMITED), *(slice(None) for _ in array.shape[1:]))
    layout[rows] = source[rows]
    file.create_virtual_dataset(key, layout)


ELSEWHERE = {
    "a soft link": (_soft, None),
    "an external link": (_external_link, "decoy.h5"),
    "external numbers": (_external, "decoy.raw"),
    "virtual": (_virtual, "decoy.h5"),
    "virtual, growing": (_virtual_growing, "decoy.h5"),
}
"""How an array can be in another place, and in which file."""


def moved(path, how):
    """Let the first array of a file be in another place, where it can be read."""
    with h5py.File(path) as file:
        arrays = {key: file[key][...] for key in file}
    put, name = ELSEWHERE[how]
    options = {"name": str(path.with_name(name))} if name else {}
    key = min(arrays)
    path.write_bytes(
        _written(arrays, key, lambda file, key, array: put(file, key, array, **options))
    )
    with h5py.File(path) as file:
        assert file[key].shape == arrays[key].shape
        assert how == "external numbers" or (file[key][...] == arrays[key]).all()
