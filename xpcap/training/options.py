"""The options of a run, and its configuration, in which they are stored."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from xpcap.data.dataset import Dataset
from xpcap.errors import CheckpointError, ConfigurationError, XpcapError
from xpcap.kernels.cublas import PRECISIONS
from xpcap.models import FAMILIES
from xpcap.models.attention import SCORINGS
from xpcap.models.inspection import Attends
from xpcap.models.recurrent import CaptioningRNN, check_cell
from xpcap.models.transformer import POSITIONS, Transformer
from xpcap.optim import INTERVALS, find_rule
from xpcap.options import check_counts, check_number, check_options, given
from xpcap.runs.dataset import data_configuration, digests
from xpcap.runs.run import Run
from xpcap.training.recovery import OnNaN
from xpcap.training.saving import Saving
from xpcap.training.selection import SELECTIONS
from xpcap.training.self_critical import SelfCritical
from xpcap.training.trainer import Schedule

_MODEL = {
    "model": "family",
    "wordvec": "wordvec_dim",
    "hidden": "hidden_dim",
    "cell": "cell_type",
    "scoring": "scoring",
    "doubly_stochastic": "doubly_stochastic",
    "layers": "layers",
    "heads": "heads",
    "encoder_layers": "encoder_layers",
    "positions": "positions",
    "tie_embeddings": "tie_embeddings",
    "dropout": "dropout",
    "dtype": "dtype",
}

CHANGEABLE = ("epochs", "lr", "patience", "lazy", "save_every", "keep", "on_nan", "on_nan_limit")
"""Options of `run_options` that may be given when a run is resumed."""


def of_others(family: str) -> list[str]:
    """Return the options of models that other families have, and this one has not."""
    others = {name for other in FAMILIES.values() for name in other.options}
    return [
        ours for ours, theirs in _MODEL.items() if theirs in others - {*FAMILIES[family].options}
    ]


def _refuse_others(family: str, given: Iterable[str]) -> None:
    """Raise `ConfigurationError` for an option of models that only other families have."""
    for name in given:
        if name in of_others(family):
            owners = [key for key, other in FAMILIES.items() if _MODEL[name] in other.options]
            raise ConfigurationError(f"{name} goes with model {' or '.join(owners)} alone")


_SELF_CRITICAL = tuple(one.name for one in fields(SelfCritical))
_BY_STAGE: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "self-critical": {"lr": 2e-4, "select": "CIDEr-D"},
}
"""The stages of training, with the defaults that each has for itself."""


def _refuse_self_critical(stage: str, given: Iterable[str]) -> None:
    """Raise `ConfigurationError` for an option of the stage self-critical in another one."""
    for name in given:
        if name in _SELF_CRITICAL and stage != "self-critical":
            raise ConfigurationError(f"{name} goes with stage self-critical alone")


CHOICES: dict[str, Iterable[str]] = {
    "features": ("auto", "pca", "fc7"),
    "feature_dtype": ("float32", "float16"),
    "dtype": ("float32", "float64"),
    "precision": PRECISIONS,
    "model": FAMILIES,
    "select": SELECTIONS,
    "scoring": SCORINGS,
    "positions": POSITIONS,
}


@dataclass(frozen=True)
class RunOptions:
    """The options of a run; one that is invalid for any data set raises `ConfigurationError`."""

    features: str = "auto"  # this and others: see `CHOICES`
    lazy: bool = False  # leave the features in their files
    feature_dtype: str = "float32"
    max_train: int | None = None  # training captions, drawn at random; None takes all
    model: str = "recurrent"  # a key of `xpcap.models.FAMILIES`
    cell: str = "lstm"  # this and the next four: see `CaptioningRNN`
    hidden: int = 512
    wordvec: int = 256
    dropout: float = 0.0
    dtype: str = "float32"
    scoring: str = "additive"  # this and the next: see `AttentionRNN`; of this family alone
    doubly_stochastic: float = 0.0
    layers: int = 3  # this and the next four: see `Transformer`; of this family alone
    heads: int = 8
    encoder_layers: int = 0
    positions: str = "sinusoidal"
    tie_embeddings: bool = False
    batch_size: int | None = None  # captions per step; None: see `default_batch_size`
    rule: str = "adam"  # a key of `xpcap.optim.RULES`
    lr: float = 1e-3  # learning rate
    weight_decay: float | None = None  # with rule adamw alone; None: the rule's own
    label_smoothing: float = 0.0  # of the training loss, see `softmax_cross_entropy`
    scheduled_sampling: float = 0.0  # see `ScheduledSampling`
    precision: str = "float32"  # of matrix products, see `TrainingStep`
    select: str = "loss"  # the best epoch: that of the lowest loss, or the best value of a metric
    self_critical: SelfCritical | None = None  # of the stage self-critical; None: cross-entropy
    schedule: Schedule = field(default_factory=Schedule)
    saving: Saving = field(default_factory=Saving)
    on_nan: OnNaN = field(default_factory=OnNaN)
    seed: int = 0  # of initial parameters, dropout, order and sampling
    threads: int | None = None  # that share each batch; None is the number of `use_threads`

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in list(choices):
                raise ConfigurationError(
                    f"{name} {getattr(self, name)!r:.40} is unknown; expected {', '.join(choices)}"
                )
        if issubclass(FAMILIES[self.model], CaptioningRNN):
            check_cell(self.cell)
        changed = (f.name for f in fields(self) if getattr(self, f.name) != f.default)
        _refuse_others(self.model, changed)
        check_number("dropout", self.dropout, "[0, 1)")
        check_number("doubly_stochastic", self.doubly_stochastic, "[0, inf)")
        check_number("label_smoothing", self.label_smoothing, "[0, 1)")
        find_rule(self.rule)
        check_number("lr", self.lr, "(0, inf)")
        if self.weight_decay is not None:
            if self.rule != "adamw":
                raise ConfigurationError(f"weight_decay goes with rule adamw, not {self.rule}")
            check_number("weight_decay", self.weight_decay, INTERVALS["weight_decay"])
        check_counts(hidden=self.hidden, wordvec=self.wordvec, layers=self.layers, heads=self.heads)
        check_counts(0, encoder_layers=self.encoder_layers)
        if self.model == Transformer.family and self.hidden % self.heads:
            raise ConfigurationError(
                f"heads {self.heads} do not divide hidden {self.hidden}; expected a divisor"
            )
        check_counts(
            **given(batch_size=self.batch_size, max_train=self.max_train, threads=self.threads)
        )
        check_counts(0, math.inf, seed=self.seed)
        check_number("scheduled_sampling", self.scheduled_sampling, "[0, 1]")
        for name in ("label_smoothing", "scheduled_sampling"):
            if self.self_critical is not None and getattr(self, name):
                raise ConfigurationError(f"{name} goes with stage cross-entropy alone")

    @property
    def stage(self) -> str:
        """What is trained: `"cross-entropy"`, or `"self-critical"`."""
        return "cross-entropy" if self.self_critical is None else "self-critical"

    @property
    def attends(self) -> bool:
        """Whether the model attends to regions, so that the built-in scenes are those of a grid."""
        return issubclass(FAMILIES[self.model], Attends)

    @property
    def label(self) -> str:
        """The model in a run's name, such as `lstm` or `attention-lstm`."""
        cell = self.cell if "cell_type" in FAMILIES[self.model].options else None
        return "-".join(given for given in (self.model, cell) if given not in (None, "recurrent"))


def run_options(
    *,
    epochs: int = 6,
    lr_decay: float = 1.0,
    schedule: str = "cosine",
    warmup: int = 0,
    clip: float = 5.0,
    patience: int | None = None,
    save_every: int | str | None = None,
    keep: int = 0,
    on_nan: str = "stop",
    on_nan_limit: int = 3,
    stage: str = "cross-entropy",
    **others: Any,
) -> RunOptions:
    """Return the options of a run, by the names of the command `xpcap train`.

    `schedule` is `"cosine"` or `"constant"`, `warmup` a number of steps, `clip` the largest norm of
    the gradient or 0, `save_every` a number of steps or, such as `"10m"`, of minutes, `on_nan` one
    of `"stop"`, `"skip"` and `"rollback"`; `others` are fields of `RunOptions`, and with the
    `stage` `"self-critical"` of `SelfCritical`. Unknown names and invalid values raise
    `ConfigurationError`, whose message begins with the name.
    """
    named = {
        "epochs": epochs, "lr_decay": lr_decay, "schedule": schedule, "warmup": warmup,
        "clip": clip, "keep": keep, "on_nan": on_nan, "on_nan_limit": on_nan_limit, "stage": stage,
    }  # fmt: skip
    _check({**named, **others})
    if stage not in _BY_STAGE:
        raise ConfigurationError(f"stage {stage!r:.40} is unknown; expected {', '.join(_BY_STAGE)}")
    critical = {name: others.pop(name) for name in _SELF_CRITICAL if name in others}
    _refuse_self_critical(stage, critical)
    others = {**_BY_STAGE[stage], **others}
    if schedule not in ("cosine", "constant"):
        raise ConfigurationError(f"schedule {schedule!r} is unknown; expected cosine or constant")
    cosine = schedule == "cosine"
    found = RunOptions(
        schedule=Schedule(epochs, lr_decay, cosine, clip or None, patience, warmup=warmup),
        saving=Saving(*_saved_every(save_every), keep),
        on_nan=OnNaN(on_nan, on_nan_limit),
        self_critical=SelfCritical(**critical) if stage == "self-critical" else None,
        **others,
    )
    _refuse_others(found.model, others)
    return found


def changed_options(before: RunOptions, **given: Any) -> RunOptions:
    """Return the options of a resumed run, of which those in `CHANGEABLE` may be `given` anew."""
    values = _named(before)
    _check(given)
    _refuse_others(before.model, given)
    _refuse_self_critical(before.stage, given)
    for name, value in given.items():
        same = value == values[name] or (name, value) == ("features", "auto")
        if name not in CHANGEABLE and not same:
            raise ConfigurationError(
                f"{name} cannot be changed when a run is resumed (it was {values[name]}); these"
                f" can: {', '.join(CHANGEABLE)}, data, device, tensorboard"
            )
    after = run_options(**{**values, **{n: v for n, v in given.items() if n in CHANGEABLE}})
    return replace(after, schedule=replace(after.schedule, start=before.schedule.start))


def following_options(source: Run, **given: Any) -> RunOptions:
    """Return the options of a run that starts from another one's model, which it keeps."""
    _check(given)
    if "training" not in source.config:
        raise ConfigurationError(
            f"{source.folder} was imported; expected a run that xpcap train has made to start from"
        )
    if given.get("stage") == "self-critical" and given.get("dropout"):
        raise ConfigurationError("dropout goes with stage cross-entropy alone")
    before = options_of(source.folder, source.config)
    kept = {name: getattr(before, name) for name in (*_MODEL, "features", "feature_dtype")}
    for name in of_others(before.model):
        del kept[name]
    for name, value in kept.items():
        if name != "dropout" and given.get(name, value) != value:
            raise ConfigurationError(
                f"{name} cannot be changed when a run starts from another one (it was {value})"
            )
    return run_options(**{**kept, **given})


def _named(options: RunOptions) -> dict[str, Any]:
    """Return the arguments of `run_options` that give these options."""
    schedule, saving, on_nan = options.schedule, options.saving, options.on_nan
    left_out = ("schedule", "saving", "on_nan", "self_critical", *of_others(options.model))
    return {
        **{one.name: getattr(options, one.name) for one in fields(options)
           if one.name not in left_out},
        **({} if options.self_critical is None else asdict(options.self_critical)),
        "stage": options.stage,
        "epochs": schedule.epochs,
        "lr_decay": schedule.lr_decay,
        "schedule": "cosine" if schedule.cosine else "constant",
        "warmup": schedule.warmup,
        "clip": schedule.clip_norm or 0.0,
        "patience": schedule.patience,
        "save_every": saving.steps if saving.minutes is None else f"{saving.minutes:g}m",
        "keep": saving.keep,
        "on_nan": on_nan.policy,
        "on_nan_limit": on_nan.limit,
    }  # fmt: skip


def _check(options: Mapping[str, Any]) -> None:
    known = {n: p.default for n, p in inspect.signature(run_options).parameters.items()}
    also = (*fields(RunOptions), *fields(SelfCritical))
    known |= {one.name: one.default for one in also if one.name not in known}
    inner = ("others", "saving", "self_critical")
    check_options(options, {name: d for name, d in known.items() if name not in inner})


def _saved_every(value: int | str | None) -> tuple[int | None, float | None]:
    """Parse a number of steps, or one of minutes such as `10m`; the other is None."""
    text = str(value)
    try:
        if value is None:
            return None, None
        return (None, float(text[:-1])) if text.endswith("m") else (int(text), None)
    except ValueError as error:
        raise ConfigurationError(
            f"save_every {value!r} is neither a number of steps nor one of minutes, such as 500 or"
            " 10m"
        ) from error


def configuration(dataset: Dataset, options: RunOptions, feature_scale: float) -> dict[str, Any]:
    """Return the configuration of a run; `feature_scale` is for `ScalesFeatures`."""
    training = {**asdict(options), "features": dataset.kind}
    model = {theirs: training.pop(ours) for ours, theirs in _MODEL.items()}
    for name in of_others(options.model):
        del model[_MODEL[name]]
    if "max_length" in FAMILIES[options.model].options:
        model["max_length"] = dataset.max_words + 1  # with `<END>`
    return {
        "model": {"input_dim": dataset.feature_dim, **model, "seed": options.seed},
        "data": {**data_configuration(dataset), **digests(dataset.splits)},
        "training": {**training, "feature_scale": feature_scale},
    }


def options_of(path: Path, config: Mapping[str, Any]) -> RunOptions:
    """Return the options of a run; `CheckpointError` names its file if training has not made it."""
    try:
        training = dict(config["training"])
        del training["feature_scale"]
        for name in ("from_run", "stage"):  # the latter, which `self_critical` tells, in older runs
            training.pop(name, None)
        for name, kind in (("schedule", Schedule), ("saving", Saving), ("on_nan", OnNaN)):
            training[name] = kind(**training[name])
        if training.get("self_critical") is not None:
            training["self_critical"] = SelfCritical(**training["self_critical"])
        training["features"] = config["data"]["kind"]
        described = {"family": CaptioningRNN.family, **config["model"]}
        model = {ours: described[theirs] for ours, theirs in _MODEL.items() if theirs in described}
        return RunOptions(**training, **model)
    except (KeyError, TypeError, ValueError, AttributeError, XpcapError) as error:
        raise CheckpointError(f"{path}: expected the options of a training run: {error}") from error
