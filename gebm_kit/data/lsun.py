"""LSUN scenes, from the folders that its images are exported to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError
from gebm_kit.core.expected import Expected
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.sources import Source
from gebm_kit.data.decoding import MAX_SIDE, Fit
from gebm_kit.data.image_files import CorruptFiles, image_parts, list_images, shuffled
from gebm_kit.data.readings import folder_reading
from gebm_kit.data.tensors import check_fractions, part_sizes

IMAGE_SUFFIXES = (".webp", ".png", ".jpg", ".jpeg")
"""Suffixes of the files that are read: webp is what LSUN's own program exports."""

ENDINGS = ("", "_lmdb")
"""Endings of the name of a category's folder; ``_lmdb`` is that of the database."""

PUBLISHED_IMAGES = {"bedroom": 3_033_042, "church_outdoor": 126_227}
"""Images in the training parts of some categories, as the authors count them."""

HOW_TO_GET = (
    "Download a category with https://github.com/fyu/lsun, export its database with "
    "`python3 data.py export CATEGORY_train_lmdb --out_dir PATH/CATEGORY_train`, and give PATH as data.path."
)


class Lsun(Dataset):
    """Colour images (3, size, size) in [-1, 1] of one category of scenes.

    The folder holds ``bedroom_train`` (for that category) with the images that LSUN's own program exports: webp files,
    nested by the letters of their keys. PNG and JPEG files are read too, in any nesting. LSUN's validation part has 300
    images, too few to score draws against, so valid and test are split off the training part, by a hash of each file's path
    and the seed.

    An image is resized with an antialiasing bicubic filter so that its shorter side is ``size``, and cut to its central
    square. An image that can't be decoded is named in a warning and skipped: the next one of its part takes its place.

    Args:
        path: the folder that holds the category's folder, relative to the directory where the command is started.
        category: name of the category, such as ``bedroom`` or ``church_outdoor``.
        size: side of the result.
        valid_fraction, test_fraction: shares of the files; the rest is for training. 0.01 of the 3,033,042 bedrooms
            is 30,330.
        seed: seed of the split.
        cache_mb: megabytes of decoded images to keep in memory; the others are decoded each time they are read.
        max_corrupt: how many images that can't be decoded are skipped; one more is an error.

    References:
        LSUN: Construction of a Large-scale Image Dataset using Deep Learning with Humans in the Loop. F. Yu et al., 2015.
        https://arxiv.org/abs/1506.03365

    Raises:
        DataError: the folder is missing, holds a database or fewer than three images; later, while reading, too many images
            can't be decoded.
        UsageError: an argument is out of its range.
    """

    how_to_label = (
        "One category is one class. Put the folders of several into one folder, and read that as image-folder."
    )

    def __init__(
        self,
        path: str,
        category: str = "bedroom",
        size: Annotated[int, Range(1, MAX_SIDE)] = 64,
        valid_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.01,
        test_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.01,
        seed: int = 0,
        cache_mb: Annotated[int, Range(0, None)] = 4096,
        max_corrupt: Annotated[int, Range(0, None)] = 100,
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, size=size, valid_fraction=valid_fraction, test_fraction=test_fraction)
        check_arguments(self, cache_mb=cache_mb, max_corrupt=max_corrupt)
        check_fractions(valid_fraction, test_fraction)
        folder = _folder(directory / user_path(path, error=DataError), category)
        self._folder, self._listed = folder, list_images(folder, IMAGE_SUFFIXES, HOW_TO_GET)
        names = shuffled(self._listed.names, seed)
        if len(names) < 3:
            raise DataError(f"{folder} holds {len(names)} image(s); train, valid and test need one each")
        num_valid, num_test = part_sizes(len(names), valid_fraction, test_fraction)
        parts: dict[SplitName, list[str]] = {
            "valid": names[:num_valid],
            "test": names[num_valid : num_valid + num_test],
            "train": names[num_valid + num_test :],
        }
        self.data_shape = (3, size, size)
        self.value_range = (-1.0, 1.0)
        self._corrupt = CorruptFiles(max_corrupt)
        self._sources = [Source(folder, IMAGE_SUFFIXES)]
        self._splits = image_parts(folder, parts, self.data_shape, Fit(size), cache_mb, self._corrupt)

    @classmethod
    def expected(cls, parameters: Mapping[str, Any]) -> Expected | None:
        """Return what the published files hold; see `gebm_kit.core.expected`."""
        num = PUBLISHED_IMAGES.get(parameters["category"])
        if num is None:
            return None
        num_valid, num_test = part_sizes(num, parameters["valid_fraction"], parameters["test_fraction"])
        return Expected((3, parameters["size"], parameters["size"]), num - num_valid - num_test)

    def split(self, name: SplitName) -> Split:
        return self._splits[name]

    def sources(self) -> list[Source]:
        return self._sources

    def describe_reading(self) -> str:
        """Return one line about what was read. The headers of some images are read for it."""
        return folder_reading(self, self._folder, self._listed, self._corrupt, "white")

    def skipped(self) -> dict[str, str]:
        return self._corrupt.by_name()


def _folder(root: Path, category: str) -> Path:
    """Return the folder of the category's training images."""
    for ending in ENDINGS:
        folder = root / f"{category}_train{ending}"
        if (folder / "data.mdb").exists():
            raise DataError(f"{folder} is LSUN's database (LMDB), which this kit does not read", hint=HOW_TO_GET)
        if folder.is_dir():
            return folder
    problem = f"holds no folder {category}_train" if root.is_dir() else "does not exist"
    others = sorted(p.name.removesuffix("_train") for p in root.glob("*_train") if p.is_dir())
    hint = f"There are: {', '.join(others)}. Set data.category." if others else HOW_TO_GET
    raise DataError(f"LSUN's folder {root} {problem}", hint=hint)
