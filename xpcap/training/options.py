"""The options of a run, and its configuration, in which they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xpcap.data.dataset import Dataset
from xpcap.errors import CheckpointError, XpcapError
from xpcap.layers.dropout import check_rate
from xpcap.models.recurrent import CaptioningRNN, check_cell
from xpcap.optim import check_counts, check_positive, find_rule
from xpcap.runs.dataset import fingerprint
from xpcap.training.recovery import OnNaN
from xpcap.training.saving import Saving
from xpcap.training.trainer import Schedule

_MODEL = {
    "family": "family",
    "wordvec": "wordvec_dim",
    "hidden": "hidden_dim",
    "cell": "cell_type",
    "dropout": "dropout",
    "dtype": "dtype",
}


@dataclass(frozen=True)
class RunOptions:
    """The options of a run; one that is invalid for any data set raises `ConfigurationError`."""

    features: str = "auto"  # or "pca", "fc7"
    lazy: bool = False  # leave the features in their files
    feature_dtype: str = "float32"  # or "float16"
    max_train: int | None = None  # training captions, drawn at random; None takes all
    family: str = "recurrent"  # of the model, a key of `xpcap.models.FAMILIES`
    cell: str = "lstm"  # this and the next four: see `CaptioningRNN`
    hidden: int = 512
    wordvec: int = 256
    dropout: float = 0.0
    dtype: str = "float32"
    batch_size: int | None = None  # captions per step; None is 128, or all if there are fewer
    rule: str = "adam"  # a key of `xpcap.optim.RULES`
    lr: float = 1e-3  # learning rate
    precision: str = "float32"  # of matrix products, see `TrainingStep`
    schedule: Schedule = field(default_factory=Schedule)
    saving: Saving = field(default_factory=Saving)
    on_nan: OnNaN = field(default_factory=OnNaN)
    seed: int = 0  # of initial parameters, dropout, order and sampling
    threads: int | None = None  # that share each batch; None is the number of `use_threads`

    def __post_init__(self) -> None:
        if self.family == CaptioningRNN.family:
            check_cell(self.cell)
        check_rate(self.dropout)
        find_rule(self.rule)
        check_positive("lr", self.lr)
        check_counts(batch_size=self.batch_size, max_train=self.max_train)


def configuration(dataset: Dataset, options: RunOptions, feature_scale: float) -> dict[str, Any]:
    """Return the configuration of a run; `feature_scale` is for `ScalesFeatures`."""
    training = {**asdict(options), "features": dataset.kind}
    model = {theirs: training.pop(ours) for ours, theirs in _MODEL.items()}
    return {
        "model": {"input_dim": dataset.feature_dim, **model, "seed": options.seed},
        "data": {
            "folder": str(dataset.folder.resolve()),
            "kind": dataset.kind,
            "name": dataset.description["name"],
            "features": dataset.description.get("features"),
            "extractor": dataset.description.get("extractor"),
            "captions": fingerprint(dataset.splits),
        },
        "training": {**training, "feature_scale": feature_scale},
    }


def options_of(path: Path, config: Mapping[str, Any]) -> RunOptions:
    """Return the options of a run; `CheckpointError` names its file if training has not made it."""
    try:
        training = dict(config["training"])
        del training["feature_scale"]
        for name, kind in (("schedule", Schedule), ("saving", Saving), ("on_nan", OnNaN)):
            training[name] = kind(**training[name])
        training["features"] = config["data"]["kind"]
        described = {"family": CaptioningRNN.family, **config["model"]}
        model = {ours: described[theirs] for ours, theirs in _MODEL.items()}
        return RunOptions(**training, **model)
    except (KeyError, TypeError, ValueError, AttributeError, XpcapError) as error:
        raise CheckpointError(f"{path}: expected the options of a training run: {error}") from error
