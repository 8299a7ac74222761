"""A recurrent captioner with attention to regions, in PyTorch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch_recurrent import Captioner, Images, cross_entropy

from xpcap.benchmark.workload import NULL, Workload


class AttentionCaptioner(Captioner):
    """The captioner that looks at regions: a cell, batched products and one loop over words.

    With `masked`, captions are sorted by length and each step has those that go on.
    """

    layer = ""

    def __init__(self, workload: Workload, masked: bool = False) -> None:
        super().__init__(workload, masked)
        size = workload.configuration
        self.grid = nn.Linear(size.features, size.hidden)
        self.query = nn.Linear(size.hidden, size.hidden)
        self.gate = nn.Linear(size.hidden, 1)
        self.context = nn.Linear(size.hidden, size.hidden, bias=False)
        if workload.scoring == "additive":
            self.w_score = nn.Parameter(torch.zeros(size.hidden))
        self.scoring = workload.scoring

    def _recurrent(self, workload: Workload) -> nn.Module:
        size = workload.configuration
        cell = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}[workload.cell]
        return cell(size.wordvec + size.hidden, size.hidden)

    def start(self, features: torch.Tensor, copies: int = 1) -> tuple[Any, Images]:
        """Return the first states, `copies` of each image, and the projected regions."""
        h0 = self.project(features.mean(dim=1)).repeat_interleave(copies, dim=0)
        state = (h0, torch.zeros_like(h0)) if self.cell == "lstm" else (h0,)
        return state, [self.grid(features)]

    def look(
        self, x: torch.Tensor, state: Any, grid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Read word vectors `(n, W)`; return h and z `(n, H)`, and the state.

        All captions of an image look at the same regions, which are not copied.
        """
        h = state[0]
        q = self.query(h).unflatten(0, (len(grid), -1))
        if self.scoring == "additive":
            scores = torch.tanh(grid[:, None] + q[:, :, None]) @ self.w_score
        else:
            scores = torch.bmm(q, grid.mT) / math.sqrt(q.shape[2])
        z = torch.bmm(scores.softmax(dim=2), grid).flatten(0, 1) * torch.sigmoid(self.gate(h))
        found = self.recurrent(torch.cat([x, z], dim=1), state if self.cell == "lstm" else h)
        state = found if self.cell == "lstm" else (found,)
        return state[0], z, state

    def step(self, words: torch.Tensor, state: Any, images: Images) -> tuple[torch.Tensor, Any]:
        """As for the other captioner."""
        h, z, state = self.look(self.embed(words[:, 0]), state, *images)
        return h + self.context(z), state

    def loss(
        self,
        features: torch.Tensor,
        captions: torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As for the other captioner."""
        N, T = captions.shape[0], captions.shape[1] - 1
        copies, order = N // len(features), None
        sizes = [N] * T
        if self.masked:
            lengths, order = (captions[:, 1:] != NULL).sum(dim=1).sort(descending=True)
            captions = captions[order]
            weights = None if weights is None else weights[order]
            longer = lengths[None, :] > torch.arange(T, device=lengths.device)[:, None]
            sizes = [n for n in longer.sum(dim=1).tolist() if n]
        if order is None:
            state, (grid,) = self.start(features, copies)
        elif copies == 1:
            state, (grid,) = self.start(features[order])
        else:  # regions are projected once
            state, (grid,) = self.start(features)
            images = order // copies
            state = tuple(part.index_select(0, images) for part in state)
            grid = grid.index_select(0, images)
        x, found = self.embed(captions[:, :-1]), []
        for t, n in enumerate(sizes):
            h, z, state = self.look(x[:n, t], tuple(part[:n] for part in state), grid[:n])
            found.append((h, z, captions[:n, t + 1]))
        h, z, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        scores = self.vocabulary(h + self.context(z))
        if weights is not None:
            weights = torch.cat([weights[:n] for n in sizes])
        return cross_entropy(scores, targets, weights) / N
