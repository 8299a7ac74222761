"""Update rules, gradient clipping and learning-rate schedules.

A rule is `rule(w, dw, config) -> (next_w, config)`: `config` holds its settings and what it
remembers, and is filled with defaults where it is silent. Neither `w` nor `dw` is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy

from xpcap.backend import Array, namespace
from xpcap.errors import ConfigurationError

Config: TypeAlias = dict[str, Any]
Rule: TypeAlias = Callable[[Array, Array, "Config | None"], "tuple[Array, Config]"]


LEARNING_RATES = {"sgd": 1e-2, "sgd_momentum": 1e-2, "rmsprop": 1e-2, "adam": 1e-3, "adamw": 1e-3}
"""Where a config does not say."""


def _with_defaults(config: Config | None, **defaults: Any) -> Config:
    config = {} if config is None else config
    for name, value in defaults.items():
        config.setdefault(name, value)
    return config


def sgd(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Take a step down the gradient: w - rate dw.

    Parameters
    ----------
    w, dw
        A parameter and its gradient, of one shape.
    config
        `learning_rate` (0.01).

    Returns
    -------
    next_w, config
        The new parameter, and the same config.
    """
    config = _with_defaults(config, learning_rate=LEARNING_RATES["sgd"])
    return w - config["learning_rate"] * dw, config


def sgd_momentum(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Gradient descent with momentum: v' = momentum v - rate dw; w + v'.

    Parameters
    ----------
    w, dw
        A parameter and its gradient, of one shape.
    config
        `learning_rate` (0.01), `momentum` (0.9), `velocity` (zeros).

    Returns
    -------
    next_w, config
        The new parameter, and the config with the new velocity.
    """
    config = _with_defaults(config, learning_rate=LEARNING_RATES["sgd_momentum"], momentum=0.9)
    velocity = config.get("velocity")
    if velocity is None:
        velocity = namespace(w).zeros_like(w)
    config["velocity"] = config["momentum"] * velocity - config["learning_rate"] * dw
    return w + config["velocity"], config


def rmsprop(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Divide by a running root mean square (Tieleman and Hinton 2012).

    s' = decay s + (1 - decay) dw^2; w - rate dw / (sqrt(s') + epsilon).

    Parameters
    ----------
    w, dw
        A parameter and its gradient, of one shape.
    config
        `learning_rate` (0.01), `decay_rate` (0.99), `epsilon` (1e-8), `cache` (s, zeros).

    Returns
    -------
    next_w, config
        The new parameter, and the config with the new cache.
    """
    config = _with_defaults(
        config, learning_rate=LEARNING_RATES["rmsprop"], decay_rate=0.99, epsilon=1e-8
    )
    xp = namespace(w, dw)
    decay = config["decay_rate"]
    cache = config.get("cache")
    if cache is None:
        cache = xp.zeros_like(w)
    config["cache"] = decay * cache + (1 - decay) * dw * dw
    scale = xp.sqrt(config["cache"]) + config["epsilon"]
    return w - config["learning_rate"] * dw / scale, config


def adam(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Adam (Kingma and Ba, ICLR 2015), with bias correction.

    m' = b1 m + (1 - b1) dw; v' = b2 v + (1 - b2) dw^2; t' = t + 1;
    w - rate (m' / (1 - b1^t')) / (sqrt(v' / (1 - b2^t')) + epsilon).

    Parameters
    ----------
    w, dw
        A parameter and its gradient, of one shape.
    config
        `learning_rate` (0.001), `beta1` (0.9), `beta2` (0.999), `epsilon` (1e-8), `m`, `v`
        (zeros), `t` (0).

    Returns
    -------
    next_w, config
        The new parameter, and the config with the new moments and count.
    """
    config = _with_defaults(config, learning_rate=LEARNING_RATES["adam"])
    direction, config = _adam_direction(w, dw, config)
    return w - config["learning_rate"] * direction, config


def adamw(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019).

    As `adam`, and `rate weight_decay w` is subtracted beside it.

    Parameters
    ----------
    w, dw
        A parameter and its gradient, of one shape.
    config
        As for `adam`, and `weight_decay` (0.01).

    Returns
    -------
    next_w, config
        The new parameter, and the config with the new moments and count.
    """
    config = _with_defaults(config, learning_rate=LEARNING_RATES["adamw"], weight_decay=1e-2)
    direction, config = _adam_direction(w, dw, config)
    return w - config["learning_rate"] * (direction + config["weight_decay"] * w), config


def _adam_direction(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    config = _with_defaults(config, beta1=0.9, beta2=0.999, epsilon=1e-8, m=None, v=None, t=0)
    xp = namespace(w, dw)
    b1, b2 = config["beta1"], config["beta2"]
    m = xp.zeros_like(w) if config["m"] is None else config["m"]
    v = xp.zeros_like(w) if config["v"] is None else config["v"]
    config["t"] = t = config["t"] + 1
    config["m"] = m = b1 * m + (1 - b1) * dw
    config["v"] = v = b2 * v + (1 - b2) * dw * dw
    return (m / (1 - b1**t)) / (xp.sqrt(v / (1 - b2**t)) + config["epsilon"]), config


RULES: dict[str, Rule] = {
    "sgd": sgd,
    "sgd_momentum": sgd_momentum,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": adamw,
}


def find_rule(name: str) -> Rule:
    """Return the update rule of that name.

    Raises
    ------
    ConfigurationError
        It names the rules there are.
    """
    if name not in RULES:
        raise ConfigurationError(f"update rule '{name}' is unknown; expected {', '.join(RULES)}")
    return RULES[name]


class Optimizer:
    """One update rule for many parameters, each with a config of its own.

    Parameters
    ----------
    rule
        The name of an update rule.
    **settings
        What every parameter's config starts from: `beta1=0.8`, say.

    Attributes
    ----------
    learning_rate
        Of all parameters, before a schedule's factor: `settings`' or the rule's own default.
    configs
        By parameter, what the rule remembers of it.

    Raises
    ------
    ConfigurationError
        If the rule is unknown, or the learning rate not a finite positive number.
    """

    def __init__(self, rule: str, **settings: Any) -> None:
        self._rule = find_rule(rule)
        # plain numbers: a NumPy float64 among them would turn float32 parameters into float64
        plain = {
            name: float(value) if isinstance(value, numpy.floating) else value
            for name, value in settings.items()
        }
        self._settings = {"learning_rate": LEARNING_RATES[rule], **plain}
        self.learning_rate: float = self._settings["learning_rate"]
        check_positive("learning rate", self.learning_rate)
        self.configs: dict[str, Config] = {}

    def update(
        self, params: dict[str, Array], gradients: dict[str, Array], factor: float = 1.0
    ) -> None:
        """Replace every parameter by its next value.

        Parameters
        ----------
        params
            By name; the arrays are replaced, not changed.
        gradients
            With the same keys.
        factor
            What a schedule multiplies the learning rate by in this step.
        """
        for name, gradient in gradients.items():
            config = self.configs.setdefault(name, dict(self._settings))
            config["learning_rate"] = self.learning_rate * float(factor)
            params[name], self.configs[name] = self._rule(params[name], gradient, config)


def clip_by_global_norm(
    gradients: dict[str, Array], max_norm: float
) -> tuple[dict[str, Array], Array]:
    """Shrink all gradients together so that their joint norm is at most `max_norm`.

    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013).

    Parameters
    ----------
    gradients
        By name, of any shapes.
    max_norm
        The largest norm allowed, positive.

    Returns
    -------
    clipped, norm
        New arrays (all scaled by min(1, max_norm / norm)), and the norm before, a 0-d array.
    """
    xp = namespace(*gradients.values())
    norm = xp.sqrt(sum((g * g).sum() for g in gradients.values()))
    scale = float(max_norm) / xp.maximum(norm, float(max_norm))
    return {name: g * scale for name, g in gradients.items()}, norm


def cosine(progress: float) -> float:
    """Return the factor of a cosine schedule (Loshchilov and Hutter, ICLR 2017), without restarts.

    Parameters
    ----------
    progress
        The share of all steps already taken, 0 to 1.

    Returns
    -------
    float
        From 1 down to 0: (1 + cos(pi progress)) / 2.
    """
    return (1 + math.cos(math.pi * progress)) / 2


def check_positive(name: str, value: Any) -> None:
    """Check that a setting is a finite positive number.

    Raises
    ------
    ConfigurationError
        It names the setting and the value.
    """
    if not (isinstance(value, (int, float, numpy.floating)) and math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} must be a finite positive number, got {value}")
