import json
import struct

import numpy
import pytest
from captioners import CELLS, WORDS, captioner, contents

from xpcap.errors import DataError
from xpcap.exchange import to_torch
from xpcap.exchange.tensors import read_safetensors, split_transform, write_safetensors

every_cell = pytest.mark.parametrize("cell", CELLS)


def laid_out(entries, metadata=None):
    """Write the format by hand: name -> dtype, shape, bytes."""
    header, data = {}, b""
    for name, (dtype, shape, content) in entries.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += content
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def parsed(content):
    """Read the format by hand: the texts, and name -> array."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        dtype = {"F32": "<f4", "F64": "<f8"}[entry["dtype"]]
        arrays[name] = numpy.frombuffer(data[first:last], dtype).reshape(entry["shape"])
    return metadata, arrays


@every_cell
def test_file_holds_the_state_dict_and_the_description(cell, tmp_path):
    model = captioner(cell)
    write_safetensors(tmp_path / "a.safetensors", contents(model))
    metadata, arrays = parsed((tmp_path / "a.safetensors").read_bytes())
    expected = to_torch(model.params)
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        numpy.testing.assert_array_equal(arrays[name], value, strict=True)
    text = json.loads(metadata["xpcap"])
    assert text["vocabulary"] == WORDS
    assert text["config"]["model"]["cell_type"] == cell
    assert text["config"]["data"] == {"folder": "nowhere", "kind": "fc7"}


def test_files_of_other_programs_have_no_description(tmp_path):
    path = tmp_path / "a.safetensors"
    half = numpy.array([1.5, -2], "<f2")
    for metadata in (None, {"format": "pt"}):
        path.write_bytes(laid_out({"a": ("F16", (2, 1), half.tobytes())}, metadata))
        tensors, vocabulary, config = read_safetensors(path)
        assert (vocabulary, config) == (None, {})
        numpy.testing.assert_array_equal(tensors["a"], half[:, None], strict=True)
        assert split_transform(tensors)[1] is None


@pytest.mark.parametrize("kind", ["BF16", "I64", "U8", "BOOL", "F8_E4M3", "none"])
def test_unsupported_dtypes_are_refused(kind, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(laid_out({"net.a": (kind, (2,), bytes(16))}))
    message = rf"'net\.a' is of dtype '{kind}'; expected F64, F32, F16 \(in PyTorch: tensor\.f"
    with pytest.raises(DataError, match=message):
        read_safetensors(path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    whole = laid_out({"a": ("F32", (3,), bytes(12))}, {"a": "b"})
    enormous = laid_out({"a": ("F32", (2**40, 2**40), bytes(12))})
    longer = laid_out({"a": ("F32", (4,), bytes(12))})
    overlapping = whole.replace(b'"a": {"dtype', b'"b": {"dtype": "F32", "shape": [3],'
                                b' "data_offsets": [0, 12]}, "a": {"dtype')  # fmt: skip
    size = len(overlapping) - len(whole) + struct.unpack("<Q", whole[:8])[0]
    overlapping = struct.pack("<Q", size) + overlapping[8:]
    nested = b"[" * 100_000
    odd = (
        b"hello",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", len(nested)) + nested,
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 8) + b'{"a": 1}',
        laid_out({}, {"xpcap": 1}),
        laid_out({}, "text"),
    )
    for content in (whole[:-1], whole + b"1", whole[:30], enormous, longer, overlapping, *odd):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is not a whole safetensors file, nor an .npz file"):
            read_safetensors(path)
    path.write_bytes(whole)
    assert read_safetensors(path)[0]["a"].shape == (3,)


def test_every_corrupted_header_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, contents(captioner("rnn")))
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    refused = 0
    for position in range(0, header, 5):
        broken = bytearray(whole)
        broken[position] ^= 0x11
        path.write_bytes(broken)
        try:
            read_safetensors(path)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017 - some bytes do not matter
    assert refused > 50


GOOD = {"format": 1, "vocabulary": WORDS, "config": {"model": {}, "data": {}}}


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "[" * 10_000, "{}",
        json.dumps({**GOOD, "format": 2}),
        json.dumps({**GOOD, "config": {"model": {}}}),
        json.dumps({**GOOD, "config": {"model": [], "data": {}}}),
        json.dumps({**GOOD, "config": 1}),
    ],
)  # fmt: skip
def test_invalid_descriptions_are_refused(text, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(laid_out({}, {"xpcap": json.dumps(GOOD)}))
    assert read_safetensors(path)[1].idx_to_word == WORDS
    path.write_bytes(laid_out({}, {"xpcap": text}))
    with pytest.raises(
        DataError, match="expected its text 'xpcap' to be one of xpcap export: JSON of"
    ):
        read_safetensors(path)


def test_exchange_with_the_safetensors_library_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="reads with PyTorch, which is not installed")
    library = pytest.importorskip("safetensors.torch")
    write_safetensors(tmp_path / "a.safetensors", contents(captioner("gru")))
    expected = to_torch(captioner("gru").params)
    found = library.load_file(tmp_path / "a.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        numpy.testing.assert_array_equal(found[name].numpy(), value, strict=True)
    library.save_file({"a": torch.ones(2, 3).half()}, tmp_path / "b.safetensors")
    tensors, vocabulary, _ = read_safetensors(tmp_path / "b.safetensors")
    assert vocabulary is None
    numpy.testing.assert_array_equal(tensors["a"], numpy.ones((2, 3), "f2"), strict=True)
