"""The CUDA sources through NVIDIA's compiler, which needs no GPU."""

import itertools
import re
from pathlib import Path

import pytest

import xpcap.kernels.cuda
from xpcap.kernels.cuda.launch import read_source

SOURCES = sorted(Path(xpcap.kernels.cuda.__file__).parent.glob("*.cu"))
REGISTERS = {  # the most of float and double, sm_80 and sm_90, with NVRTC 12.9
    "adam_update": 37,
    "add_rows": 40,
    "additive_attention": 40,
    "additive_attention_gradient": 64,
    "column_sum": 32,
    "dot_product_attention": 40,
    "dot_product_attention_gradient": 86,
    "gru_cell": 32,
    "gru_cell_gradient": 30,
    "keep_mask": 32,
    "lstm_cell": 34,
    "lstm_cell_gradient": 32,
    "loss_and_norm": 32,
    "mean_of_present": 32,
    "next_batch": 40,
    "present_regions": 14,
    "recurrence": 247,
    "rnn_cell": 18,
    "rnn_cell_gradient": 16,
    "softmax_cross_entropy": 54,
    "square_sum": 30,
    "take_rows": 14,
}
MARGIN = 8


def compile_for_gpu(path, *options):
    """Return the compiler's log; it fails where there is no compiler."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    try:
        program = nvrtc.createProgram(read_source(path.stem), path.name, (), ())
    except (OSError, RuntimeError) as error:
        pytest.skip(f"NVRTC cannot be loaded: {error}")
    try:
        nvrtc.compileProgram(program, ("-std=c++17", "--ptxas-options=-v", *options))
        return nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        pytest.fail(f"{error}\n{nvrtc.getProgramLog(program)}")
    finally:
        nvrtc.destroyProgram(program)


def variants(text):
    """Yield what the macros of a source may stand for."""
    meanings = {
        "REAL": ("float", "double"),
        "INDEX": ("int", "long long"),
        "ELEMENT": ("unsigned char", "unsigned short", "unsigned int", "unsigned long long"),
        "STREAM": ("unsigned long long", "const unsigned long long *"),
        "HIDDEN": ("200", "512"),
        "GATES": ("1", "3", "4"),
        "ROWS": ("16", "32", "64"),
        "PASSES": ("1", "3"),
    }
    used = [macro for macro in meanings if re.search(rf"\b{macro}\b", text)]
    for chosen in itertools.product(*(meanings[macro] for macro in used)):
        yield [f"-D{macro}={meaning}" for macro, meaning in zip(used, chosen, strict=True)]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_sources_compile_without_spills_and_with_few_registers(path, architecture):
    text = path.read_text("utf-8")
    code = re.sub("//.*", "", text)
    kernels = set(re.findall(r"__global__ void (\w+)\(", text))
    for options in variants(code):
        log = compile_for_gpu(path, f"-arch={architecture}", *options)
        assert "warning" not in log
        assert set(re.findall(r"entry function '(\w+)'", log)) == kernels
        assert set(re.findall(r"(\d+) bytes (?:stack frame|spill)", log)) == {"0"}, log
        registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
        assert len(registers) == len(kernels)
        assert max(registers) <= REGISTERS[path.stem] + MARGIN, (options, log)


def test_every_source_has_a_bound():
    assert set(REGISTERS) == {path.stem for path in SOURCES}
