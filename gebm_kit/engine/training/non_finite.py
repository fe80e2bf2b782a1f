"""Updates whose loss or gradient is not finite: they are skipped and counted, without waiting for the device.

A flag on the device says whether an update is bad. The fused optimisers read it in their kernel and then leave
parameters, moments and step counts unchanged. `torch.where` restores the buffers: batch norm's statistics, the vectors of
spectral norm, a log-partition that follows its own rule. The counts are read only at log steps and at checkpoints.
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
    """Counts of one part's skipped updates.

    Attributes:
        part: ``energy`` or ``base``.
        total: updates skipped since training began.
        recent: updates skipped since the last reading.
        in_a_row: updates skipped since the last good one.
        longest: the highest value of ``in_a_row`` since the last reading.
        step: cycle of the last skipped update.
        value: loss of that update; finite if only its gradient was not.
    """

    part: str
    total: int
    recent: int
    in_a_row: int
    longest: int
    step: int
    value: float

    @property
    def still_skipping(self) -> bool:
        """Whether at least the last two updates were skipped."""
        return self.in_a_row > 1

    def __str__(self) -> str:
        seen = f"{self.part} loss = {self.value:g}"
        if abs(self.value) < float("inf"):
            seen += " with a gradient that was not finite"
        count = f"{self.recent} of the latest {self.part} updates ({self.total} in all)"
        return f"{count} were skipped because loss or gradient was not finite, the last one at step {self.step}: {seen}"


class Guard:
    """A guard that flags, counts and undoes bad updates.

    Args:
        modules: the modules whose buffers an update may change.
        device: where the counts are kept.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self.watch(modules)
        self._counts = {part: torch.zeros(len(_COUNTS), dtype=torch.int64, device=device) for part in PARTS}
        self._values = {part: torch.zeros((), device=device) for part in PARTS}

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """Guard the buffers of these modules from here on; the counts stay."""
        self._buffers = [(part, name) for module in modules for part in module.modules() for name in part._buffers]

    def keep(self) -> list[Tensor | None]:
        """Return copies of the buffers before an update, for `undo`."""
        buffers = [part._buffers[name] for part, name in self._buffers]
        return [None if buffer is None else buffer.detach().clone() for buffer in buffers]

    @torch.no_grad()
    def undo(self, kept: Sequence[Tensor | None], bad: Tensor) -> None:
        """Restore the buffers to ``kept`` if the update was bad: ``bad``, of shape (), is 0 or 1."""
        flag = bad.bool()
        for (part, name), before in zip(self._buffers, kept, strict=True):
            now = part._buffers[name]
            if now is not None and before is not None:
                now.copy_(torch.where(flag, before, now))

    @torch.no_grad()
    def judge(self, part: str, step: int, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Count the update and return a flag, (): 1.0 if loss or gradient norm is not finite on any rank, else 0.0."""
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
        """Return the counts of both parts and restart those since the last reading. This waits for the device."""
        report = self.look()
        for counts in self._counts.values():
            _, recent, in_a_row, longest, _ = counts.unbind()
            recent.zero_()
            longest.copy_(in_a_row)
        return report

    def look(self) -> list[Skipped]:
        """Return the counts of both parts without restarting any. This waits for the device."""
        counts = torch.stack([self._counts[part] for part in PARTS]).tolist()
        values = torch.stack([self._values[part] for part in PARTS]).tolist()
        return [
            Skipped(part, **dict(zip(_COUNTS, row, strict=True)), value=value)
            for part, row, value in zip(PARTS, counts, values, strict=True)
        ]

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the counts as plain values, for a checkpoint."""
        return {
            seen.part: {name: getattr(seen, name) for name in _COUNTS} | {"value": str(seen.value)}
            for seen in self.look()
        }

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore the counts that `state` returned."""
        for part, counts in state.items():
            self._counts[part].copy_(torch.tensor([int(counts[name]) for name in _COUNTS]))
            self._values[part].fill_(float(counts["value"]))


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, (); 0 if there are none.

    In float32 it overflows beyond 1e19 and is then not finite. Adam, which keeps squared gradients, would overflow too.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
