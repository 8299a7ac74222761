import contextlib
import importlib
import re
import subprocess
import sys
import types
import warnings

import numpy
import pytest
from guard import open_guard
from guard import xp as guard_xp
from mpi import needs_mpi, start

import xpcap
import xpcap.backend
from xpcap.backend import (
    CPU,
    as_backend,
    default_backend,
    is_host,
    namespace,
    open_backend,
    to_host,
    use_backend,
)
from xpcap.errors import BackendError

no_gpu = pytest.mark.skipif(open_backend("auto").name != "cpu", reason="there is a GPU")


def test_namespace_of_arrays_and_scalars(backend):
    x = backend.xp.ones(3)
    assert namespace(x) is backend.xp
    assert namespace(x, 2.0, None, x, True, numpy.float32(1)) is backend.xp
    assert is_host(namespace(x)) == (backend.xp is numpy)


def test_mixed_arrays_name_both_libraries():
    device = guard_xp.ones(3)
    with pytest.raises(BackendError, match="numpy and guard in one call; move them to one device"):
        namespace(numpy.ones(3), device)
    with pytest.raises(BackendError, match="guard and numpy"):
        namespace(device, 1.0, numpy.ones(3))


@pytest.mark.parametrize("value", [[1.0], "text", (1,), object()])
def test_namespace_refuses_other_objects(value):
    with pytest.raises(BackendError, match=f"got {type(value).__name__}"):
        namespace(numpy.ones(1), value)


@pytest.mark.parametrize("values", [(), (1.0, None), (numpy.float64(1),)])
def test_namespace_needs_an_array(values):
    with pytest.raises(BackendError, match="only scalars"):
        namespace(*values)


def test_transfer_to_the_device_and_back(backend):
    x = numpy.arange(6.0).reshape(2, 3)
    there = backend.to_device(x)
    assert namespace(there) is backend.xp
    assert there.dtype == x.dtype
    numpy.testing.assert_array_equal(backend.to_host(there), x)
    numpy.testing.assert_array_equal(to_host(there), x)
    assert backend.to_device(there) is there


def test_to_device_converts_the_dtype(backend):
    there = backend.to_device(numpy.arange(3), dtype=numpy.float32)
    assert there.dtype == numpy.float32


def test_to_device_takes_another_backends_array():
    x = numpy.arange(3.0)
    numpy.testing.assert_array_equal(CPU.to_device(open_guard().to_device(x)), x)


def test_to_host_leaves_host_values_alone():
    x = numpy.ones(3)
    assert to_host(x) is x
    assert to_host(numpy.float64(2)) == 2.0
    with pytest.raises(BackendError):
        to_host([1.0])


def test_synchronize_and_activate(backend):
    with backend.activate():
        backend.synchronize()


def test_open_cpu():
    assert open_backend("cpu") is CPU
    assert (CPU.name, CPU.xp, CPU.device, CPU.remark) == ("cpu", numpy, None, "")


@pytest.mark.parametrize("spec", ["", "cuda", "gpu:", "gpu:x", "gpu:-1", "cpu:0", "GPU"])
def test_unknown_devices_are_refused(spec):
    with pytest.raises(BackendError, match=r"is unknown; expected auto, cpu, gpu or gpu:K"):
        open_backend(spec)


def test_open_gpu(gpu):
    assert gpu.name == "gpu:0"
    assert gpu.device == 0
    with pytest.raises(BackendError, match="numbered from 0"):
        open_backend("gpu:99")


@no_gpu
@pytest.mark.parametrize("spec", ["gpu", "gpu:1"])
def test_a_missing_gpu_is_an_error(spec):
    with pytest.raises(BackendError, match=f"device '{spec}'.*(install it with|driver or GPU)"):
        open_backend(spec)


@no_gpu
def test_auto_falls_back_to_the_cpu_with_a_reason():
    backend = open_backend("auto")
    assert backend.xp is numpy
    assert "device 'gpu'" in backend.remark


@no_gpu
def test_a_required_gpu_that_is_missing_fails_the_test(monkeypatch, request):
    monkeypatch.setenv("XPCAP_REQUIRE_GPU", "1")
    with pytest.raises(pytest.fail.Exception, match="XPCAP_REQUIRE_GPU=1, but device 'gpu'"):
        request.getfixturevalue("gpu")


def test_a_missing_cupy_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"pip install 'xpcap\[gpu\]'"):
        open_backend("gpu")


class PretendedCuPy(types.ModuleType):
    """A `cupy` with two GPUs that computes with NumPy, or cannot."""

    float32 = numpy.float32
    ndarray = type("ndarray", (), {})

    def __init__(self, broken=False):
        super().__init__("cupy")
        self.broken = broken
        self.entered = []
        self.cuda = types.SimpleNamespace(
            runtime=types.SimpleNamespace(getDeviceCount=lambda: 2), Device=self._device
        )

    @contextlib.contextmanager
    def _device(self, number):
        self.entered.append(number)
        yield

    def ones(self, shape, dtype):
        if self.broken:
            raise RuntimeError("CuPy failed to load libnvrtc.so.12\nfor the second time")
        return numpy.ones(shape, dtype)


def test_a_gpu_is_opened_by_number(monkeypatch):
    cupy = PretendedCuPy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    backend = open_backend("gpu:1")
    assert (backend.name, backend.device, backend.xp) == ("gpu:1", 1, cupy)
    assert cupy.entered == [1]
    assert open_backend("auto").name == "gpu:0"
    with pytest.raises(BackendError, match=r"has 2 GPU\(s\), numbered from 0"):
        open_backend("gpu:2")


def test_a_gpu_that_cannot_compute_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", PretendedCuPy(broken=True))
    with pytest.raises(BackendError, match=r"cannot compute .*libnvrtc.*CuPy needs") as caught:
        open_backend("gpu")
    assert "\n" not in str(caught.value)
    assert "libnvrtc" in open_backend("auto").remark


def test_the_first_default_is_the_cpu():
    assert default_backend() is CPU
    assert as_backend(None) is CPU


def test_the_environment_variable_sets_the_default(monkeypatch):
    monkeypatch.setenv("XPCAP_DEVICE", "nowhere")
    with pytest.raises(BackendError, match="nowhere"):
        default_backend()
    monkeypatch.setenv("XPCAP_DEVICE", "")
    assert default_backend() is CPU


def test_use_backend_in_a_block():
    guard = open_guard()
    with use_backend(guard) as outer:
        assert outer is default_backend() is guard
        with use_backend("cpu"):
            assert default_backend() is CPU
        assert default_backend() is guard
    assert default_backend() is CPU


def test_use_backend_is_undone_after_an_error():
    with pytest.raises(ZeroDivisionError), use_backend(open_guard()):
        raise ZeroDivisionError
    assert default_backend() is CPU


def test_an_unknown_backend_changes_nothing():
    guard = open_guard()
    use_backend(guard)
    with pytest.raises(BackendError):
        use_backend("nowhere")
    assert default_backend() is guard


def test_new_models_go_to_the_default_backend(backend):
    with use_backend(backend):
        model = xpcap.CaptioningRNN({"<NULL>": 0, "cat": 1}, 2, 2, 2, seed=0)
    assert model.backend is backend
    assert namespace(*model.params.values()) is backend.xp


WITHOUT_NCCL = """
import sys
sys.modules["cupy_backends.cuda.libs.nccl"] = None
from xpcap.backend import open_backend
open_backend("gpu").collective(0, 1)
"""


def test_a_missing_nccl_says_how_to_install_it(gpu):
    """CuPy's own warning would fill five more lines."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_NCCL], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert re.search(r"need NCCL.*pip install 'xpcap\[nccl\]'.*'xpcap\[nccl13\]'", last), done
    assert "Warning" not in done.stderr


ONE_RANK = """
import numpy
from xpcap.backend import open_backend
gpu = open_backend("gpu")
nccl = gpu.collective(0, 1)
array = gpu.to_device(numpy.arange(6.0))
nccl.all_reduce(array, array)
assert gpu.to_host(array).tolist() == [0, 1, 2, 3, 4, 5]
"""


@needs_mpi
def test_nccl_calls_of_one_rank(gpu, tmp_path):
    with warnings.catch_warnings(action="ignore"):
        nccl = importlib.import_module("cupy.cuda.nccl")
    if not nccl.available:
        pytest.skip("NCCL is not installed")
    done = start((1, ["-c", ONE_RANK]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_xpcap_does_not_import_cupy():
    code = "import sys, xpcap, xpcap.selfcheck; sys.exit('cupy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
