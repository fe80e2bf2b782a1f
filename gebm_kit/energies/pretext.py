"""Tasks by which a network learns features of images: which class, and which two views are of one image.

References:
    A Simple Framework for Contrastive Learning of Visual Representations. T. Chen et al., ICML 2020.
    https://arxiv.org/abs/2002.05709 (the contrastive loss, NT-Xent)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebm_kit.core.interfaces import Dataset, HasLabels

BATCH = 128
RATE = {"classify": 3e-3, "contrast": 2e-3}
"""Highest learning rate of AdamW, reached after three tenths of the steps (a one-cycle schedule)."""

TEMPERATURE = 0.2
"""Of the contrastive loss."""

SHIFT, ZOOM, STRETCH, CUT = 0.125, 0.2, 0.1, 0.3
"""Of views: shares of the side by which one is shifted, zoomed, stretched, and that the blanked square has."""

NOISE, LIGHT = 0.025, 0.4
"""Of views: the noise's standard deviation as a share of the range of values, and the share by which light changes."""

OnStep = Callable[[int, int], None]


class Pretext(Protocol):
    """Trains ``trunk``, (B, *D) -> (B, dim), on the training part of ``dataset``."""

    def __call__(
        self,
        trunk: nn.Module,
        dim: int,
        dataset: Dataset,
        steps: int,
        device: torch.device,
        on_step: OnStep | None = None,
    ) -> None: ...


def classify(
    trunk: nn.Module, dim: int, dataset: Dataset, steps: int, device: torch.device, on_step: OnStep | None = None
) -> None:
    """Cross-entropy of the classes, smoothed by 0.05, that a linear layer reads off the features; images are shifted."""
    assert isinstance(dataset, HasLabels)
    labels = dataset.labels("train").to(device)
    head = nn.Linear(dim, dataset.num_classes).to(device, _dtype(trunk))

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        logits = head(trunk(_moved(x, zoom=0.0, stretch=0.0)))
        return F.cross_entropy(logits, labels[rows], label_smoothing=0.05)

    _train(loss, [trunk, head], RATE["classify"], dataset, steps, device, on_step)


def contrast(
    trunk: nn.Module, dim: int, dataset: Dataset, steps: int, device: torch.device, on_step: OnStep | None = None
) -> None:
    """NT-Xent: of the views of other images in the batch and of its own, a view is to be nearest to the latter.

    ``-log softmax(cos(g(v), g(v')) / tau)``, g the features behind one more layer that is thrown away.
    """
    head = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim)).to(device, _dtype(trunk))
    low, high = dataset.value_range or (None, None)

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        views = torch.cat([view(x, low, high), view(x, low, high)])
        found = F.normalize(head(trunk(views)), dim=1)
        alike = found @ found.T / TEMPERATURE
        itself = torch.eye(len(views), dtype=torch.bool, device=device)
        partner = torch.arange(len(views), device=device).roll(len(x))
        return F.cross_entropy(alike.masked_fill(itself, float("-inf")), partner)

    _train(loss, [trunk, head], RATE["contrast"], dataset, steps, device, on_step)


def view(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """A random view of each image, (B, C, H, W): mirrored or not, moved, zoomed, lit otherwise, a square blanked, noisy.

    Args:
        x: images.
        low, high: the range of their values; None: that of the batch.
    """
    floor = x.amin() if low is None else x.new_tensor(low)
    span = (x.amax() if high is None else x.new_tensor(high)) - floor
    seen = _moved(x - floor, ZOOM, STRETCH, mirror=True)
    seen = seen * (1.0 + LIGHT * (2.0 * torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype) - 1.0))
    seen = seen * _uncut(x)
    return seen + floor + NOISE * span * torch.randn_like(x)


def _moved(x: Tensor, zoom: float, stretch: float, mirror: bool = False) -> Tensor:
    """Each image shifted by up to `SHIFT` of its side, zoomed, stretched, mirrored; beyond its edge the edge goes on."""

    def uniform(scale: float) -> Tensor:
        return scale * (2.0 * torch.rand(len(x), device=x.device, dtype=x.dtype) - 1.0)

    size = 1.0 + uniform(zoom)
    sign = torch.where(torch.rand(len(x), device=x.device, dtype=x.dtype) < 0.5, -1.0, 1.0) if mirror else 1.0
    zero = torch.zeros_like(size)
    across = torch.stack([size * sign, zero, uniform(2.0 * SHIFT)], 1)
    down = torch.stack([zero, size * (1.0 + uniform(stretch)), uniform(2.0 * SHIFT)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _uncut(x: Tensor) -> Tensor:
    """1 but for a square of side `CUT` in each image, where it is 0; (B, 1, H, W)."""
    height, width = x.shape[2:]
    centre = torch.rand(len(x), 2, device=x.device)
    rows = (torch.arange(height, device=x.device) / height - centre[:, :1]).abs() < 0.5 * CUT
    columns = (torch.arange(width, device=x.device) / width - centre[:, 1:]).abs() < 0.5 * CUT
    return (~(rows[:, :, None] & columns[:, None, :])).unsqueeze(1).to(x.dtype)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _train(
    loss: Callable[[Tensor, Tensor], Tensor],
    modules: list[nn.Module],
    rate: float,
    dataset: Dataset,
    steps: int,
    device: torch.device,
    on_step: OnStep | None,
) -> None:
    """AdamW under a one-cycle rate; ``loss`` of images and their row numbers, both on the device."""
    split = dataset.split("train")
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps + 1)
    batch, dtype = min(BATCH, len(split)), _dtype(modules[0])
    order, position = torch.randperm(len(split)), 0
    for step in range(1, steps + 1):
        if position + batch > len(split):
            order, position = torch.randperm(len(split)), 0
        rows = order[position : position + batch]
        position += batch
        optimiser.zero_grad(set_to_none=True)
        loss(split.batch(rows).to(device, dtype), rows.to(device)).backward()
        optimiser.step()
        schedule.step()
        if on_step is not None:
            on_step(step, steps)
