import io
import warnings
import zipfile

import numpy
import pytest
from captioners import CELLS, D, H, V, W, captioner, images, scores_of, sentences

from xpcap.compat.cs231n import CaptioningRNN
from xpcap.errors import DataError, XpcapError
from xpcap.exchange.course import read_npz, write_npz
from xpcap.exchange.parameters import sizes_of

every_cell = pytest.mark.parametrize("cell", CELLS)


def member(archive, name, array, compressed=False):
    content = io.BytesIO()
    numpy.save(content, array, allow_pickle=True)
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    archive.writestr(f"{name}.npy", content.getvalue(), method)


def written(path, params):
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in params.items():
            member(archive, name, array)
    return path


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_export_loads_in_the_course_model(cell, tmp_path):
    model = captioner(cell)
    write_npz(tmp_path / "a.npz", model.params)
    with numpy.load(tmp_path / "a.npz", allow_pickle=False) as file:
        params = dict(file)
    assert list(params) == list(model.params)
    theirs = CaptioningRNN(model.word_to_idx, D, W, H, cell)
    theirs.params = params
    found = scores_of(theirs, images(), sentences())
    numpy.testing.assert_array_equal(found, scores_of(model, images(), sentences()))


@every_cell
@pytest.mark.parametrize("save", [numpy.savez, numpy.savez_compressed])
def test_numpy_files_are_read_in_any_order_and_layout(cell, save, tmp_path):
    params = captioner(cell).params
    some = {name: numpy.asfortranarray(params[name]) for name in sorted(params)}
    save(tmp_path / "a.npz", **some)
    found = read_npz(tmp_path / "a.npz")
    for name, value in params.items():
        numpy.testing.assert_array_equal(found[name], value)


@every_cell
def test_sizes_are_derived_from_shapes(cell):
    words, sizes = sizes_of("file", captioner(cell).params)
    assert words == V
    assert sizes == {"input_dim": D, "wordvec_dim": W, "hidden_dim": H, "cell_type": cell}


@pytest.mark.parametrize(
    ("cell", "changes", "message"),
    [
        ("lstm", {"W_vocab": None}, r"holds 'W_embed' \(8, 4\), .*; expected W_proj, .* too"),
        ("lstm", {"Wh": None}, r": 'Wh' is missing; expected \(6, 24\)"),
        ("lstm", {"b": None}, r"holds .*: a cell of 0 gates; expected"),
        ("lstm", {"more": numpy.ones(2)}, r"'more' is of shape \(2,\); expected no such array"),
        ("lstm", {"b_proj": numpy.ones(H, int)}, "'b_proj' is int64 of shape .* expected floating"),
        ("lstm", {"b_proj": numpy.ones(0)}, r"'b_proj' is float64 of shape \(0,\); expected float"),
        (
            "lstm",
            {"b": numpy.ones(2 * H)},
            r"'b' \(12,\), .*a cell of 2 gates; expected",
        ),
        ("gru", {"bn": None}, r"'b' \(18,\), .*a cell of 3 gates; expected .* gru \(3\)"),
        ("gru", {"bn": numpy.ones(H + 1)}, r"'bn' is of shape \(7,\); expected \(6,\)"),
        ("rnn", {"W_proj": numpy.ones(H)}, r"W_proj \(D, H\).*W_proj \(6,\)"),
        ("rnn", {"W_proj": numpy.ones(())}, r"W_proj \(D, H\).*W_proj \(\)"),
        ("rnn", {"W_embed": numpy.ones((V + 1, W))}, r"W_vocab \(H, V\).*W_embed \(9, 4\)"),
        ("rnn", {"Wx": numpy.ones((W + 1, H))}, r"'Wx' is of shape \(5, 6\); expected \(4, 6\)"),
        ("rnn", {"b_vocab": numpy.array([None] * V)}, "'b_vocab' is object"),
    ],
)
def test_invalid_parameters_are_refused(cell, changes, message, tmp_path):
    params = captioner(cell).params | changes
    path = written(tmp_path / "a.npz", {k: v for k, v in params.items() if v is not None})
    with pytest.raises(XpcapError, match=r"a\.npz.*" + message):
        read_npz(path)


def test_compressed_zeros_do_not_exhaust_memory(tmp_path):
    params = captioner("rnn").params | {"W_proj": numpy.zeros((400_000, H), numpy.float32)}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in params.items():
            member(archive, name, array, compressed=True)
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    with pytest.raises(DataError, match=r"would expand to 9\d{6} bytes, over 20 times its size"):
        read_npz(tmp_path / "a.npz")


def header_only(shape):
    content = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    numpy.lib.format.write_array_header_1_0(content, header)
    return content.getvalue()


def test_headers_with_false_shapes_are_refused(tmp_path):
    params = dict(captioner("rnn").params)
    del params["W_proj"]
    path = written(tmp_path / "a.npz", params)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("W_proj.npy", header_only((2**30, H)))
    with pytest.raises(DataError, match="would expand to"):
        read_npz(path)
    path = written(tmp_path / "b.npz", params)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("W_proj.npy", header_only((D, H)) + b"1234")
    with pytest.raises(DataError, match=r"b\.npz is damaged: its arrays cannot be read"):
        read_npz(path)
    for rows in (-D, 2**50):
        path = written(tmp_path / "c.npz", params)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("W_proj.npy", header_only((rows, H)))
        with pytest.raises(DataError, match=rf"'W_proj' is float32 of shape \({rows}, 6\)"):
            read_npz(path)


def test_files_of_python_2_are_read_without_a_warning(tmp_path):
    params = captioner("rnn").params
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, value in params.items():
            shape = "".join(f"{size}L, " for size in value.shape)
            header = f"{{'descr': '{value.dtype.str}', 'fortran_order': False, 'shape': ({shape})}}"
            header = header.ljust(117) + "\n"
            head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
            archive.writestr(f"{name}.npy", head + value.tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_npz(tmp_path / "a.npz")
    for name, value in params.items():
        numpy.testing.assert_array_equal(found[name], value)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, captioner("gru").params)
    whole = path.read_bytes()
    for cut in (3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="is damaged"):
            read_npz(path)
    for position in range(0, len(whole), 97):
        broken = bytearray(whole)
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        try:
            read_npz(path)
        except XpcapError as error:
            assert "\n" not in str(error)  # noqa: PT017 - some bytes do not matter


def test_duplicate_names_are_refused(tmp_path):
    path = written(tmp_path / "a.npz", captioner("rnn").params)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        member(archive, "b", numpy.ones(H))
    with pytest.raises(DataError, match="a zip file, but not one of NumPy's arrays"):
        read_npz(path)
