"""Draws that stay in memory; nothing is saved while they are made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from gebm_kit.core.packing import packed, unpacked
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.process.signals import StopSignals
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draws import Draws, Part
from gebm_kit.engine.sampling.interfaces import Outcome, Saved, Unit


class InMemory:
    """A `Keeper` of ``count`` draws; at the end every rank has all of them.

    Args:
        stop: signals that end sampling; None: signals are not watched.
    """

    def __init__(self, count: int, ranks: Ranks, stop: StopSignals | None = None) -> None:
        self._assembly = Assembly(count)
        self._parts: list[Part] = []
        self._records: dict[int, Mapping[str, Tensor]] = {}
        self._ranks, self._stop = ranks, stop

    def begun(self) -> None:
        return None

    def begin(self, units: Sequence[Unit], shared: Callable[[], Saved]) -> None:
        pass

    def saved(self, number: int) -> None:
        return None

    def add(self, unit: Unit, part: Part) -> None:
        self._assembly.add(part)
        if self._ranks.size > 1:
            self._parts.append(part)

    def check(self, unit: Unit | None) -> None:
        if self._stop is not None and self._stop.received:
            raise self._stop.interrupted("stopped before all draws were made; none is kept")

    def finish(self, unit: Unit) -> None:
        self._records[unit.number] = unit.records()

    def records(self, count: int) -> list[Mapping[str, Tensor]]:
        if self._ranks.size > 1:
            self._exchange()
        return [self._records[number] for number in range(count)]

    def draws(self, outcome: Outcome) -> Draws:
        """Return all draws, on every rank."""
        return self._assembly.draws(outcome.diagnostics, outcome.records)

    def _exchange(self) -> None:
        """Exchange draws and records with all ranks."""
        tensors = {f"part.{p.start}.{name}": getattr(p, name) for p in self._parts for name in ("x", "z", "chain")}
        for unit, records in self._records.items():
            tensors |= {f"unit.{unit}.{name}": tensor for name, tensor in records.items()}
        self._parts = []
        for content in self._ranks.gather(packed(tensors, {})):
            groups: dict[tuple[str, int], dict[str, Tensor]] = defaultdict(dict)
            for name, tensor in unpacked(content, "another rank's message")[0].items():
                kind, number, rest = name.split(".", 2)
                groups[kind, int(number)][rest] = tensor
            for (what, place), found in groups.items():
                if what == "part":
                    self._assembly.add(Part(place, **found))
                else:
                    self._records[place] = found


class Assembly:
    """Assembles ``count`` draws (x, z and chain) from parts that come in any order."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._tensors: dict[str, Tensor] = {}

    def add(self, part: Part) -> None:
        """Put one part in its place."""
        for name in ("x", "z", "chain"):
            rows: Tensor = getattr(part, name)
            if name not in self._tensors:
                self._tensors[name] = rows.new_empty(self._count, *rows.shape[1:])
            self._tensors[name][part.start : part.start + len(rows)] = rows

    def draws(self, diagnostics: Diagnostics, records: Sequence[Mapping[str, Tensor]]) -> Draws:
        """Return all draws."""
        found = self._tensors
        return Draws(found["x"], found["z"], found["chain"], diagnostics, tuple(records))
