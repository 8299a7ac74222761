"""Types of what notebooks hand over: converted, or refused in one line."""

import numpy
import pytest

from xpcap import layers
from xpcap.compat.cs231n import CaptioningRNN, decode_captions, grad_check_sparse
from xpcap.errors import ConfigurationError, DataError, ShapeError, XpcapError
from xpcap.models import CaptioningRNN as LibraryRNN

WORDS = ["<NULL>", "<START>", "<END>", "cat"]
FEATURES = numpy.random.default_rng(0).standard_normal((2, 3))
CAPTIONS = numpy.array([[1, 3, 2, 0], [1, 3, 3, 2]])


def build(kind=LibraryRNN, words=None, **settings):
    words = {word: k for k, word in enumerate(WORDS)} if words is None else words
    return kind(words, 3, 4, 5, dtype=numpy.float64, seed=0, **settings)


@pytest.mark.parametrize("convert", [str, numpy.int32, numpy.uint8, numpy.array])
def test_word_indices_of_any_integer_type_mask_the_same_words(convert):
    model = build(words={word: convert(k) for k, word in enumerate(WORDS)})
    assert model.loss(FEATURES, CAPTIONS)[0] == build().loss(FEATURES, CAPTIONS)[0]
    assert model.idx_to_word == dict(enumerate(WORDS))
    assert {type(index) for index in model.word_to_idx.values()} == {int}


@pytest.mark.parametrize("index", ["a", "-1", -1, 1.5, 0.0, None, "", numpy.array([0])])
def test_word_indices_that_are_no_integers_are_refused(index):
    with pytest.raises(ConfigurationError, match=r"the index of '<NULL>' is .*; expected an integ"):
        build(words={"<NULL>": index, "cat": 1})


def test_word_maps_that_are_none_are_refused():
    with pytest.raises(ConfigurationError, match="word_to_idx is of type list; expected a dict"):
        build(words=WORDS)
    with pytest.raises(ConfigurationError, match="the index of '0' is '<NULL>'; expected an int"):
        build(words={"0": "<NULL>"})


@pytest.mark.parametrize("dtype", ["int8", "uint16", "bool", "float16", "float32"])
def test_features_of_any_number_type_are_converted(dtype, backend):
    features = numpy.array([[1, 0, 1], [0, 0, 1]])
    expected, _ = build().loss(features.astype("float64"), CAPTIONS)
    model, features = build(backend=backend), backend.to_device(features.astype(dtype))
    loss, _ = model.loss(features, backend.to_device(CAPTIONS))
    assert float(loss) == pytest.approx(float(expected), rel=1e-14)
    assert model.sample(features, 2).shape == (2, 2)


@pytest.mark.parametrize("dtype", ["U3", "O", "complex128"])
@pytest.mark.parametrize("kind", [LibraryRNN, CaptioningRNN])
def test_features_that_are_no_numbers_are_refused(kind, dtype):
    model, features = build(kind), FEATURES.astype(dtype)
    for call in (model.loss, model.evaluate):
        with pytest.raises(ShapeError, match="expected numbers in features"):
            call(features, CAPTIONS)
    with pytest.raises(ShapeError, match="expected numbers in features"):
        model.sample(features)


def test_what_no_device_can_hold_is_refused_before_it_moves(elsewhere):
    model = build(CaptioningRNN, backend=elsewhere)
    for features, captions in ((FEATURES.astype("U3"), CAPTIONS), (FEATURES, CAPTIONS.astype("O"))):
        with pytest.raises(ShapeError, match="expected numbers"):
            model.loss(features, captions)


@pytest.mark.parametrize("dtype", ["float64", "bool", "complex128"])
def test_captions_that_are_no_integers_are_refused_on_every_device(dtype, backend):
    captions = backend.to_device(CAPTIONS.astype(dtype))
    with pytest.raises(ShapeError, match=f"captions: expected integer indices, got {dtype}"):
        build(backend=backend).loss(backend.to_device(FEATURES), captions)


def test_lists_are_refused():
    for kind in (LibraryRNN, CaptioningRNN):
        with pytest.raises(XpcapError, match="expected a NumPy or CuPy array, got list"):
            build(kind).loss(FEATURES, CAPTIONS.tolist())
        with pytest.raises(XpcapError, match="expected a NumPy or CuPy array, got list"):
            build(kind).sample(FEATURES.tolist())


def masked(mask):
    x = numpy.random.default_rng(1).standard_normal((2, 3, 4))
    return layers.temporal_softmax_loss(x, CAPTIONS[:, 1:], mask)[0]


@pytest.mark.parametrize("dtype", ["int8", "float32", "float64"])
def test_masks_of_zeros_and_ones_are_converted(dtype):
    mask = CAPTIONS[:, 1:] != 0
    assert masked(mask.astype(dtype)) == masked(mask)


@pytest.mark.parametrize(
    "mask",
    [numpy.full((2, 3), 0.5), numpy.full((2, 3), 2), numpy.full((2, 3), -1.0),
     numpy.full((2, 3), numpy.nan), numpy.full((2, 3), "True"), numpy.full((2, 3), None)],
    ids=lambda mask: str(mask[0, 0]),
)  # fmt: skip
def test_other_masks_are_refused(mask):
    with pytest.raises(ShapeError, match=r"expected (booleans, .* in the|numbers in) mask"):
        masked(mask)


@pytest.mark.parametrize("keys", [int, str, numpy.int64])
def test_captions_are_decoded_by_a_dict_with_any_integer_keys(keys):
    words = {keys(k): word for k, word in enumerate(WORDS) if k != 1}
    assert decode_captions(CAPTIONS[:, 1:], words) == ["cat <END>", "cat cat <END>"]
    with pytest.raises(DataError, match="indices 0 to 3; the vocabulary has 0 to 3"):
        decode_captions(CAPTIONS, words)


def test_what_cannot_be_decoded_is_refused():
    with pytest.raises(ConfigurationError, match="a key of idx_to_word is 'cat'; expected an"):
        decode_captions(CAPTIONS, {"cat": 3})
    with pytest.raises(DataError, match="captions are float64; expected word indices, integers"):
        decode_captions(CAPTIONS.astype(float), WORDS)


def test_sparse_gradient_checks_of_integers_are_refused():
    with pytest.raises(ShapeError, match="expected a floating array to differentiate at, got int"):
        grad_check_sparse(lambda x: (x * x).sum(), numpy.ones(3, int), numpy.ones(3))
