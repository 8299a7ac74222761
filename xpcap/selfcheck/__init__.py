"""Self-check of an installation: gradients of all layers and worked cases, on any device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from xpcap.backend import CPU, Backend
from xpcap.selfcheck.cases import (
    CAPTIONERS,
    LAYERS,
    SMALL,
    SMALL_SEED,
    Arguments,
    Check,
    LayerCase,
    captioner_gradients,
    on_device,
    run_layer,
    scaled_difference,
)
from xpcap.selfcheck.reference import reference_checks

__all__ = ["Check", "run"]

OUTPUT_LIMIT = 1e-10
GRADIENT_LIMIT = 1e-7


def run(backend: Backend) -> list[Check]:
    """Check gradients, worked cases and agreement with NumPy on a backend, in float64."""
    with backend.activate():
        return [
            *_layer_gradients(backend),
            *_captioner_gradients(backend),
            *reference_checks(backend),
            *(() if backend.xp is CPU.xp else _agreement(backend)),
        ]


def _drawn() -> Iterator[tuple[LayerCase, Arguments]]:
    for case in LAYERS:
        yield case, case.make_args(numpy.random.default_rng(SMALL_SEED), SMALL)


def _layer_gradients(backend: Backend) -> Iterator[Check]:
    for case, arguments in _drawn():
        for name, error in case.gradient_errors(backend, arguments).items():
            yield Check(f"gradient {case.name} d{name}", error, case.limit)


def _captioner_gradients(backend: Backend) -> Iterator[Check]:
    """Check whole captioners, each gradient in one direction, as some elements are tiny."""
    for captioner, (family, options) in CAPTIONERS.items():
        for dropout in (0.0, 0.25):
            found = captioner_gradients(backend, family, dropout, N=2, T=4, h=1e-5, **options)
            for name, (error, _) in found.items():
                what = f"gradient captioner {captioner} dropout={dropout} d{name}"
                yield Check(what, error, GRADIENT_LIMIT)


def _agreement(backend: Backend) -> Iterator[Check]:
    for case, arguments in _drawn():
        ours = run_layer(case, on_device(backend, arguments))
        for name, expected in run_layer(case, arguments).items():
            limit = OUTPUT_LIMIT if name.startswith("out") else GRADIENT_LIMIT
            what = f"agreement with {CPU.name} {case.name} {name}"
            yield Check(what, scaled_difference(ours[name], expected), limit)
