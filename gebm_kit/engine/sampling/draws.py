"""What a sampling call returns: draws with their diagnostics, and the files that hold them."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.files import make_directory, write_atomic
from gebm_kit.core.html import Shown
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.mosaic import COLUMNS, are_images, image_of
from gebm_kit.core.paths import user_path
from gebm_kit.core.units import HasMeasured, TableUnits
from gebm_kit.engine.sampling.chains import Chains
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draws_html import sections_of, summary_of
from gebm_kit.engine.sampling.exported import frame_of, inference_data
from gebm_kit.engine.sampling.indexing import place_of, places_of
from gebm_kit.engine.sampling.recorder import equipartition_sums, side_by_side, slope
from gebm_kit.engine.sampling.settings import MOST, require_whole
from gebm_kit.engine.sampling.table_files import TABLE_SUFFIXES, check_table, table_content

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image
    from xarray import DataTree

SUFFIXES = (".safetensors", ".npz", *TABLE_SUFFIXES)
"""Formats that `Draws.save` writes."""


@dataclass(frozen=True, slots=True, repr=False)
class Draws(Shown):
    """Draws of the model, all on the CPU.

    The last states of all chains come first, then their states ``thin`` steps earlier, and so on. The first draws are
    therefore from different chains.

    ``len(draws)`` is the number of draws. ``draws[3]`` is one of them, x as the model makes it, and iterating yields each.
    ``draws[:100]``, ``draws[mask]`` and ``draws[[3, 1]]`` are `Draws` again, whose diagnostics are still those of all.

    Attributes:
        x: (N, *D).
        z: latent codes in the base's own coordinates, ``x = G(z)``, (N, Z).
        chain: index of the chain that each draw comes from, (N,) int64.
        diagnostics: how good the draws are.
        records: what the recorders of all blocks recorded, for figures; see
            `gebm_kit.engine.sampling.recorder.Recorder`.
        units: names and units of the columns, for a run on a table; ``units.measured(x)`` is in the units of its file.
        chains: the ends of the chains, to continue them from; kept by `draw` where it is asked for.
        labels: class of each draw, (N,) int64, of a model with classes; otherwise None.
        class_names: what the classes are called, in the order of their indices; None where they have no names.
        value_range: (low, high) of the data, for pictures; None where it is not known.
    """

    x: Tensor
    z: Tensor
    chain: Tensor
    diagnostics: Diagnostics
    records: tuple[Mapping[str, Tensor], ...] = field(default=(), repr=False)
    units: HasMeasured | None = field(default=None, repr=False, compare=False)
    chains: Chains | None = field(default=None, repr=False, compare=False)
    labels: Tensor | None = field(default=None, repr=False)
    class_names: tuple[str, ...] | None = field(default=None, repr=False, compare=False)
    value_range: tuple[float, float] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)

    @overload
    def __getitem__(self, which: int) -> Tensor: ...

    @overload
    def __getitem__(self, which: slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]) -> Draws: ...

    def __getitem__(self, which: Any) -> Tensor | Draws:
        """Return one draw, x (*D), or the draws of a slice, a mask (N,) or a list of places.

        Raises:
            IndexError: there is no such draw.
            UsageError: an index of another kind, or a mask of another length.
        """
        place = place_of(which, len(self))
        if place is not None:
            return self.x[place]
        places = places_of(which, len(self))
        labels = None if self.labels is None else self.labels[places]
        chosen: dict[str, Any] = {
            "x": self.x[places],
            "z": self.z[places],
            "chain": self.chain[places],
            "labels": labels,
        }
        return dataclasses.replace(self, records=(), chains=None, **chosen)

    def _summary(self) -> str:
        classes = "" if self.labels is None else f", {len(self.labels.unique())} classes"
        return summary_of("Draws", len(self), self.x.shape[1:], self.diagnostics, classes)

    def _sections(self) -> Iterator[str]:
        return sections_of(self.x, self.diagnostics, self.units, self.value_range, self._classes())

    def to_frame(self) -> DataFrame:
        """Return a pandas DataFrame with one line for each draw, in their order; the extra ``frames`` installs pandas.

        Draws of a table are in the units of its file and have its column names. Other columns are x0, x1, ..., the numbers
        of each draw as the model makes them. Then come ``label``, the class by its name or else its index, for draws of
        classes, and ``chain``. If the data have a column of that name, it is called ``label_2`` or ``chain_2``.

        Raises:
            PluginError: pandas is missing.
        """
        named = self.labels is not None and self.class_names is not None
        labels = self._classes() if named else None if self.labels is None else self.labels.tolist()
        return frame_of(self.x, self.chain, self.units, labels)

    def to_arviz(self) -> DataTree:
        """Return ArviZ's InferenceData, an xarray DataTree; the extra ``arviz`` installs what it needs.

        The group ``posterior`` holds ``x`` (chain, draw, *D), for a table in the units of its file with the coordinate
        ``column``, and ``z`` (chain, draw, Z). Draws are in the order in which the chain made them. Chains may have one draw
        more than others: then the oldest is left out. Labels are in ``sample_stats``. Unless the draws were read from a
        file, or are of classes or chosen by an index, ``trace`` holds what the kit's R-hat and effective sizes are computed
        from: up to 32 coordinates of ``z``, and the ``potential``, after each step of warm-up's end.

        Raises:
            PluginError: arviz-base or xarray is missing.
        """
        kept = [record for record in self.records if "trace" in record]
        trace = side_by_side(kept)[0] if kept and self.labels is None else None
        d = self.diagnostics
        about = {"sampler": d.sampler, "inverse_temperature": d.inverse_temperature, "seed": d.seed}
        return inference_data(self.x, self.z, self.chain, self.labels, self.units, trace, about)

    def grid(
        self,
        num: int = 64,
        columns: int = COLUMNS,
        *,
        value_range: tuple[float, float] | None = None,
        scale: int | None = None,
    ) -> Image:
        """Return the first draws as one picture, a PIL image, which a notebook shows and ``.save("grid.png")`` writes.

        Args:
            num: images, at most.
            columns: images in a row.
            value_range: (low, high), drawn black and white; None: that of the data, else the central 99 % of all values.
            scale: pixels for each pixel of an image; None: as many as bring an image to about 48 pixels, 1 to 8.

        Raises:
            UsageError: the draws are not images (C, H, W) or (H, W), or there are none; a number below 1.
        """
        for name, value in (("num", num), ("columns", columns), ("scale", 1 if scale is None else scale)):
            require_whole(name, value, 1, MOST)
        if not are_images(tuple(self.x.shape[1:])) or not len(self):
            shape = f"{len(self):,} draws of shape {tuple(self.x.shape[1:])}"
            raise UsageError(
                f"grid() draws images of shape (C, H, W) or (H, W), and these are {shape}",
                hint="For tables and points: draws.to_frame().",
            )
        return image_of(self.x[:num], value_range or self.value_range, columns, scale)

    @property
    def sampler_reason(self) -> str | None:
        """Why `auto` drew with this sampler, in one sentence; None when the sampler was named."""
        return self.diagnostics.sampler_reason

    @property
    def num_shards(self) -> None:
        """None: the draws are in one piece, unlike `ShardedDraws`."""
        return None

    def pictures(self) -> Iterator[Tensor]:
        """Yield x in one piece; `ShardedDraws` yields it in several."""
        yield self.x

    def save(self, path: str | Path, value_range: tuple[float, float] | None = None) -> Path:
        """Write the draws to a file.

        A .safetensors or .npz file holds x as the model makes it, z, chain and any labels, with the diagnostics as JSON
        (in the metadata of .safetensors) and, for a table, its ``units`` as JSON: ``columns``, ``mean`` and ``std``,
        where ``mean + std x`` are measurements. Names of classes are the JSON list ``class_names``. A .npz of a table also
        holds ``measured``, (N, D) float64, and the names of its ``columns``. numpy has no bfloat16, so a .npz holds such
        draws in single precision, which changes no value.
        A .csv or .parquet file is a table of these measurements, with the columns' names. Draws of classes have the name
        of the class, or its index, in a last column.

        The file appears whole or not at all. Missing directories are created.

        Args:
            value_range: (low, high) of the data, stored with the diagnostics, to turn x into pictures later; None: the
                draws' own.

        Raises:
            UsageError: the suffix is another, or the file can't be written.
            RunFailed: the disk is full.
        """
        path = user_path(path)
        check_output(path, tuple(self.x.shape[1:]))
        if path.suffix in TABLE_SUFFIXES:
            make_directory(path.parent)
            write_atomic(path, table_content(path, self.x, self.units, self._classes()))
            return path
        tensors = {"x": self.x, "z": self.z, "chain": self.chain}
        if self.labels is not None:
            tensors["labels"] = self.labels
        metadata = {"schema": "1", "diagnostics": json.dumps(self.diagnostics.as_dict())}
        value_range = self.value_range if value_range is None else value_range
        if value_range is not None:
            metadata["value_range"] = json.dumps([float(v) for v in value_range])
        if isinstance(self.units, TableUnits):  # a dataset's own `measured` can't be written to a file
            metadata["units"] = json.dumps(self.units.as_dict())
        if self.class_names is not None:
            metadata["class_names"] = json.dumps(self.class_names)
        if path.suffix == ".npz":
            buffer = io.BytesIO()
            arrays = {name: _array(tensor) for name, tensor in tensors.items()}
            if self.units is not None:
                arrays |= {"measured": self.units.measured(self.x).numpy(), "columns": np.array(self.units.columns)}
            np.savez(buffer, allow_pickle=False, **arrays, **{k: np.array(v) for k, v in metadata.items()})
            content = buffer.getvalue()
        else:
            from safetensors.torch import save

            content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
        make_directory(path.parent)
        write_atomic(path, content)
        return path

    def _classes(self) -> list[str] | None:
        """Return the class of each draw as text; None without classes."""
        if self.labels is None:
            return None
        return [str(k) if self.class_names is None else self.class_names[k] for k in self.labels.tolist()]


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a numpy array; in single precision, which holds every value, if numpy lacks its type."""
    known = tensor.dtype in (torch.float16, torch.float32, torch.float64) or not tensor.is_floating_point()
    return np.asarray((tensor if known else tensor.float()).numpy())


def check_output(path: str | Path, data_shape: tuple[int, ...] | None = None) -> None:
    """Check, before anything is computed, that `Draws.save` can write to ``path``.

    Args:
        data_shape: shape of a draw; None: unknown.

    Raises:
        UsageError: the suffix is not in `SUFFIXES`, or fits no draws of that shape; ``path`` is a directory.
    """
    path = user_path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(
            "draws are written to .safetensors or .npz files, those of a table also to .csv or .parquet, not to "
            f"{path.name!r}",
            hint="A name without a suffix is a directory, into which draws are streamed.",
        )
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name a file")
    if path.suffix in TABLE_SUFFIXES and data_shape is not None:
        check_table(path, data_shape)


def is_directory(out: str | Path) -> bool:
    """Return whether draws are streamed into a directory: ``out`` has no suffix."""
    return not user_path(out).suffix


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive draws in the order of `Draws`, on the CPU.

    Attributes:
        start: index of the first one among all draws.
        x, z, chain: as in `Draws`.
    """

    start: int
    x: Tensor
    z: Tensor
    chain: Tensor


@dataclass(frozen=True, slots=True)
class Decoded:
    """Decoded states, on the CPU: x (N, *D), z in the base's coordinates (N, Z), `equipartition_sums` and `slope`."""

    x: Tensor
    z: Tensor
    balance: Tensor
    slope: Tensor


def decode(potential: LatentPotential, z: Tensor, rows: int) -> Decoded:
    """Decode states in normal coordinates, (N, Z), into ``x = G(z)``,
    ``rows`` at a time as the chains were evaluated."""
    x, codes, balances, slopes = [], [], [], []
    for part in z.split(rows):
        x.append(potential.data(part).cpu())
        codes.append(potential.prior.from_normal(part).cpu())
        tilt, grad = potential.tilt_and_grad(part)
        balances.append(equipartition_sums(part, grad + part).cpu())
        slopes.append(slope(tilt, grad).cpu())
    return Decoded(torch.cat(x), torch.cat(codes), torch.stack(balances).sum(0), torch.stack(slopes).amax(0))
