"""The trainer and `adam` under the names and with the arguments of the CS231n assignment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from math import sqrt
from typing import Any

from xpcap.backend import Array, to_host
from xpcap.data.minibatch import Batch, sample_coco_minibatch
from xpcap.errors import ConfigurationError
from xpcap.kernels.updates import adam_update
from xpcap.models import CaptioningRNN
from xpcap.optim import RULES, Config, Optimizer, Rule, bias_corrected, take_step
from xpcap.options import check_counts
from xpcap.runs.checkpoint import TrainingState
from xpcap.training.trainer import Schedule, Trainer


def _corrected_rate(config: Config, rate: float, t: int) -> list[float]:
    """Put the correction of the second moment on the rate, and none under the root."""
    scale, rate, c1, c2 = bias_corrected(config, rate, t)
    return [scale, rate * sqrt(c2), c1, 1.0]


_ADAM = Rule(
    partial(adam_update, weight_decay=0.0),
    RULES["adam"].memory,
    {key: value for key, value in RULES["adam"].defaults.items() if key != "weight_decay"},
    _corrected_rate,
)


def adam(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Adam as the assignment has it: epsilon is added before the bias correction.

    m' = b1 m + (1 - b1) dw; v' = b2 v + (1 - b2) dw^2; t' = t + 1;
    w - rate sqrt(1 - b2^t') / (1 - b1^t') m' / (sqrt(v') + epsilon).

    So do Kingma and Ba in their section 2. `xpcap.optim.adam` and PyTorch add epsilon after it,
    which differs where gradients are small. Settings: `learning_rate` (0.001), `beta1` (0.9),
    `beta2` (0.999), `epsilon` (1e-8); state: `m`, `v`, `t`.
    """
    return take_step(_ADAM, w, dw, config)


class _Sampled:
    """Random minibatches of a `load_coco_data` dictionary, N_train // N per epoch."""

    def __init__(self, data: Mapping[str, Any], batch_size: int) -> None:
        self.data = data
        self.batch_size = batch_size

    def __len__(self) -> int:
        return max(int(self.data["train_captions"].shape[0]) // self.batch_size, 1)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        for _ in range(first, len(self)):
            captions, features, _ = sample_coco_minibatch(self.data, self.batch_size, "train")
            yield Batch(captions, features)


class CaptioningSolver:
    """Train a captioner on the dictionary that `load_coco_data` returns.

    Parameters
    ----------
    update_rule
        `"sgd"`, `"sgd_momentum"`, `"rmsprop"`, `"adam"`, which is this module's, or `"adamw"`.
    optim_config, updater_config
        Two names of its settings, such as `learning_rate`.
    lr_decay
        Learning-rate decay factor per epoch.
    batch_size, num_epochs
        N, and the number of epochs of `max(N_train // batch_size, 1)` iterations.
    print_every, verbose
        Print the loss every this many iterations, or never.

    Attributes
    ----------
    loss_history
        The loss of each iteration, in nats per caption.

    A copy (`copy.deepcopy`) or a pickle trains on from the same iteration, with its own model and
    data.
    """

    def __init__(
        self,
        model: CaptioningRNN,
        data: Mapping[str, Any],
        update_rule: str = "sgd",
        optim_config: Mapping[str, Any] | None = None,
        lr_decay: float = 1.0,
        batch_size: int = 100,
        num_epochs: int = 10,
        print_every: int = 10,
        verbose: bool = True,
        *,
        updater_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._arguments = (
            model, data, update_rule, optim_config or updater_config, lr_decay, batch_size,
            num_epochs, print_every, verbose,
        )  # fmt: skip
        if optim_config and updater_config:
            raise ConfigurationError("optim_config and updater_config are one setting; give one")
        check_counts(batch_size=batch_size, print_every=print_every)
        self.model = model
        self.data = data
        self.print_every = print_every
        self.verbose = verbose
        self.loss_history: list[float] = []
        self._num_epochs = num_epochs
        self._trainer = Trainer(
            model,
            _Sampled(data, batch_size),
            Optimizer(
                _ADAM if update_rule == "adam" else update_rule,
                **(optim_config or updater_config or {}),
            ),
            Schedule(epochs=num_epochs, lr_decay=lr_decay),
        )
        self._trainer.on("step", self._record)

    def __reduce__(self) -> tuple[Any, ...]:
        state = self._trainer.state()
        memory = {
            key: {name: to_host(value) for name, value in by_name.items()}
            for key, by_name in state.memory.items()
        }
        restored = dataclasses.replace(state, parameters={}, memory=memory)
        return type(self), self._arguments, (restored, self.loss_history)

    def __setstate__(self, state: tuple[TrainingState, list[float]]) -> None:
        progress, self.loss_history = state
        self._trainer.restore(dataclasses.replace(progress, parameters=self.model.params))

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        return self._trainer.epoch

    @property
    def optim_configs(self) -> dict[str, dict[str, Any]]:
        """Settings and optimizer state of each parameter."""
        config = self._trainer.optimizer.config
        _, memory = self._trainer.training_step.state()
        return {
            name: {**config, **{key: by_name[name] for key, by_name in memory.items()}}
            for name in self.model.params
        }

    def train(self) -> None:
        """Train for `num_epochs` more epochs."""
        schedule = self._trainer.schedule
        epochs = self._trainer.epoch + self._num_epochs
        self._trainer.schedule = dataclasses.replace(schedule, epochs=epochs)
        self.model.to(self.model.backend)  # parameters that are NumPy arrays
        self._trainer.run()

    def _record(self, trainer: Trainer) -> None:
        self.loss_history.append(float(trainer.training_step.loss))
        if self.verbose and (trainer.step - 1) % self.print_every == 0:
            total = trainer.schedule.epochs * len(trainer.batches)
            print(f"(Iteration {trainer.step} / {total}) loss: {self.loss_history[-1]:f}")


CaptioningTrainer = CaptioningSolver
