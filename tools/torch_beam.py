"""Beam search in PyTorch: all hypotheses of all images in one batch."""

from __future__ import annotations

import torch
from torch_recurrent import Captioner

from xpcap.benchmark.workload import END, MAX_LENGTH, NULL, START


@torch.inference_mode()
def beam_search(
    module: Captioner, features: torch.Tensor, slots: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable caption `(N, T)` found of each image, and its log-probability.

    A finished caption keeps its slot. An image is complete when no active hypothesis can become
    better than its best caption; with `masked`, complete images leave the batch.
    """
    N, device = len(features), features.device
    captions = torch.full((N, MAX_LENGTH), NULL, device=device)
    best = features.new_full((N,), -torch.inf)
    image = torch.arange(N, device=device)  # of each beam
    left = torch.full((N, 1), slots, device=device)
    totals, tokens = features.new_zeros(N, 1), captions[:, None]  # of one hypothesis at first
    words = torch.full((N, 1), START, device=device)
    state, images = module.start(features)
    for t in range(MAX_LENGTH):
        h, state = module.step(words, state, images)
        scores = module.vocabulary(h).log_softmax(dim=1)
        if t == MAX_LENGTH - 1:
            scores[:, torch.arange(scores.shape[1], device=device) != END] = -torch.inf
        width, V = totals.shape[1], scores.shape[1]
        scores = scores.view(-1, width, V).add_(totals[:, :, None])
        totals, index = scores.flatten(1).topk(slots)
        parents, words = index // V, index % V
        tokens = tokens.gather(1, parents[:, :, None].expand(-1, -1, MAX_LENGTH))
        tokens[:, :, t] = words
        totals.masked_fill_(torch.arange(slots, device=device) >= left, -torch.inf)
        ends = (words == END) & (totals > -torch.inf)
        left -= ends.sum(dim=1, keepdim=True)
        found, slot = totals.masked_fill(~ends, -torch.inf).max(dim=1)
        better = (found > best[image]).nonzero()[:, 0]
        best[image[better]] = found[better]
        captions[image[better]] = tokens[better, slot[better]]
        totals.masked_fill_(ends | (totals < best[image, None]), -torch.inf)
        active = (totals > -torch.inf).any(dim=1)
        if not active.any():
            break
        rows = parents + width * torch.arange(len(parents), device=device)[:, None]
        if module.masked and not active.all():
            some = active.nonzero()[:, 0]
            image, left, totals, tokens, words, rows, *images = (
                part[some] for part in (image, left, totals, tokens, words, rows, *images)
            )
        state = module.take(state, rows.flatten())
        words = words.view(-1, 1)
    return captions, best
