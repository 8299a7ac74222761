"""A recurrent captioner in PyTorch by its own layers, with and without scores of padding."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import nn

from xpcap.backend import to_host
from xpcap.benchmark.workload import END, MAX_LENGTH, NULL, START, Workload

Images = list[torch.Tensor]  # what decoding needs of them, each with a row for each image
ORDER = {"rnn": (0,), "gru": (0, 1, 2), "lstm": (0, 1, 3, 2)}  # of our gates in PyTorch's layers


class Captioner(nn.Module):
    """Embedding, a recurrent layer of cuDNN or oneDNN, and two affine layers.

    Parameters
    ----------
    workload
        Sizes and the kind of cell.
    masked
        Compute no scores where there is no target, and draw words without `torch.multinomial`.
    """

    layer = "_l0"  # ends the names of the recurrent layer's parameters

    def __init__(self, workload: Workload, masked: bool = False) -> None:
        super().__init__()
        self.masked = masked
        size = workload.configuration
        self.cell = workload.cell
        self.project = nn.Linear(size.features, size.hidden)
        self.embed = nn.Embedding(size.vocabulary, size.wordvec)
        self.recurrent = self._recurrent(workload)
        self.vocabulary = nn.Linear(size.hidden, size.vocabulary)

    def _recurrent(self, workload: Workload) -> nn.Module:
        size = workload.configuration
        layer = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[workload.cell]
        return layer(size.wordvec, size.hidden, batch_first=True)

    @property
    def second_bias(self) -> nn.Parameter:
        """The bias that only a GRU needs."""
        return getattr(self.recurrent, f"bias_hh{self.layer}")

    def state(self, features: torch.Tensor, copies: int = 1) -> Any:
        """Return the recurrent layer's first state, `copies` of each image."""
        h0 = self.project(features).repeat_interleave(copies, dim=0)[None]
        return (h0, torch.zeros_like(h0)) if self.cell == "lstm" else h0

    def start(self, features: torch.Tensor, copies: int = 1) -> tuple[Any, Images]:
        """Return the first states, and what else decoding needs of the images."""
        return self.state(features, copies), []

    def step(self, words: torch.Tensor, state: Any, images: Images) -> tuple[torch.Tensor, Any]:
        """Read a word `(R, 1)` of each caption; return what gives the scores `(R, H)`.

        The captions of an image, one or as many for each, are one after another.
        """
        h, state = self.recurrent(self.embed(words), state)
        return h[:, 0], state

    def take(self, state: Any, rows: torch.Tensor) -> Any:
        """Return the states of these captions."""
        if isinstance(state, tuple):
            return tuple(part.index_select(-2, rows) for part in state)
        return state.index_select(-2, rows)

    def loss(
        self,
        features: torch.Tensor,
        captions: torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the cross entropy, summed over words and averaged over captions.

        Each image has as many captions, one after another. Each caption may have a weight.
        """
        copies = len(captions) // len(features)
        h, _ = self.recurrent(self.embed(captions[:, :-1]), self.state(features, copies))
        targets = captions[:, 1:]
        if weights is not None:
            weights = weights.repeat_interleave(targets.shape[1])
        if self.masked:  # no scores of padding; how many rows are left, a GPU has to tell the host
            counted = targets != NULL
            h, targets = h[counted], targets[counted]
            weights = None if weights is None else weights[counted.flatten()]
        scores = self.vocabulary(h).flatten(0, -2)
        return cross_entropy(scores, targets.flatten(), weights) / len(captions)

    @torch.inference_mode()
    def sample(self, features: torch.Tensor, draws: int = 0) -> torch.Tensor:
        """Decode greedily in one batch, or draw captions; stop when all have ended.

        With `masked`, those that have ended leave the batch once they are an eighth of it, unless
        several captions share what is known of an image.
        """
        copies, device = draws or 1, features.device
        N = len(features) * copies
        captions = torch.full((N, MAX_LENGTH), NULL, device=device)
        words = torch.full((N, 1), START, device=device)
        rows, ended = (
            torch.arange(N, device=device),
            torch.zeros(N, dtype=torch.bool, device=device),
        )
        state, images = self.start(features, copies)
        leaving = self.masked and not (images and draws)
        for t in range(MAX_LENGTH):
            h, state = self.step(words, state, images)
            scores = self.vocabulary(h)
            words = self._draw(scores) if draws else scores.argmax(dim=1, keepdim=True)
            captions[rows, t] = words[:, 0].masked_fill(ended, NULL)
            ended |= words[:, 0] == END
            if ended.all():
                break
            if leaving and 8 * ended.sum() >= len(ended):
                kept = (~ended).nonzero()[:, 0]
                rows, words, ended, *images = (part[kept] for part in (rows, words, ended, *images))
                state = self.take(state, kept)
        return captions

    def _draw(self, scores: torch.Tensor) -> torch.Tensor:
        """Draw words `(N, 1)`: as usually written, or by cumulative sums, faster on a CPU."""
        probabilities = scores.softmax(dim=1)
        if not self.masked:
            return torch.multinomial(probabilities, 1)
        sums = probabilities.cumsum(dim=1)
        levels = torch.rand_like(sums[:, :1]) * sums[:, -1:]
        return torch.searchsorted(sums, levels, right=True).clamp_(max=scores.shape[1] - 1)

    def load(self, params: dict[str, Any]) -> None:
        """Take our parameters over; PyTorch's second bias stays zero but for a GRU's."""
        host = {name: numpy.asarray(to_host(value)) for name, value in params.items()}
        inputs = [host[name] for name in ("Wx", "Wz") if name in host]
        more = {theirs: host[name] for name, theirs in LOOKING.items() if name in host}
        ours = {
            **{name: value.T if value.ndim == 2 else value for name, value in more.items()},
            "project.weight": host["W_proj"].T,
            "project.bias": host["b_proj"],
            "embed.weight": host["W_embed"],
            "vocabulary.weight": host["W_vocab"].T,
            "vocabulary.bias": host["b_vocab"],
            f"recurrent.weight_ih{self.layer}": self._gates(numpy.concatenate(inputs)).T,
            f"recurrent.weight_hh{self.layer}": self._gates(host["Wh"]).T,
            f"recurrent.bias_ih{self.layer}": self._gates(host["b"]),
            f"recurrent.bias_hh{self.layer}": numpy.zeros_like(host["b"]),
        }
        if "bn" in host:
            ours[f"recurrent.bias_hh{self.layer}"][-len(host["bn"]) :] = host["bn"]
        self.load_state_dict(
            {name: torch.from_numpy(numpy.ascontiguousarray(v)) for name, v in ours.items()}
        )

    def _gates(self, wide: numpy.ndarray) -> numpy.ndarray:
        blocks = numpy.split(wide, len(ORDER[self.cell]), axis=-1)
        return numpy.concatenate([blocks[k] for k in ORDER[self.cell]], axis=-1)

    def unload(self, gradients: bool = False) -> dict[str, numpy.ndarray]:
        """Return the parameters, or their gradients, under our names and in our order."""
        theirs = {
            name: (p.grad if gradients else p).detach().cpu().numpy()
            for name, p in self.named_parameters()
            if not gradients or p.grad is not None
        }
        back = numpy.argsort(ORDER[self.cell])

        def gates(wide: numpy.ndarray) -> numpy.ndarray:
            blocks = numpy.split(wide, len(back), axis=-1)
            return numpy.concatenate([blocks[k] for k in back], axis=-1)

        W = theirs["embed.weight"].shape[1]
        inputs = gates(theirs[f"recurrent.weight_ih{self.layer}"].T)
        more = {name: theirs[theirs_] for name, theirs_ in LOOKING.items() if theirs_ in theirs}
        found = {
            **{name: value.T if value.ndim == 2 else value for name, value in more.items()},
            "W_proj": theirs["project.weight"].T,
            "b_proj": theirs["project.bias"],
            "W_embed": theirs["embed.weight"],
            "W_vocab": theirs["vocabulary.weight"].T,
            "b_vocab": theirs["vocabulary.bias"],
            "Wx": inputs[:W],
            "Wh": gates(theirs[f"recurrent.weight_hh{self.layer}"].T),
            "b": gates(theirs[f"recurrent.bias_ih{self.layer}"]),
        }
        if more:
            found["Wz"] = inputs[W:]
        if self.cell == "gru":
            H = theirs["vocabulary.weight"].shape[1]
            found["bn"] = theirs[f"recurrent.bias_hh{self.layer}"][2 * H :]
        return found


def cross_entropy(
    scores: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """Return the sum over words `(M,)`, which may have weights."""
    if weights is None:
        return nn.functional.cross_entropy(scores, targets, ignore_index=NULL, reduction="sum")
    each = nn.functional.cross_entropy(scores, targets, ignore_index=NULL, reduction="none")
    return (each * weights).sum()


LOOKING = {
    "W_grid": "grid.weight",
    "b_grid": "grid.bias",
    "W_query": "query.weight",
    "b_query": "query.bias",
    "w_score": "w_score",
    "W_gate": "gate.weight",
    "b_gate": "gate.bias",
    "W_context": "context.weight",
}
"""Parameters of attention: ours, and PyTorch's."""
