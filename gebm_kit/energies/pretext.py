"""Tasks from which a network learns features of images: classifying them, and matching two views of the same image.

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

BATCH_SIZE = 128
"""Images a step. The contrastive task compares each view with all others in the batch, so a larger batch makes the task
harder, and each step slower."""

PEAK_LEARNING_RATE = {"classify": 3e-3, "contrast": 2e-3}
"""Highest learning rate of AdamW for each task, reached after three tenths of the steps (a one-cycle schedule). Higher rates
learn faster in few steps, until they become unstable."""

LABEL_SMOOTHING = 0.05
"""Share of the target probability that is spread over all classes. It keeps the features from growing without bound
once every training image is classified."""

CONTRASTIVE_TEMPERATURE = 0.2
"""tau of the contrastive loss. A smaller tau gives more weight to the wrong views that are nearest, a larger one
weights all views alike."""

SHIFT, ZOOM, STRETCH, CUT = 0.125, 0.2, 0.1, 0.3
"""Largest changes of a view, as shares of the image's side: shift, zoom, stretch, and the side of the blanked square. Larger
changes teach the features to ignore more; too large ones change what the image shows."""

NOISE, LIGHT = 0.025, 0.4
"""Other changes of a view: the noise's standard deviation as a share of the range of values, and the largest relative
change of brightness. They teach the features to ignore pixel noise and lighting."""

WEIGHT_DECAY = 1e-2
"""AdamW's weight decay, torch's default."""

OnStep = Callable[[int, int], None]


class Pretext(Protocol):
    """A function that trains ``trunk``, (B, *D) -> (B, dim), on the training part of ``dataset``."""

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
    """Train ``trunk`` to classify shifted images: smoothed cross-entropy of a linear layer on the features."""
    assert isinstance(dataset, HasLabels)
    labels = dataset.labels("train").to(device)
    head = nn.Linear(dim, dataset.num_classes).to(device, _dtype(trunk))

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        logits = head(trunk(_moved(x, zoom=0.0, stretch=0.0)))
        return F.cross_entropy(logits, labels[rows], label_smoothing=LABEL_SMOOTHING)

    _train(loss, [trunk, head], PEAK_LEARNING_RATE["classify"], dataset, steps, device, on_step)


def contrast(
    trunk: nn.Module, dim: int, dataset: Dataset, steps: int, device: torch.device, on_step: OnStep | None = None
) -> None:
    """Train ``trunk`` by NT-Xent: among all views in the batch, a view must find the other view of its own image.

    The loss is ``-log softmax(cos(g(v), g(v')) / tau)``, where g are the features after a further network that is
    discarded in the end.
    """
    head = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim)).to(device, _dtype(trunk))
    low, high = dataset.value_range or (None, None)

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        views = torch.cat([view(x, low, high), view(x, low, high)])
        found = F.normalize(head(trunk(views)), dim=1)
        alike = found @ found.T / CONTRASTIVE_TEMPERATURE
        itself = torch.eye(len(views), dtype=torch.bool, device=device)
        partner = torch.arange(len(views), device=device).roll(len(x))
        return F.cross_entropy(alike.masked_fill(itself, float("-inf")), partner)

    _train(loss, [trunk, head], PEAK_LEARNING_RATE["contrast"], dataset, steps, device, on_step)


def view(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Return a random view of each image: mirrored or not, moved, zoomed, brightened or darkened, noisy, a square blanked.

    Args:
        x: images, (B, C, H, W).
        low, high: range of the values; None: the range of the batch.
    """
    floor = x.amin() if low is None else x.new_tensor(low)
    span = (x.amax() if high is None else x.new_tensor(high)) - floor
    seen = _moved(x - floor, ZOOM, STRETCH, mirror=True)
    seen = seen * (1.0 + LIGHT * (2.0 * torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype) - 1.0))
    seen = seen * blanked_square(x)
    return seen + floor + NOISE * span * torch.randn_like(x)


def _moved(x: Tensor, zoom: float, stretch: float, mirror: bool = False) -> Tensor:
    """Shift each image by up to `SHIFT` of its side, zoom, stretch and mirror it. Pixels beyond an edge repeat the edge."""

    def uniform(scale: float) -> Tensor:
        return scale * (2.0 * torch.rand(len(x), device=x.device, dtype=x.dtype) - 1.0)

    size = 1.0 + uniform(zoom)
    sign = torch.where(torch.rand(len(x), device=x.device, dtype=x.dtype) < 0.5, -1.0, 1.0) if mirror else 1.0
    zero = torch.zeros_like(size)
    across = torch.stack([size * sign, zero, uniform(2.0 * SHIFT)], 1)
    down = torch.stack([zero, size * (1.0 + uniform(stretch)), uniform(2.0 * SHIFT)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def blanked_square(x: Tensor) -> Tensor:
    """Return a mask for each image, (B, 1, H, W): 0 in a square of side `CUT` at a random place, 1 elsewhere."""
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
    """Train ``modules`` by AdamW with a one-cycle learning rate.

    ``loss`` gets a batch of images and their row numbers, both on the device.
    """
    split = dataset.split("train")
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps + 1)
    batch, dtype = min(BATCH_SIZE, len(split)), _dtype(modules[0])
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
