"""Options at the ends of their ranges, and of other types."""

import dataclasses
import functools
import math

import numpy
import pytest

from xpcap.decoding import Beam, Constraints, Sampling
from xpcap.errors import ConfigurationError
from xpcap.models import CaptioningRNN
from xpcap.options import check_counts, check_number
from xpcap.training.options import RunOptions, changed_options, run_options
from xpcap.training.recovery import OnNaN
from xpcap.training.saving import Saving
from xpcap.training.trainer import Schedule

NO_NUMBERS = ["1", None, True, [1], 1j, numpy.array(1), math.nan, math.inf, -math.inf]
WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3}


@pytest.mark.parametrize("value", [*NO_NUMBERS, 10**400, -1e-320, 0, -0.0, 1.5])
def test_numbers_outside_an_interval_are_refused(value):
    with pytest.raises(ConfigurationError, match=r"rate must be a number in \(0, 1\], got "):
        check_number("rate", value, "(0, 1]")


@pytest.mark.parametrize("value", [1e-320, 0.5, 1, numpy.float32(0.5), numpy.int64(1)])
def test_numbers_in_an_interval_pass(value):
    check_number("rate", value, "(0, 1]")
    check_number("rate", value, "[0, inf)")


def test_interval_ends_count_or_not():
    check_number("rate", 0, "[0, 1)")
    with pytest.raises(ConfigurationError):
        check_number("rate", 1, "[0, 1)")


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1, 2.0])
def test_counts_that_are_no_positive_integers_are_refused(value):
    with pytest.raises(ConfigurationError, match="epochs must be at least 1, a whole number, got"):
        check_counts(epochs=value)


def test_counts_have_a_largest_value():
    check_counts(epochs=2**31 - 1)
    check_counts(0, 5, a=numpy.uint8(5), b=0)
    with pytest.raises(ConfigurationError, match="epochs must be at most 2147483647, got 1000"):
        check_counts(epochs=10**30)


PLACES = [
    (run_options, "epochs lr_decay clip keep on_nan_limit hidden wordvec dropout lr seed"),
    (run_options, "label_smoothing"),
    (Schedule, "epochs lr_decay warmup"),
    (Saving, "keep"),
    (OnNaN, "limit"),
    (Beam, "width n_best alpha groups diversity"),
    (Sampling, "count temperature top_k top_p seed"),
    (Constraints, "min_length no_repeat_ngram"),
    (lambda **o: CaptioningRNN(WORDS, seed=0, **o), "input_dim wordvec_dim hidden_dim dropout"),
]


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, -0.5], ids=repr)
@pytest.mark.parametrize(
    ("make", "name"), [(make, name) for make, names in PLACES for name in names.split()]
)
def test_what_is_no_number_of_the_option_is_refused_everywhere(make, name, value):
    with pytest.raises(ConfigurationError):
        make(**{name: value})


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("attention", {"scoring": "dot"}),
        ("attention", {"doubly_stochastic": 0.0}),
        ("transformer", {"layers": RunOptions.layers}),
        ("transformer", {"tie_embeddings": False}),
    ],
)
def test_options_of_another_model_are_refused(model, options):
    """Also with their default values, and when a run is resumed."""
    assert changed_options(run_options(model=model, **options), **options)
    for make in (run_options, functools.partial(changed_options, RunOptions())):
        with pytest.raises(ConfigurationError, match=f"goes with model {model} alone"):
            make(**options)


@pytest.mark.parametrize("value", ["1", True, [1], 1j, numpy.array(1), math.nan, -1, 0.5], ids=repr)
def test_options_that_may_be_none_are_checked_too(value):
    for name in ("patience", "max_train", "batch_size", "threads"):
        with pytest.raises(ConfigurationError, match=f"{name} must be at least 1"):
            run_options(**{name: value})
    with pytest.raises(ConfigurationError, match="seed must be at least 0"):
        CaptioningRNN(WORDS, 2, 2, 2, seed=value)
    with pytest.raises(ConfigurationError, match="max_words must be at least 0"):
        Constraints(max_length=value)


@pytest.mark.parametrize("name", ["width", "n_best", "count", "max_length"])
def test_sizes_of_searches_beyond_any_memory_are_refused(name):
    kind = {"count": Sampling, "max_length": Constraints}.get(name, Beam)
    with pytest.raises(ConfigurationError, match="must be at most 1048576, got"):
        kind(**{name: 2**63})


def test_a_rate_that_overflows_by_its_factor_is_refused():
    with pytest.raises(ConfigurationError, match=r"lr_decay 1e\+308, once per epoch, overflows"):
        Schedule(epochs=2, lr_decay=1e308)
    schedule = Schedule(epochs=10, lr_decay=2.0)
    assert schedule.factor(9, 1) == 2.0**9
    assert Schedule(epochs=3, lr_decay=1e-320).factor(2, 1) == 0


@pytest.mark.parametrize("name", ["features", "feature_dtype", "dtype", "precision"])
def test_names_that_options_do_not_have_are_refused(name):
    default = next(one.default for one in dataclasses.fields(RunOptions) if one.name == name)
    with pytest.raises(ConfigurationError, match=f"{name} 'zz' is unknown; expected .*{default}"):
        run_options(**{name: "zz"})


def test_an_unknown_stage_is_refused():
    with pytest.raises(ConfigurationError, match="stage 'zz' is unknown; expected cross-entropy, "):
        run_options(stage="zz")


@pytest.mark.parametrize("dtype", ["zz", "int8", 0, "U3", object, [1]])
def test_dtypes_of_a_model_that_are_not_floating_are_refused(dtype):
    with pytest.raises(ConfigurationError, match=r"dtype .* is not a floating one"):
        CaptioningRNN(WORDS, 2, 2, 2, dtype=dtype)


def test_seeds_and_steps_may_be_integers_of_numpy():
    features, captions = numpy.ones((1, 2)), numpy.array([[1, 3, 2]])
    losses = {
        float(CaptioningRNN(WORDS, 2, 2, 2, dropout=0.5, seed=kind(3)).loss(
            features, captions, kind(4))[0])
        for kind in (int, numpy.int64, numpy.uint8)
    }  # fmt: skip
    assert len(losses) == 1


@pytest.mark.parametrize("value", [-1, 2.5, "a", True])
def test_lengths_and_steps_that_are_no_counts_are_refused(value):
    model = CaptioningRNN(WORDS, 2, 2, 2, seed=0)
    with pytest.raises(ConfigurationError, match="max_length must be at least 0"):
        model.sample(numpy.ones((1, 2)), value)
    with pytest.raises(ConfigurationError, match="step must be at least 0"):
        model.loss(numpy.ones((1, 2)), numpy.array([[1, 3, 2]]), value)
