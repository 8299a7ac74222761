"""Update rules, gradient clipping and learning-rate schedules.

Each rule is a function `rule(w, dw, config) -> (next_w, config)` of a parameter and its gradient,
of one shape, neither of which it changes. `config` holds its settings and its state; defaults and
zeros are filled in, and the same dict is returned with the new state. A `ConfigurationError` is
raised if it has a setting that the rule does not have, or a value out of range; a `ShapeError` if
arrays are not floating or of another shape. `Optimizer` runs the same rules in place, on all
parameters at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy

from xpcap import threads
from xpcap.backend import Array, Namespace, is_host, namespace
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.kernels.updates import (
    SPAN,
    adam_update,
    clip_scale,
    momentum_update,
    rmsprop_update,
    sgd_update,
)
from xpcap.options import check_counts, check_number

Config: TypeAlias = dict[str, Any]


def _scale_and_rate(config: Config, rate: float, t: int) -> list[float]:
    return [1.0, rate]


def bias_corrected(config: Config, rate: float, t: int) -> list[float]:
    """Return scale 1, rate, and Adam's bias corrections 1 - beta^t of both moments."""
    return [1.0, rate, 1 - config["beta1"] ** t, 1 - config["beta2"] ** t]


class Rule(NamedTuple):
    """An update rule: an operation, the names of its state arrays (`memory`) and its settings.

    `learning_rate` may change from step to step; the other settings are keywords of the operation.
    `numbers(config, rate, t)` are the operation's own `settings` of step `t >= 1`.
    """

    update: Callable[..., None]
    memory: tuple[str, ...]
    defaults: Config
    numbers: Callable[[Config, float, int], list[float]] = _scale_and_rate


INTERVALS = {
    "learning_rate": "[0, inf)",
    "momentum": "[0, 1]",
    "decay_rate": "[0, 1)",
    "beta1": "[0, 1)",
    "beta2": "[0, 1)",
    "epsilon": "[1e-30, 1e30]",
    "weight_decay": "[0, 1e30]",
}
"""Where settings of the rules must lie."""

_ADAM = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
RULES = {
    "sgd": Rule(sgd_update, (), {"learning_rate": 1e-2}),
    "sgd_momentum": Rule(momentum_update, ("velocity",), {"learning_rate": 1e-2, "momentum": 0.9}),
    "rmsprop": Rule(
        rmsprop_update, ("cache",), {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8}
    ),
    "adam": Rule(adam_update, ("m", "v"), {**_ADAM, "weight_decay": 0.0}, bias_corrected),
    "adamw": Rule(adam_update, ("m", "v"), {**_ADAM, "weight_decay": 1e-2}, bias_corrected),
}


def find_rule(name: str) -> Rule:
    """Return the update rule of that name."""
    if name not in [*RULES]:
        raise ConfigurationError(f"rule '{name}' is unknown; expected {', '.join(RULES)}")
    return RULES[name]


def _check_settings(rule: Rule, settings: Mapping[str, Any], *others: str) -> None:
    """Refuse settings that a rule does not have, and values out of range; `others` are no settings.

    Without an epsilon, or with one that float32 rounds to 0, a zero gradient is divided by zero.
    """
    for name, value in settings.items():
        if name in others:
            continue
        if name not in rule.defaults:
            raise ConfigurationError(
                f"optimizer setting '{name}' is unknown; expected {', '.join(rule.defaults)}"
            )
        if name in INTERVALS:
            check_number(name, value, INTERVALS[name])


def _apply(
    rule: Rule,
    xp: Namespace,
    w: Array,
    dw: Array,
    config: Config,
    settings: Array,
    decayed: int | None = None,
) -> None:
    """Update `w (P,)` and the state in `config` in place; see `Optimizer.apply`."""
    keywords = {key: config[key] for key in rule.defaults if key != "learning_rate"}
    memory = [config[name] for name in rule.memory]
    if decayed is None or not keywords.get("weight_decay"):
        decayed = len(w)

    def update_part(first: int, last: int, **others: float) -> None:
        if first < last:
            arrays = (array[first:last] for array in (w, dw, *memory))
            rule.update(xp, *arrays, settings, **{**keywords, **others})

    def update(span: slice) -> None:
        middle = min(max(span.start, decayed), span.stop)
        update_part(span.start, middle)
        update_part(middle, span.stop, weight_decay=0.0)

    if is_host(namespace(w)):
        threads.run([partial(update, part) for part in threads.spans(len(w), SPAN)])
    else:
        update(slice(0, len(w)))


def take_step(rule: Rule, w: Array, dw: Array, config: Config | None) -> tuple[Array, Config]:
    """Take one step of a rule without changing `w`, `dw` or the arrays of the old state."""
    xp = namespace(w, dw)
    config = {} if config is None else config
    if not isinstance(config, MutableMapping):
        raise ConfigurationError(f"config is {config!r:.40}; expected a dict of settings")
    _check_settings(rule, config, *rule.memory, "t")
    check_counts(0, t=config.get("t", 0))
    arrays = {"w": w, "dw": dw, **{key: config.get(key) for key in rule.memory}}
    for name, array in arrays.items():
        if array is not None and (array.dtype.kind != "f" or array.shape != w.shape):
            raise ShapeError(
                f"{name} is {array.dtype} {array.shape}; expected floating numbers {w.shape}, as w"
            )
    for key, value in rule.defaults.items():
        config.setdefault(key, value)
    next_w = w.copy()
    memory = {
        key: xp.zeros(w.shape, w.dtype) if config.get(key) is None else config[key].copy()
        for key in rule.memory
    }
    flat = {**config, **{key: value.reshape(-1) for key, value in memory.items()}}
    flat["t"] = flat.get("t", 0) + 1
    numbers = rule.numbers(flat, flat["learning_rate"], flat["t"])
    settings = xp.asarray(numpy.array(numbers, w.dtype))
    _apply(rule, xp, next_w.reshape(-1), dw.reshape(-1), flat, settings)
    config.update(flat)
    config.update(memory)
    return next_w, config


def sgd(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Gradient descent: w - rate dw.

    Settings: `learning_rate` (0.01).
    """
    return take_step(RULES["sgd"], w, dw, config)


def sgd_momentum(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Gradient descent with momentum: v' = momentum v - rate dw; w + v'.

    Settings: `learning_rate` (0.01), `momentum` (0.9); state: `velocity`.
    """
    return take_step(RULES["sgd_momentum"], w, dw, config)


def rmsprop(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Divide by a running root mean square (Tieleman and Hinton 2012).

    s' = decay s + (1 - decay) dw^2; w - rate dw / (sqrt(s') + epsilon).

    Settings: `learning_rate` (0.01), `decay_rate` (0.99), `epsilon` (1e-8); state: `cache`, s.
    """
    return take_step(RULES["rmsprop"], w, dw, config)


def adam(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Adam (Kingma and Ba, ICLR 2015), with bias correction.

    m' = b1 m + (1 - b1) dw; v' = b2 v + (1 - b2) dw^2; t' = t + 1;
    w - rate (m' / (1 - b1^t')) / (sqrt(v' / (1 - b2^t')) + epsilon).

    Settings: `learning_rate` (0.001), `beta1` (0.9), `beta2` (0.999), `epsilon` (1e-8),
    `weight_decay` (0, see `adamw`); state: `m`, `v`, `t`.
    """
    return take_step(RULES["adam"], w, dw, config)


def adamw(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019).

    As `adam`, less rate weight_decay w; `weight_decay` is 0.01 by default.
    """
    return take_step(RULES["adamw"], w, dw, config)


class Optimizer:
    """One update rule for all parameters, stored in one array.

    It is given by name, or as a `Rule`, with its settings.

    `learning_rate` is the initial one, without a schedule's factor; `config` holds the settings,
    the number `t` of steps taken and, after the first, the optimizer state: arrays `(P,)`.
    """

    def __init__(self, rule: str | Rule, **settings: Any) -> None:
        self._rule = find_rule(rule) if isinstance(rule, str) else rule
        _check_settings(self._rule, settings)
        # plain numbers: a NumPy float64 among them would turn float32 parameters into float64
        plain = {
            name: value.item() if isinstance(value, numpy.generic) else value
            for name, value in settings.items()
        }
        self.config: Config = {"t": 0, **self._rule.defaults, **plain}
        self.learning_rate: float = self.config["learning_rate"]
        check_number("learning_rate", self.learning_rate, "(0, inf)")

    @property
    def memory(self) -> dict[str, Array]:
        """The arrays `(P,)` of the optimizer state; empty before the first step."""
        return {name: self.config[name] for name in self._rule.memory if name in self.config}

    @property
    def numbers(self) -> dict[str, float]:
        """Settings and the number of steps: `config` without `memory`."""
        return {name: value for name, value in self.config.items() if name not in self.memory}

    def update(
        self,
        xp: Namespace,
        w: Array,
        dw: Array,
        factor: float = 1.0,
        scale: Any = 1.0,
        decayed: int | None = None,
    ) -> None:
        """Take one step: change the parameters `w (P,)` in place, by their gradients `dw (P,)`.

        The schedule's `factor` is for the learning rate; clipping's `scale`, a number or a 0-d
        array, for the gradients. Weight decay is for the first `decayed` parameters, or all if that
        is None. The namespace `xp` chooses the kernel.
        """
        self.count(factor)
        settings = xp.asarray(numpy.array(self.settings(self.config["t"], factor), w.dtype))
        settings[0] = scale
        self.apply(xp, w, dw, settings, decayed)

    def settings(self, t: int, factor: float) -> list[float]:
        """Return the numbers of step `t >= 1`: scale 1, rate, and Adam's bias corrections."""
        return self._rule.numbers(self.config, self.learning_rate * float(factor), t)

    def count(self, factor: float) -> None:
        """Record a step and its learning rate in `config`."""
        self.config["t"] += 1
        self.config["learning_rate"] = self.learning_rate * float(factor)

    def apply(
        self, xp: Namespace, w: Array, dw: Array, settings: Array, decayed: int | None = None
    ) -> None:
        """Update the parameters as `update` does, with its `settings` on the device.

        Their first number is the factor of clipping.
        """
        for name in self._rule.memory:
            if name not in self.config:
                self.config[name] = xp.zeros_like(w)
        _apply(self._rule, xp, w, dw, self.config, settings, decayed)


def clip_by_global_norm(
    gradients: dict[str, Array], max_norm: float
) -> tuple[dict[str, Array], Array]:
    """Return gradients, all scaled by min(1, max_norm / norm), and their joint norm before.

    The norm is a 0-d array. `max_norm` is positive, at most 1e30, else `ConfigurationError`.
    """
    check_number("max_norm", max_norm, "(0, 1e30]")
    xp = namespace(*gradients.values())
    norm = xp.sqrt(sum((g * g).sum() for g in gradients.values()))
    scale = clip_scale(xp, norm, max_norm)
    return {name: g * scale for name, g in gradients.items()}, norm


def cosine(progress: float) -> float:
    """Return the factor of a cosine schedule (Loshchilov and Hutter, ICLR 2017), without restarts.

    It is (1 + cos(pi progress)) / 2, for a share `progress` of all steps from 0 to 1.
    """
    return (1 + math.cos(math.pi * progress)) / 2
