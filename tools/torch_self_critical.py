"""A self-critical step in PyTorch: captions are drawn, and rewarded in Python."""

from __future__ import annotations

import torch
from python_cider import PythonCIDErD
from torch_recurrent import Captioner
from xpcap_self_critical import SAMPLES, references

from xpcap.benchmark.workload import END, NULL, START, Workload


class SelfCritical:
    """Steps on the same images; the baseline of a caption is the mean reward of the others."""

    def __init__(
        self,
        workload: Workload,
        module: Captioner,
        optimizer: torch.optim.Optimizer,
        features: torch.Tensor,
    ) -> None:
        self.module = module
        self._optimizer, self._features = optimizer, features
        ended = [[[*words, END] for words in known] for known in references(workload)]
        self._cider = PythonCIDErD(ended)
        self._images = [image for image in range(len(features)) for _ in range(SAMPLES)]

    def __call__(self) -> torch.Tensor:
        """Go from images to updated parameters, and return the mean reward."""
        captions = self.draw()
        rewards = self.rewards(captions)
        self.loss(captions, self.advantages(rewards))
        self._optimizer.step()
        return rewards.mean()

    def draw(self) -> torch.Tensor:
        """Draw captions `(N K, T)` of all images in one batch."""
        captions = self.module.sample(self._features, SAMPLES)
        return captions[:, : int((captions != NULL).sum(dim=1).max())].clone()

    def rewards(self, captions: torch.Tensor) -> torch.Tensor:
        """Return the rewards `(N, K)`; `<END>` counts as a word."""
        lengths = (captions != NULL).sum(dim=1).tolist()
        words = [row[:n] for row, n in zip(captions.tolist(), lengths, strict=True)]
        rewards = torch.tensor(self._cider(self._images, words), dtype=self._features.dtype)
        return rewards.view(-1, SAMPLES).to(captions.device)

    def advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        """Return rewards minus the mean of the others', `(N K,)`."""
        others = (rewards.sum(dim=1, keepdim=True) - rewards) / (SAMPLES - 1)
        return (rewards - others).flatten()

    def loss(self, captions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Compute the weighted cross entropy of captions, and its gradients."""
        first = captions.new_full((len(captions), 1), START)
        self._optimizer.zero_grad()
        loss = self.module.loss(self._features, torch.cat([first, captions], dim=1), weights)
        loss.backward()
        return loss.detach()
