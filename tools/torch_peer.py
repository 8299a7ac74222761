"""The same captioners in PyTorch, by its own layers, with and without scores of padding."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy
import torch
from torch import nn

from xpcap.backend import to_host
from xpcap.benchmark.workload import END, MAX_LENGTH, NULL, START, Workload

ORDER = {"rnn": (0,), "gru": (0, 1, 2), "lstm": (0, 1, 3, 2)}  # of our gates in PyTorch's layers


class Captioner(nn.Module):
    """Embedding, a recurrent layer of cuDNN or oneDNN, and two affine layers.

    Parameters
    ----------
    workload
        Sizes and the kind of cell.
    masked
        Compute no scores where there is no target.
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

    def state(self, features: torch.Tensor) -> Any:
        """Return the recurrent layer's first state."""
        h0 = self.project(features)[None]
        return (h0, torch.zeros_like(h0)) if self.cell == "lstm" else h0

    def start(self, features: torch.Tensor) -> tuple[Any, Any]:
        """Return the first state, and what else decoding needs of the images."""
        return self.state(features), None

    def step(self, words: torch.Tensor, state: Any, images: Any) -> tuple[torch.Tensor, Any]:
        """Read a word `(N, 1)` of each caption; return what gives the scores `(N, H)`."""
        h, state = self.recurrent(self.embed(words), state)
        return h[:, 0], state

    def loss(self, features: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy, summed over words and averaged over captions."""
        h, _ = self.recurrent(self.embed(captions[:, :-1]), self.state(features))
        targets = captions[:, 1:]
        if self.masked:  # no scores of padding; how many rows are left, a GPU has to tell the host
            counted = targets != NULL
            h, targets = h[counted], targets[counted]
        return nn.functional.cross_entropy(
            self.vocabulary(h).flatten(0, -2),
            targets.flatten(),
            ignore_index=NULL,
            reduction="sum",
        ) / len(captions)

    @torch.inference_mode()
    def sample(self, features: torch.Tensor) -> torch.Tensor:
        """Decode greedily in one batch, and stop when all captions have ended."""
        N = len(features)
        captions = torch.full((N, MAX_LENGTH), NULL, device=features.device)
        words = torch.full((N, 1), START, device=features.device)
        ended = torch.zeros(N, dtype=torch.bool, device=features.device)
        state, images = self.start(features)
        for t in range(MAX_LENGTH):
            h, state = self.step(words, state, images)
            words = self.vocabulary(h).argmax(dim=1, keepdim=True)
            captions[:, t] = words[:, 0].masked_fill(ended, NULL)
            ended |= words[:, 0] == END
            if ended.all():
                break
        return captions

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

    def start(self, features: torch.Tensor) -> tuple[Any, Any]:
        """Return the first state, and the projected regions."""
        h0 = self.project(features.mean(dim=1))
        state = (h0, torch.zeros_like(h0)) if self.cell == "lstm" else (h0,)
        return state, self.grid(features)

    def look(
        self, x: torch.Tensor, state: Any, grid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Read word vectors `(n, W)`; return h and z `(n, H)`, and the state."""
        h = state[0]
        q = self.query(h)
        if self.scoring == "additive":
            scores = torch.tanh(grid + q[:, None]) @ self.w_score
        else:
            scores = torch.bmm(grid, q[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])
        z = torch.bmm(scores.softmax(dim=1)[:, None], grid)[:, 0] * torch.sigmoid(self.gate(h))
        found = self.recurrent(torch.cat([x, z], dim=1), state if self.cell == "lstm" else h)
        state = found if self.cell == "lstm" else (found,)
        return state[0], z, state

    def step(self, words: torch.Tensor, state: Any, images: Any) -> tuple[torch.Tensor, Any]:
        """Read a word `(N, 1)` of each caption; return what gives the scores `(N, H)`."""
        h, z, state = self.look(self.embed(words[:, 0]), state, images)
        return h + self.context(z), state

    def loss(self, features: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy, summed over words and averaged over captions."""
        N, T = captions.shape[0], captions.shape[1] - 1
        sizes = [N] * T
        if self.masked:
            lengths, order = (captions[:, 1:] != NULL).sum(dim=1).sort(descending=True)
            captions, features = captions[order], features[order]
            longer = lengths[None, :] > torch.arange(T, device=lengths.device)[:, None]
            sizes = [n for n in longer.sum(dim=1).tolist() if n]
        state, grid = self.start(features)
        x, found = self.embed(captions[:, :-1]), []
        for t, n in enumerate(sizes):
            h, z, state = self.look(x[:n, t], tuple(part[:n] for part in state), grid[:n])
            found.append((h, z, captions[:n, t + 1]))
        h, z, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        scores = self.vocabulary(h + self.context(z))
        total = nn.functional.cross_entropy(scores, targets, ignore_index=NULL, reduction="sum")
        return total / N


def captioner(workload: Workload, masked: bool = False) -> Captioner:
    """Build the module for a workload."""
    return (Captioner if workload.scoring is None else AttentionCaptioner)(workload, masked)


class TorchPeer:
    """PyTorch's eager mode with fused Adam, its data where its parameters are."""

    def __init__(
        self,
        workload: Workload,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        masked: bool = False,
    ) -> None:
        self.workload = workload
        self.module = captioner(workload, masked).to(dtype)
        self.module.load(workload.model("cpu").params)
        self.module.to(device)
        split = workload.split
        self._captions = torch.from_numpy(split.captions).long().to(device)
        self._images = torch.from_numpy(split.image_idxs).to(device)
        self._features = torch.from_numpy(split.features).to(device, dtype)
        self._device, self._dtype = device, dtype
        # a GRU's two biases of r and z are one bias of ours: PyTorch's second ones do not move
        if workload.cell != "gru":
            self.module.second_bias.requires_grad_(False)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(trained, lr=1e-3, fused=True)

    def loss(self, k: int) -> torch.Tensor:
        """Compute the k-th minibatch's loss and gradients."""
        rows = torch.from_numpy(self.workload.rows(k)).to(self._captions.device)
        self._optimizer.zero_grad()
        loss = self.module.loss(self._features[self._images[rows]], self._captions[rows])
        loss.backward()
        return loss.detach()

    def train(self, k: int) -> torch.Tensor:
        """Go from the k-th minibatch to updated parameters."""
        loss = self.loss(k)
        self._optimizer.step()
        return loss

    def decode(self, k: int) -> torch.Tensor:
        """Caption N images greedily."""
        module, features = self._decoder
        return module.sample(features)

    @functools.cached_property
    def _decoder(self) -> tuple[Captioner, torch.Tensor]:
        """The module to decode with, and features, made when they are needed first."""
        module = captioner(self.workload).to(self._dtype)
        module.load(self.workload.decoding_model("cpu").params)
        features = torch.from_numpy(self.workload.images_to_decode())
        return module.to(self._device), features.to(self._device, self._dtype)


class TorchGraphPeer(TorchPeer):
    """PyTorch's whole training step in one CUDA graph, in TF32 or, by autocast, in float16."""

    def __init__(self, workload: Workload, device: str, precision: str) -> None:
        super().__init__(workload, device)
        self._half = precision == "float16"
        order = torch.from_numpy(workload.order(0)).to(device)
        self._rows = order.view(len(workload), -1)
        self._now = self._rows[0].clone()
        self._optimizer = torch.optim.Adam(
            self._optimizer.param_groups[0]["params"], lr=1e-3, fused=True, capturable=True
        )
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step()
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    def _step(self) -> None:
        self._optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16, enabled=self._half, cache_enabled=False):
            loss = self.module.loss(
                self._features[self._images[self._now]], self._captions[self._now]
            )
        loss.backward()
        self._optimizer.step()

    def train(self, k: int) -> None:
        """Go from the k-th minibatch to updated parameters."""
        self._now.copy_(self._rows[k % len(self._rows)])
        self._graph.replay()
