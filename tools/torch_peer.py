"""PyTorch's programs: training, losses, decoding and self-critical steps."""

from __future__ import annotations

import functools

import torch
from torch_attention import AttentionCaptioner
from torch_beam import beam_search
from torch_recurrent import Captioner
from torch_self_critical import SelfCritical
from torch_transformer import TransformerCaptioner
from xpcap_self_critical import FREQUENCIES, STILL

from xpcap.benchmark.timing import interleave
from xpcap.benchmark.workload import BEAM, Model, Workload


def adam(module: Captioner, rate: float) -> torch.optim.Adam:
    """Return fused Adam of the parameters that ours has, too."""
    # a GRU's two biases of r and z are one bias of ours: PyTorch's second ones do not move
    if module.cell in ("rnn", "lstm"):
        module.second_bias.requires_grad_(False)
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.Adam(trained, lr=rate, fused=True)


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
        self._device, self._dtype, self._masked = device, dtype, masked
        self.module = self._captioner(workload.model("cpu"))
        if compiled:
            assert isinstance(self.module, TransformerCaptioner)
            self.module._loss = torch.compile(self.module._loss, dynamic=True)
        split = workload.split
        self._captions = torch.from_numpy(split.captions).long().to(device)
        self._images = torch.from_numpy(split.image_idxs).to(device)
        self._features = torch.from_numpy(split.features).to(device, dtype)
        self._optimizer = adam(self.module, 1e-3)

    def _captioner(self, ours: Model) -> Captioner:
        """Build a module with our model's parameters."""
        family = Captioner if self.workload.scoring is None else AttentionCaptioner
        if self.workload.cell == "transformer":
            family = TransformerCaptioner
        module = family(self.workload, self._masked).to(self._dtype)
        module.load(ours.params)
        return module.to(self._device)

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

    def beam(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Caption N images by beam search, in the fastest of a few batch sizes."""
        return self.search(self._fastest_batch)

    def search(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return captions and their log-probabilities, found in batches of this size."""
        module, features = self._decoder
        found = [beam_search(module, part, BEAM) for part in features.split(size)]
        captions, totals = (torch.cat(parts) for parts in zip(*found, strict=True))
        return captions, totals

    @functools.cached_property
    def _fastest_batch(self) -> int:
        """The fastest number of images to search together."""
        N = len(self._decoder[1])
        searches = {
            str(size): lambda _, size=size: self.search(size)
            for size in (N, -(-N // 2), -(-N // 4))
        }
        times = interleave(searches, rounds=2, calls=1)
        return int(min(times, key=lambda size: times[size].median))

    @functools.cached_property
    def _decoder(self) -> tuple[Captioner, torch.Tensor]:
        """The module to decode with, and features, made when they are needed first."""
        module = self._captioner(self.workload.decoding_model("cpu"))
        features = torch.from_numpy(self.workload.images_to_decode())
        return module, features.to(self._device, self._dtype)

    def self_critical(self, k: int) -> torch.Tensor:
        """Go from N images to the update by the rewards of captions drawn."""
        return self.critical()

    @functools.cached_property
    def critical(self) -> SelfCritical:
        """The self-critical step."""
        module = self._captioner(self.workload.decoding_model("cpu", weight=FREQUENCIES))
        return SelfCritical(self.workload, module, adam(module, STILL), self._decoder[1])


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
