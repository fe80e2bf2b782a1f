"""Updates whose loss or gradient is not finite are skipped, and counted, without waiting for the device.

A flag on the device says whether an update is bad. The fused optimisers read it in their kernel and leave parameters,
moments and step counts as they are; buffers (batch norm's statistics, the vectors of spectral norm, a log-partition that
follows its own rule) are put back by `torch.where`. The counts are read at log steps and at checkpoints alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.core import reduce

PARTS = ("energy", "base")

_COUNTS = ("total", "recent", "in_a_row", "longest", "step")


@dataclass(frozen=True, slots=True)
class Skipped:
    """What became of one part's updates.

    Attributes:
        part: ``energy`` or ``base``.
        total: skipped since training began.
        recent: skipped since the last reading.
        in_a_row: skipped just now without a good one in between.
        longest: the longest such row since the last reading.
        step: cycle of the last one.
        value: its loss; finite when it was a gradient that was not.
    """

    part: str
    total: int
    recent: int
    in_a_row: int
    longest: int
    step: int
    value: float

    @property
    def going_on(self) -> bool:
        """Whether the last updates were skipped, more than one."""
        return self.in_a_row > 1

    def __str__(self) -> str:
        seen = f"{self.part} loss = {self.value:g}"
        if abs(self.value) < float("inf"):
            seen += " with a gradient that was not"
        count = f"{self.recent} of the latest {self.part} updates ({self.total} in all)"
        return f"{count} were skipped, since loss or gradient was not finite, the last one at step {self.step}: {seen}"


class Guard:
    """Flags, counts and undoes bad updates.

    Args:
        modules: whose buffers an update may change.
        device: of the counts.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self._buffers = [(part, name) for module in modules for part in module.modules() for name in part._buffers]
        self._counts = {part: torch.zeros(len(_COUNTS), dtype=torch.int64, device=device) for part in PARTS}
        self._values = {part: torch.zeros((), device=device) for part in PARTS}

    def keep(self) -> list[Tensor | None]:
        """Copies of the buffers before an update, for `undo`."""
        buffers = [part._buffers[name] for part, name in self._buffers]
        return [None if buffer is None else buffer.detach().clone() for buffer in buffers]

    @torch.no_grad()
    def undo(self, kept: Sequence[Tensor | None], bad: Tensor) -> None:
        """Put the buffers back where the update was bad; bad: (), 0 or 1."""
        flag = bad.bool()
        for (part, name), before in zip(self._buffers, kept, strict=True):
            now = part._buffers[name]
            if now is not None and before is not None:
                now.copy_(torch.where(flag, before, now))

    @torch.no_grad()
    def judge(self, part: str, step: int, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Count the update and say whether it is bad: 1.0 where loss or gradient norm is not finite, on any rank; ()."""
        bad = torch.logical_not(torch.isfinite(loss) & torch.isfinite(gradient_norm))
        flag = reduce.maximum(bad.float())
        bad = flag.bool()
        total, recent, in_a_row, longest, last = self._counts[part].unbind()
        total.add_(bad)
        recent.add_(bad)
        in_a_row.add_(1).mul_(bad)
        torch.maximum(longest, in_a_row, out=longest)
        last.copy_(torch.where(bad, step, last))
        value = self._values[part]
        value.copy_(torch.where(bad, loss.to(value.dtype), value))
        return flag

    def read(self) -> list[Skipped]:
        """The counts of both parts; those since the last reading begin again. Waits for the device."""
        report = self.look()
        for counts in self._counts.values():
            _, recent, in_a_row, longest, _ = counts.unbind()
            recent.zero_()
            longest.copy_(in_a_row)
        return report

    def look(self) -> list[Skipped]:
        """The counts as they are, without a new beginning. Waits for the device."""
        counts = torch.stack([self._counts[part] for part in PARTS]).tolist()
        values = torch.stack([self._values[part] for part in PARTS]).tolist()
        return [
            Skipped(part, **dict(zip(_COUNTS, row, strict=True)), value=value)
            for part, row, value in zip(PARTS, counts, values, strict=True)
        ]

    def state(self) -> dict[str, dict[str, Any]]:
        """For a checkpoint."""
        return {
            seen.part: {name: getattr(seen, name) for name in _COUNTS} | {"value": str(seen.value)}
            for seen in self.look()
        }

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """The inverse of `state`."""
        for part, counts in state.items():
            self._counts[part].copy_(torch.tensor([int(counts[name]) for name in _COUNTS]))
            self._values[part].fill_(float(counts["value"]))


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Norm of all gradients together, (); 0 where there is none. It overflows, and is not finite, beyond 1e19 in float32:
    the squares of such a gradient are what Adam keeps."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
