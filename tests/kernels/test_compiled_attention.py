"""Attention compiled by numba, against the operation's own lines."""

import copy

import numpy
import pytest
from cuda.cuda_cases import CASES

from xpcap.kernels import fastest
from xpcap.operations import OPERATIONS

pytest.importorskip("numba", reason="needs the extra fast")

ATTENTION = [
    pytest.param(name, arguments, id=f"{name}-{number}")
    for number, (name, arguments) in enumerate(CASES)
    if "attention" in name
]


def single(value):
    wide = isinstance(value, numpy.ndarray) and value.dtype == numpy.float64
    return value.astype(numpy.float32) if wide else value


@pytest.mark.parametrize(("name", "arguments"), ATTENTION)
def test_compiled_attention_agrees_with_its_lines(name, arguments):
    """With and without a mask, chosen images and a gradient of the weights."""
    expected = copy.deepcopy(arguments)
    OPERATIONS[name].reference(numpy, **expected)
    found, fast = {key: single(value) for key, value in arguments.items()}, fastest(numpy)
    assert OPERATIONS[name].chosen(fast) is not OPERATIONS[name].reference
    OPERATIONS[name](fast, *found.values())
    for key, value in found.items():
        if isinstance(value, numpy.ndarray):
            numpy.testing.assert_allclose(value, expected[key], rtol=2e-5, atol=2e-5)
