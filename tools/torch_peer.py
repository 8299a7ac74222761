"""The same captioners in PyTorch, by its own layers, with and without scores of padding."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import nn

from xpcap.backend import to_host
from xpcap.benchmark.workload import END, MAX_LENGTH, NULL, START, Workload

PARTS = "self", "cross", "feed"  # of a layer of our Transformer
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


_OF_MODEL: dict[str, tuple[str, ...]] = {
    "W_proj": ("project.weight",),
    "b_proj": ("project.bias",),
    "regions.w_norm": ("norm.weight",),
    "regions.b_norm": ("norm.bias",),
    "W_embed": ("embed.weight",),
    "W_position": ("positions",),
    "w_norm": ("decoder.norm.weight",),
    "b_norm": ("decoder.norm.bias",),
    "W_vocab": ("vocabulary.weight",),
    "b_vocab": ("vocabulary.bias",),
}
_OF_LAYER: dict[str, tuple[Any, ...]] = {  # with a number: that of three blocks
    **{f"{part}.w_norm": (f"norm{k}.weight",) for k, part in enumerate(PARTS, 1)},
    **{f"{part}.b_norm": (f"norm{k}.bias",) for k, part in enumerate(PARTS, 1)},
    "self.W_qkv": ("self_attn.in_proj_weight",),
    "self.b_qkv": ("self_attn.in_proj_bias",),
    "self.W_out": ("self_attn.out_proj.weight",),
    "self.b_out": ("self_attn.out_proj.bias",),
    "cross.W_query": ("multihead_attn.in_proj_weight", 0),
    "cross.b_query": ("multihead_attn.in_proj_bias", 0),
    "cross.W_key": ("multihead_attn.in_proj_weight", 1),
    "cross.W_value": ("multihead_attn.in_proj_weight", 2),
    "cross.b_value": ("multihead_attn.in_proj_bias", 2),
    "cross.W_out": ("multihead_attn.out_proj.weight",),
    "cross.b_out": ("multihead_attn.out_proj.bias",),
    "feed.W_in": ("linear1.weight",),
    "feed.b_in": ("linear1.bias",),
    "feed.W_out": ("linear2.weight",),
    "feed.b_out": ("linear2.bias",),
}


class TransformerCaptioner(Captioner):
    """PyTorch's own decoder, with norms first and SDPA.

    With `masked`, captions are cut to the longest, and there are scores of targets only. Decoding
    keeps keys and values of words, and projects those of regions once.
    """

    def __init__(self, workload: Workload, masked: bool = False) -> None:
        nn.Module.__init__(self)
        size, self.masked = workload.configuration, masked
        H, self.heads = size.hidden, size.heads
        self.project, self.norm = nn.Linear(size.features, H), nn.LayerNorm(H)
        self.embed = nn.Embedding(size.vocabulary, H)
        self.positions = nn.Parameter(torch.zeros(MAX_LENGTH, H))
        gelu = functools.partial(nn.functional.gelu, approximate="tanh")
        layer = nn.TransformerDecoderLayer(
            H, size.heads, 4 * H, 0.0, gelu, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, size.layers, nn.LayerNorm(H))
        self.vocabulary = nn.Linear(H, size.vocabulary)
        causal = nn.Transformer.generate_square_subsequent_mask(size.steps)
        self.register_buffer("causal", causal, persistent=False)
        self.scale = math.sqrt(H)

    def memory(self, features: torch.Tensor) -> torch.Tensor:
        """Return the regions that are attended to, `(N, L, H)`."""
        return self.norm(self.project(features if features.ndim == 3 else features[:, None]))

    def loss(self, features: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy, summed over words and averaged over captions."""
        if not self.masked:
            return self._loss(features, captions[:, :-1], captions[:, 1:].flatten(), None)
        longest = int((captions[:, 1:] != NULL).sum(dim=1).max())
        targets = captions[:, 1 : longest + 1].flatten()
        rows = targets.nonzero()[:, 0]
        return self._loss(features, captions[:, :longest], targets[rows], rows)

    def _loss(
        self,
        features: torch.Tensor,
        words: torch.Tensor,
        targets: torch.Tensor,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        T = words.shape[1]
        x = (self.embed(words) + self.positions[:T]) * self.scale
        mask = self.causal[:T, :T].to(x.dtype)
        h = self.decoder(x, self.memory(features), tgt_mask=mask, tgt_is_causal=True).flatten(0, 1)
        scores = self.vocabulary(h if rows is None else h[rows])
        total = nn.functional.cross_entropy(scores, targets, ignore_index=NULL, reduction="sum")
        return total / len(words)

    def start(self, features: torch.Tensor) -> tuple[Any, Any]:
        """Return memory for keys and values of words, and those of regions, by layer."""
        memory, layers = self.memory(features), self.decoder.layers
        N, _, H = memory.shape
        shape = len(layers), 2, N, self.heads, MAX_LENGTH, H // self.heads
        regions = []
        for layer in layers:
            cross = layer.multihead_attn
            both = nn.functional.linear(memory, cross.in_proj_weight[H:], cross.in_proj_bias[H:])
            regions.append([self._split(part) for part in both.chunk(2, dim=2)])
        return (memory.new_empty(shape), 0), regions

    def step(self, words: torch.Tensor, state: Any, images: Any) -> tuple[torch.Tensor, Any]:
        """Read a word `(N, 1)` of each caption; return what gives the scores `(N, H)`."""
        attend, linear = nn.functional.scaled_dot_product_attention, nn.functional.linear
        stored, t = state
        x = (self.embed(words) + self.positions[t]) * self.scale
        H = x.shape[2]
        for layer, kept, regions in zip(self.decoder.layers, stored, images, strict=True):
            own, cross = layer.self_attn, layer.multihead_attn
            qkv = linear(layer.norm1(x), own.in_proj_weight, own.in_proj_bias).chunk(3, dim=2)
            query, key, value = map(self._split, qkv)
            kept[0, :, :, t : t + 1], kept[1, :, :, t : t + 1] = key, value
            keys, values = kept[:, :, :, : t + 1]
            x = x + own.out_proj(attend(query, keys, values).transpose(1, 2).flatten(2))
            query = linear(layer.norm2(x), cross.in_proj_weight[:H], cross.in_proj_bias[:H])
            found = attend(self._split(query), *regions)
            x = x + cross.out_proj(found.transpose(1, 2).flatten(2))
            x = x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))
        return self.decoder.norm(x)[:, 0], (stored, t + 1)

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the heads `(N, A, T, d)` of rows `(N, T, H)`."""
        return rows.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _each(self) -> Iterator[tuple[str, nn.Parameter, slice]]:
        """Yield our names, PyTorch's parameters, and which of their rows are ours."""
        H = self.embed.embedding_dim
        layers = range(len(self.decoder.layers))
        for name, (theirs, *block) in {
            **_OF_MODEL,
            **{
                f"layer.{k}.{name}": (f"decoder.layers.{k}.{theirs}", *block)
                for k in layers
                for name, (theirs, *block) in _OF_LAYER.items()
            },
        }.items():
            rows = slice(block[0] * H, (block[0] + 1) * H) if block else slice(None)
            yield name, self.get_parameter(theirs), rows

    @torch.no_grad()
    def load(self, params: dict[str, Any]) -> None:
        """Take our parameters over; the biases of keys of regions stay zero."""
        for name, parameter, rows in self._each():
            parameter[rows] = torch.from_numpy(_turned(name, numpy.asarray(to_host(params[name]))))

    def unload(self, gradients: bool = False) -> dict[str, numpy.ndarray]:
        """Return the parameters, or their gradients, under our names and in our order."""
        return {
            name: _turned(name, (of.grad if gradients else of)[rows].detach().cpu().numpy())
            for name, of, rows in self._each()
        }


def _turned(name: str, value: numpy.ndarray) -> numpy.ndarray:
    """Transpose a parameter if PyTorch has it transposed."""
    return value if name in ("W_embed", "W_position") else numpy.ascontiguousarray(value.T)


def captioner(workload: Workload, masked: bool = False) -> Captioner:
    """Build the module for a workload."""
    if workload.cell == "transformer":
        return TransformerCaptioner(workload, masked)
    return (Captioner if workload.scoring is None else AttentionCaptioner)(workload, masked)


class TorchPeer:
    """PyTorch with fused Adam, its data where its parameters are; a Transformer may be compiled."""

    def __init__(
        self,
        workload: Workload,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        masked: bool = False,
        compiled: bool = False,
    ) -> None:
        self.workload = workload
        self.module = captioner(workload, masked).to(dtype)
        if compiled:
            assert isinstance(self.module, TransformerCaptioner)
            self.module._loss = torch.compile(self.module._loss, dynamic=True)
        self.module.load(workload.model("cpu").params)
        self.module.to(device)
        split = workload.split
        self._captions = torch.from_numpy(split.captions).long().to(device)
        self._images = torch.from_numpy(split.image_idxs).to(device)
        self._features = torch.from_numpy(split.features).to(device, dtype)
        self._device, self._dtype = device, dtype
        # a GRU's two biases of r and z are one bias of ours: PyTorch's second ones do not move
        if workload.cell in ("rnn", "lstm"):
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
