"""How products are laid out for cuBLAS, against a library that is none: it computes with NumPy."""

import ctypes
from types import SimpleNamespace

import numpy
import pytest

from xpcap.errors import BackendError, ConfigurationError
from xpcap.kernels import products
from xpcap.kernels.cublas import WORKSPACE_BYTES, CuBLAS, _gemm_layout
from xpcap.kernels.products import check_precision, multiplied_in
from xpcap.layers.affine import product
from xpcap.operations import Accelerated

RNG = numpy.random.default_rng(0)


class DeviceArray:
    """A NumPy array that shows what CuPy's arrays show."""

    def __init__(self, values):
        self.values = values
        self.data = SimpleNamespace(ptr=values.ctypes.data)

    def __getattr__(self, name):
        return getattr(self.values, name)

    def __setitem__(self, key, value):
        self.values[key] = value

    @property
    def T(self):
        return DeviceArray(self.values.T)

    def __getitem__(self, key):
        return DeviceArray(self.values[key])


class Library:
    """cuBLAS's calls; a product reads and writes memory exactly where it is told to."""

    def __init__(self):
        self.compute_types = []
        self.streams, self.workspace = [], None
        self.status = 0

    def cublasCreate_v2(self, handle):
        handle._obj.value = 7
        return 0

    def cublasSetStream_v2(self, handle, stream):
        assert handle.value == 7
        self.streams.append(stream.value)
        self.workspace = None  # cuBLAS forgets it
        return 0

    def cublasSetWorkspace_v2(self, handle, pointer, size):
        self.workspace = (pointer.value, size.value)
        return 0

    def cublasGemmEx(self, handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c,
                     c_type, ldc, compute, algorithm):  # fmt: skip
        assert a_type == b_type == c_type
        assert algorithm == -1
        number, dtype = [(ctypes.c_float, numpy.float32), (ctypes.c_double, numpy.float64)][a_type]
        assert type(alpha._obj) is type(beta._obj) is number
        self.compute_types.append(compute)

        def columns_first(pointer, rows, columns, lead):
            """A matrix of `lead` rows in memory, of which the first `rows` belong to it."""
            assert lead >= max(rows, 1)
            memory = (number * (lead * (columns - 1) + rows)).from_address(pointer.value)
            return numpy.lib.stride_tricks.as_strided(
                numpy.frombuffer(memory, dtype), (rows, columns),
                (dtype().itemsize, lead * dtype().itemsize),
            )  # fmt: skip

        left = columns_first(a, *((k, m) if ta else (m, k)), lda)
        right = columns_first(b, *((n, k) if tb else (k, n)), ldb)
        left, right = left.T if ta else left, right.T if tb else right
        result = columns_first(c, m, n, ldc)
        result[...] = alpha._obj.value * (left @ right) + (
            beta._obj.value * result if beta._obj.value else 0
        )
        return self.status


def namespace():
    return SimpleNamespace(
        __name__="cupy",
        empty=lambda size, dtype: DeviceArray(numpy.empty(size, dtype)),
        matmul=lambda a, b, out: numpy.matmul(a.values, b.values, out=out.values),
        cuda=SimpleNamespace(
            get_current_stream=lambda: SimpleNamespace(ptr=99),
            runtime=SimpleNamespace(getDevice=lambda: 0),
        ),
    )


def matrix(rows, columns, layout, dtype):
    """A matrix of that shape whose memory is larger than it, so that wrong strides show."""
    if layout == "transposed":
        return matrix(columns, rows, "whole", dtype).T
    if layout == "transposed slice":
        return matrix(columns, rows, "slice", dtype).T
    if layout == "slice":
        return DeviceArray(RNG.standard_normal((rows + 2, columns + 3)).astype(dtype))[
            1 : rows + 1, 2 : columns + 2
        ]
    return DeviceArray(RNG.standard_normal((rows, columns)).astype(dtype))


LAYOUTS = ["whole", "slice", "transposed", "transposed slice"]
SHAPES = [(4, 3, 5), (1, 3, 5), (4, 1, 5), (4, 3, 1), (1, 1, 5), (1, 3, 1), (4, 1, 1), (1, 1, 1)]


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("of_out", ["whole", "slice"])
@pytest.mark.parametrize("of_b", LAYOUTS)
@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_products_of_all_layouts(M, K, N, of_a, of_b, of_out, dtype):
    a, b = matrix(M, K, of_a, dtype), matrix(K, N, of_b, dtype)
    room = DeviceArray(numpy.full((M + 2, N + 3), 9.0, dtype))
    out = room[1 : M + 1, 2 : N + 2] if of_out == "slice" else matrix(M, N, "whole", dtype)
    library = Library()
    CuBLAS(library, namespace()).product(a, b, out, "float32")
    numpy.testing.assert_allclose(out.values, a.values @ b.values, rtol=1e-5, atol=1e-6)
    assert library.compute_types == [{numpy.float32: 68, numpy.float64: 70}[dtype]]
    if of_out == "slice":
        room.values[1 : M + 1, 2 : N + 2] = 9
        assert (room.values == 9).all()


@pytest.mark.parametrize(("precision", "compute"), [("float32", 68), ("tf32", 77), ("bf16", 75)])
def test_the_precision_asked_for(precision, compute, monkeypatch):
    library, xp = Library(), Accelerated(namespace(), ("cupy",))
    cublas = CuBLAS(library, xp)
    monkeypatch.setattr(products, "open_cublas", lambda xp, device: cublas)
    a = matrix(3, 3, "whole", numpy.float32)
    out = matrix(3, 3, "whole", numpy.float32)
    with multiplied_in(precision):
        product(xp, a, a, out)
    product(xp, a, a, out)
    double = matrix(3, 3, "whole", numpy.float64)
    cublas.product(double, double, matrix(3, 3, "whole", numpy.float64), precision)
    assert library.compute_types == [compute, 68, 70]
    assert library.streams == [99]
    assert library.workspace[1] == WORKSPACE_BYTES


def test_the_stream_is_set_where_it_changes_and_the_workspace_with_it():
    library, xp, found = Library(), namespace(), []
    cublas = CuBLAS(library, xp)
    a, out = (matrix(3, 3, "whole", numpy.float32) for _ in range(2))
    for stream in (5, 5, 6, 6, 5):
        xp.cuda.get_current_stream = lambda ptr=stream: SimpleNamespace(ptr=ptr)
        cublas.product(a, a, out, "float32")
        found.append(library.workspace[1])
    assert library.streams == [5, 6, 5]
    assert found == [WORKSPACE_BYTES] * 5


def test_a_stream_that_could_not_be_set_is_set_again(monkeypatch):
    library = Library()
    cublas = CuBLAS(library, namespace())
    a, out = (matrix(3, 3, "whole", numpy.float32) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(library, "cublasSetWorkspace_v2", lambda *arguments: 7)
        with pytest.raises(BackendError, match="cublasSetWorkspace failed with status 7"):
            cublas.product(a, a, out, "float32")
    cublas.product(a, a, out, "float32")
    assert library.workspace[1] == WORKSPACE_BYTES


def test_a_layout_is_worked_out_once():
    cublas = CuBLAS(Library(), namespace())
    before = _gemm_layout.cache_info().misses
    for _ in range(3):
        a, out = (matrix(11, 11, "whole", numpy.float64) for _ in range(2))
        cublas.product(a, a.T, out, "float32")
    assert _gemm_layout.cache_info().misses == before + 1


def test_nothing_to_multiply_gives_zeros():
    cublas = CuBLAS(Library(), namespace())
    a, b = (DeviceArray(numpy.ones(shape, numpy.float32)) for shape in ((3, 0), (0, 2)))
    out = DeviceArray(numpy.ones((3, 2), numpy.float32))
    cublas.product(a, b, out, "float32")
    assert not out.values.any()


def test_other_layouts_and_dtypes_are_left_to_cupy():
    library = Library()
    cublas = CuBLAS(library, namespace())
    every_other = DeviceArray(RNG.standard_normal((6, 8)).astype(numpy.float32)[::2, ::2])
    square = DeviceArray(numpy.eye(4, dtype=numpy.float32))
    out = DeviceArray(numpy.empty((3, 4), numpy.float32))
    cublas.product(every_other, square, out, "float32")
    numpy.testing.assert_array_equal(out.values, every_other.values)
    half = DeviceArray(numpy.eye(3, dtype=numpy.float16))
    cublas.product(half, half, DeviceArray(numpy.empty((3, 3), numpy.float16)), "float32")
    assert library.compute_types == []


def test_without_the_library_cupy_multiplies(monkeypatch):
    monkeypatch.setattr(products, "open_cublas", lambda xp, device: None)
    xp = Accelerated(namespace(), ("cupy",))
    a, out = (DeviceArray(numpy.eye(3)) for _ in range(2))
    product(xp, a, a, out)
    numpy.testing.assert_array_equal(out.values, numpy.eye(3))
    with multiplied_in("tf32"), pytest.raises(BackendError, match="'tf32' needs cuBLAS"):
        product(xp, a, a, out)


def test_errors_of_cublas_are_told():
    library = Library()
    cublas = CuBLAS(library, namespace())
    library.status = 13
    a = matrix(3, 3, "whole", numpy.float32)
    with pytest.raises(BackendError, match=r"cublasGemmEx of \(3, 3\) and \(3, 3\) failed.* 13"):
        cublas.product(a, a, matrix(3, 3, "whole", numpy.float32), "float32")


def test_precisions_are_checked():
    check_precision("float32", on_gpu=False)
    check_precision("bf16", on_gpu=True)
    with pytest.raises(ConfigurationError, match="precision 'tf32' needs a GPU"):
        check_precision("tf32", on_gpu=False)
    with pytest.raises(ConfigurationError, match="precision 'bf16' needs parameters of float32"):
        check_precision("bf16", on_gpu=True, dtype=numpy.float64)
    with pytest.raises(ConfigurationError, match="'half' is unknown; expected float32, tf32, bf16"):
        check_precision("half", on_gpu=True)
