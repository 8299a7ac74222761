"""What is timed: xpcap, and its matrix products alone.

On an idle machine the products are a lower bound for any program that computes them with the same
BLAS. On a busy one they are not: BLAS's threads wait for each other by spinning (`xpcap.threads`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy

from xpcap import threads
from xpcap.backend import CPU, Array, Backend, is_host
from xpcap.benchmark.workload import BEAM, MAX_LENGTH, NULL, Workload
from xpcap.data.minibatch import Batch
from xpcap.decoding import Beam, Constraints, beam_search
from xpcap.kernels import fastest
from xpcap.kernels.graphs import Repeated
from xpcap.layers.affine import product
from xpcap.layers.multi_head import stacked_product
from xpcap.layers.sequences import Sequences
from xpcap.models import CaptioningRNN, CaptionModel, Transformer
from xpcap.models.generation import decoding_spans
from xpcap.models.packed_batch import pack_captions
from xpcap.optim import Optimizer
from xpcap.training.resident import ResidentStep
from xpcap.training.shared import SharedLoss
from xpcap.training.step import TrainingStep


class Ours:
    """Training steps, losses with their gradients, and decoding.

    `dtype` is that of all floating-point arrays, `precision` that of the training step's products
    (see `TrainingStep`); `gradients` are those of the last `loss`, by parameter.
    """

    def __init__(
        self,
        workload: Workload,
        backend: Backend,
        dtype: type = numpy.float32,
        precision: str = "float32",
    ) -> None:
        self.workload = workload
        self.model = workload.model(backend, dtype)
        optimizer, size = Optimizer("adam", learning_rate=1e-3), workload.configuration.batch_size
        self._resident: Iterator[Batch] | None = None
        if backend.device is None:
            self._step = TrainingStep(self.model, optimizer)
        else:
            step = ResidentStep(self.model, optimizer, workload.split, size, precision=precision)
            factors = [1.0] * len(workload)
            epochs = (step.epoch(workload, n, 0, 0, factors) for n in itertools.count())
            self._resident = itertools.chain.from_iterable(epochs)
        self._packed = SharedLoss(self.model)
        xp = backend.xp
        self.gradients = {name: xp.empty_like(p) for name, p in self.model.params.items()}
        self.dtype, self.precision = dtype, precision

    def train(self, k: int) -> None:
        """Take a training step on minibatch k; on a GPU, on the next one in device memory."""
        if self._resident is None:
            self._step(self.workload.batch(k), k, 1.0)
        else:
            next(self._resident)

    def loss(self, k: int) -> Array:
        """Compute the k-th minibatch's loss and gradients."""
        batch = self.workload.batch(k)
        features = self.model.backend.to_device(batch.features)
        return self._packed.loss(features, batch.captions, 0, self.gradients)

    def decode(self, k: int) -> Array:
        """Caption N images greedily."""
        model, features = self._decoder
        return model.sample(features, MAX_LENGTH)

    def beam(self, k: int) -> tuple[Array, Array]:
        """Caption N images by beam search; return words `(N, T)` and log-probabilities `(N,)`."""
        model, features = self._decoder
        beam = Beam(BEAM, constraints=Constraints(max_length=MAX_LENGTH - 1))
        spans = decoding_spans(model, len(features))
        tasks = [functools.partial(beam_search, model, features[span], beam) for span in spans]
        found, concatenate = threads.run(tasks), model.backend.xp.concatenate
        words, _, totals = (concatenate(parts)[:, 0] for parts in zip(*found, strict=True))
        return words, totals

    @functools.cached_property
    def _decoder(self) -> tuple[CaptionModel, Array]:
        """The model to decode with, and features."""
        backend, images = self.model.backend, self.workload.images_to_decode()
        model = self.workload.decoding_model(backend, self.dtype)
        return model, backend.to_device(images, self.dtype)


def products(workload: Workload, xp: Any) -> Products | TransformerProducts:
    """Return the matrix products of a workload."""
    return (TransformerProducts if workload.cell == Transformer.family else Products)(workload, xp)


class Products:
    """The matrix products alone, on the rows and words that are not padding.

    On a GPU, every call replays those of the first minibatch as a CUDA graph.
    """

    def __init__(self, workload: Workload, xp: Any) -> None:
        self._workload = workload
        self._xp = xp = fastest(xp)
        size, model = workload.configuration, workload.model("cpu")
        assert isinstance(model, CaptioningRNN)
        self._gates = len(model.cell.gates) * size.hidden
        rows = size.batch_size * size.steps
        words = min(rows, size.vocabulary)
        sizes = {
            "images": (size.batch_size, size.features),
            "h0": (size.batch_size, size.hidden),
            "projection": (size.features, size.hidden),
            "vectors": (words, size.wordvec),
            "projected": (words, self._gates),
            "input": (size.wordvec, self._gates),
            "h": (rows, size.hidden),
            "ah": (rows, self._gates),
            "recurrent": (size.hidden, self._gates),
            "scores": (rows, size.vocabulary),
            "vocabulary": (size.hidden, size.vocabulary),
        }
        rng = numpy.random.default_rng(0)
        self._arrays = {
            name: xp.asarray(rng.standard_normal(shape, dtype=numpy.float32))
            for name, shape in sizes.items()
        }
        captions = workload.decoding_model(CPU).sample(workload.images_to_decode(), MAX_LENGTH)
        self._distinct = len(numpy.unique(captions))
        self._active = [int(count) for count in (captions != NULL).sum(axis=0) if count]
        self._out = {name: xp.empty(shape, numpy.float32) for name, shape in sizes.items()}
        self._training, self._decoding = Repeated(xp, numpy.float32), Repeated(xp, numpy.float32)

    def train(self, k: int) -> None:
        """Compute the products of the k-th minibatch's training step."""
        batch = k if is_host(self._xp) else 0
        self._training(lambda: self._train(batch))

    loss = train

    def decode(self, k: int) -> None:
        """Compute the products of decoding N captions."""
        self._decoding(self._decode)

    def _train(self, k: int) -> None:
        captions = self._workload.split.captions[self._workload.rows(k)]
        packed = pack_captions(captions, NULL, numpy.float32, numpy.asarray)
        M, D = packed.packing.total, len(numpy.unique(packed.words))
        steps = packed.packing.rows

        self._product("images", "projection", "h0")
        self._product("vectors", "input", "projected", slice(D))
        for rows in steps:
            self._product("h", "recurrent", "ah", rows)
        self._product("h", "vocabulary", "scores", slice(M))
        self._product("scores", "vocabulary", "h", slice(M), transposed="second")
        self._product("h", "scores", "vocabulary", slice(M), transposed="first")
        for rows in steps:
            self._product("ah", "recurrent", "h", rows, transposed="second")
        self._product("h", "ah", "recurrent", slice(M), transposed="first")
        self._product("vectors", "projected", "input", slice(D), transposed="first")
        self._product("projected", "input", "vectors", slice(D), transposed="second")
        self._product("images", "h0", "projection", transposed="first")

    def _decode(self) -> None:
        self._product("images", "projection", "h0")
        self._product("vectors", "input", "projected", slice(self._distinct))
        for count in self._active:
            self._product("h", "recurrent", "ah", slice(count))
            self._product("h", "vocabulary", "scores", slice(count))

    def _product(
        self, a: str, b: str, out: str, rows: slice = slice(None), transposed: str = ""
    ) -> None:
        """Compute `a b`, `a b^T` or `a^T b` on some rows of the batch."""
        left, right, result = self._arrays[a][rows], self._arrays[b], self._out[out]
        if transposed == "first":
            left, right = left.T, right[rows]
        else:
            right = right.T if transposed == "second" else right
            result = result[rows]
        product(self._xp, left, right, result)


class TransformerProducts:
    """The matrix products of a Transformer alone, on the words that are not padding.

    `operations` are the floating-point operations of the last call, 2 M K N for each product of
    `(M, K)` and `(K, N)`. Keys and values of regions are not projected; see
    `layers.cross_attention`.
    """

    operations = 0

    def __init__(self, workload: Workload, xp: Any) -> None:
        self._workload, self._size = workload, workload.configuration
        self._xp = fastest(xp)
        captions = workload.decoding_model(CPU).sample(workload.images_to_decode(), MAX_LENGTH)
        self._active = [int(count) for count in (captions != NULL).sum(axis=0) if count]
        size, N = self._size, self._size.batch_size
        rows = N * max(size.steps, size.regions, 1)
        widest = max(size.features, 4 * size.hidden, size.heads * size.hidden, size.vocabulary)
        most = widest * max(rows, size.features, 4 * size.hidden)
        rng = numpy.random.default_rng(0)
        self._memory = [xp.asarray(rng.standard_normal(most, numpy.float32)) for _ in range(3)]

    def train(self, k: int) -> None:
        """Compute the products of the k-th minibatch's training step."""
        captions = self._workload.split.captions[self._workload.rows(k)]
        packing = pack_captions(captions, NULL, numpy.float32, numpy.asarray).packing
        groups = [(of.sequences.stop - of.sequences.start, of.length, of.length)
                  for of in Sequences.of(packing).groups]  # fmt: skip
        self.operations = 0
        D, H = self._size.features, self._size.hidden
        regions = self._size.batch_size * max(self._size.regions, 1)
        self._multiply((regions, D), (D, H))
        self._multiply((D, regions), (regions, H))
        for M, K, N in self._affine(packing.total):
            self._multiply((M, K), (K, N))
            self._multiply((K, M), (M, N))
            self._multiply((M, N), (N, K))
        for lead, T, L, d in self._attention(groups):
            for _ in range(2):  # the weights are computed again
                self._multiply((*lead, T, d), (*lead, d, L))
            self._multiply((*lead, T, L), (*lead, L, d))
            self._multiply((*lead, T, d), (*lead, d, L))
            self._multiply((*lead, T, L), (*lead, L, d))
            for _ in range(2):
                self._multiply((*lead, L, T), (*lead, T, d))

    loss = train

    def decode(self, k: int) -> None:
        """Compute the products of decoding N captions."""
        self.operations = 0
        D, H = self._size.features, self._size.hidden
        self._multiply((self._size.batch_size * max(self._size.regions, 1), D), (D, H))
        for t, count in enumerate(self._active, 1):
            for M, K, N in self._affine(count):
                self._multiply((M, K), (K, N))
            for lead, T, L, d in self._attention([(count, 1, t)]):
                self._multiply((*lead, T, d), (*lead, d, L))
                self._multiply((*lead, T, L), (*lead, L, d))

    def _affine(self, M: int) -> Iterator[tuple[int, int, int]]:
        """Yield M, K, N of the forward products of M words.

        Of each two products of a head, that by the transposed `W_key` is the other one's gradient.
        """
        H, A = self._size.hidden, self._size.heads
        for _ in range(self._size.layers):
            yield from ((M, H, N) for N in (3 * H, H, H, H, 4 * H))
            yield from 2 * A * [(M, H, H // A)]
            yield M, 4 * H, H
        yield M, H, self._size.vocabulary

    def _attention(
        self, groups: Sequence[tuple[int, int, int]]
    ) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
        """Yield the shapes of attention in groups of G captions of T words that see as many others.

        They are the leading axes, the numbers of queries and of keys, and their width.
        """
        H, A = self._size.hidden, self._size.heads
        for _ in range(self._size.layers):
            for G, T, others in groups:
                yield (G, A), T, others, H // A
                yield (G,), T * A, max(self._size.regions, 1), H

    def _multiply(self, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        """Multiply the last two axes of arrays of these shapes."""
        shapes = a, b, (*a[:-1], b[-1])
        found = [
            of[: math.prod(shape)].reshape(shape)
            for of, shape in zip(self._memory, shapes, strict=True)
        ]
        (product if len(a) == 2 else stacked_product)(self._xp, *found)
        self.operations += 2 * math.prod(a) * b[-1]
