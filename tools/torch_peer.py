"""The same captioner in PyTorch, by its own layers, with and without scores of padding."""

from __future__ import annotations

import functools
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

    def __init__(self, workload: Workload, masked: bool = False) -> None:
        super().__init__()
        self.masked = masked
        size = workload.configuration
        layer = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[workload.cell]
        self.cell = workload.cell
        self.project = nn.Linear(size.features, size.hidden)
        self.embed = nn.Embedding(size.vocabulary, size.wordvec)
        self.recurrent = layer(size.wordvec, size.hidden, batch_first=True)
        self.vocabulary = nn.Linear(size.hidden, size.vocabulary)

    def state(self, features: torch.Tensor) -> Any:
        """Return the recurrent layer's first state."""
        h0 = self.project(features)[None]
        return (h0, torch.zeros_like(h0)) if self.cell == "lstm" else h0

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
        state = self.state(features)
        for t in range(MAX_LENGTH):
            h, state = self.recurrent(self.embed(words), state)
            words = self.vocabulary(h[:, 0]).argmax(dim=1, keepdim=True)
            captions[:, t] = words[:, 0].masked_fill(ended, NULL)
            ended |= words[:, 0] == END
            if ended.all():
                break
        return captions

    def load(self, params: dict[str, Any]) -> None:
        """Take our parameters over; PyTorch's second bias stays zero but for a GRU's."""
        host = {name: numpy.asarray(to_host(value)) for name, value in params.items()}
        ours = {
            "project.weight": host["W_proj"].T,
            "project.bias": host["b_proj"],
            "embed.weight": host["W_embed"],
            "vocabulary.weight": host["W_vocab"].T,
            "vocabulary.bias": host["b_vocab"],
            "recurrent.weight_ih_l0": self._gates(host["Wx"]).T,
            "recurrent.weight_hh_l0": self._gates(host["Wh"]).T,
            "recurrent.bias_ih_l0": self._gates(host["b"]),
            "recurrent.bias_hh_l0": numpy.zeros_like(host["b"]),
        }
        if "bn" in host:
            ours["recurrent.bias_hh_l0"][-len(host["bn"]) :] = host["bn"]
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

        found = {
            "W_proj": theirs["project.weight"].T,
            "b_proj": theirs["project.bias"],
            "W_embed": theirs["embed.weight"],
            "W_vocab": theirs["vocabulary.weight"].T,
            "b_vocab": theirs["vocabulary.bias"],
            "Wx": gates(theirs["recurrent.weight_ih_l0"].T),
            "Wh": gates(theirs["recurrent.weight_hh_l0"].T),
            "b": gates(theirs["recurrent.bias_ih_l0"]),
        }
        if self.cell == "gru":
            H = theirs["recurrent.weight_hh_l0"].shape[1]
            found["bn"] = theirs["recurrent.bias_hh_l0"][2 * H :]
        return found


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
        self.module = Captioner(workload, masked).to(dtype)
        self.module.load(workload.model("cpu").params)
        self.module.to(device)
        split = workload.split
        self._captions = torch.from_numpy(split.captions).long().to(device)
        self._images = torch.from_numpy(split.image_idxs).to(device)
        self._features = torch.from_numpy(split.features).to(device, dtype)
        self._device, self._dtype = device, dtype
        # a GRU's two biases of r and z are one bias of ours: PyTorch's second ones do not move
        frozen = self.module.recurrent.bias_hh_l0
        if workload.cell != "gru":
            frozen.requires_grad_(False)
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
        module = Captioner(self.workload).to(self._dtype)
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
