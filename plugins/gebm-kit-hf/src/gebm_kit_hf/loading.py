"""Opening a dataset with the library, and decoding the images in its rows."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gebm_kit.core.errors import DataError, GebmKitError, UsageError, nearest
from gebm_kit.core.reading import amount, open_regular
from gebm_kit.data.decoding import CorruptImageError, Fit
from gebm_kit_hf.places import CARDS, Places, check_arrow, check_card, check_folder, check_zip, is_address

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".zip": "imagefolder"}
"""The library's reader of a single file, by its suffix."""

READERS = ("arrow", "cache", "csv", "imagefolder", "json", "parquet", "webdataset")
"""The library's readers that are used; others follow links in a file, or have nothing to do with images."""

MAX_FILE = 2**28
"""Most bytes of one image that is fetched or unpacked."""

CHUNK = 2**20
"""Bytes fetched at a time; a read allocates all that it is asked for."""

AUTO = "auto"
"""Value of ``label`` for the only column of classes."""

SAVED = ("dataset_dict.json", "state.json")
"""Files that only a folder written by ``save_to_disk`` has."""


@dataclass(frozen=True, slots=True)
class Where:
    """Place to open: a ``path`` on this machine, or ``hub``, the name of a repository, with ``config`` and ``revision``."""

    path: Path | None
    hub: str | None
    config: str | None
    revision: str | None

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else f"{self.hub!r} on the Hugging Face hub"


def open_splits(where: Where, places: Places, streaming: bool) -> dict[str, Any]:
    """Open the library's datasets, by the name of their split, with rows as they are stored.

    Args:
        places: what the dataset's own lists of files may name.
        streaming: whether to open streams.

    Raises:
        DataError: the data do not exist or can't be opened, name files elsewhere, or the hub can't be reached.
        UsageError: ``streaming`` is set for data that can't be streamed.
    """
    if where.path is not None and not where.path.exists():
        raise DataError(
            f"{where.path} does not exist", hint="Set data.path, or data.hub for a dataset on the Hugging Face hub."
        )
    import datasets

    if where.path is not None and where.path.is_dir():
        check_folder(where.path)
    elif where.path is not None:
        open_regular(where.path).close()
        if where.path.suffix.lower() == ".zip":
            check_zip(where.path)
    saved = where.path is not None and any((where.path / name).is_file() for name in SAVED)
    if saved and streaming:
        raise UsageError(f"{where} was written by save_to_disk and is mapped into memory; leave data.streaming out")
    try:
        with _quiet(datasets):
            if saved and where.path is not None:
                for file in sorted(where.path.rglob("*.arrow")):
                    check_arrow(file)
                found = datasets.load_from_disk(str(where.path))
                found = found if isinstance(found, dict) else {"train": found}
            else:
                found = _loaded(where, places, streaming)
    except GebmKitError:
        raise
    except ConnectionError as error:
        raise DataError(
            f"the Hugging Face hub can't be reached for {where.hub!r}: {error}",
            hint="Check the network (HF_ENDPOINT, HF_HUB_OFFLINE), or give a copy on this machine as data.path.",
        ) from error
    except Exception as error:  # the library's readers raise many types
        text = " ".join(str(error).split())
        raise DataError(f"{where} can't be opened: {type(error).__name__}: {text[:400]}") from error
    return dict(found)


def _loaded(where: Where, places: Places, streaming: bool) -> Any:
    """Do what ``load_dataset`` does, and check the files that the library found before any of them is opened."""
    import datasets

    if where.path is None:
        _check_hub_cards(where)
    builder = datasets.load_dataset_builder(**_arguments(where))
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in READERS:
        raise DataError(f"{where} would be read as {reader}, which is not a kind of image data")
    for files in (getattr(builder.config, "data_files", None) or {}).values():
        for file in files:
            places.check(str(file), str(where))
            if reader == "arrow" and not is_address(str(file)):
                check_arrow(Path(str(file)))
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


def _check_hub_cards(where: Where) -> None:
    """Check the files that a repository's README names; see `check_card`."""
    import huggingface_hub

    for name in CARDS:
        try:
            card = huggingface_hub.hf_hub_download(where.hub, name, repo_type="dataset", revision=where.revision)
        except Exception:  # it has none, or the hub can't be reached, which is found when the data are opened
            continue
        check_card(Path(card))


def _arguments(where: Where) -> dict[str, Any]:
    """Return the arguments of ``load_dataset``."""
    if where.path is None:
        return {"path": where.hub, "name": where.config, "revision": where.revision}
    if where.path.is_dir():
        return {"path": str(where.path.resolve())}
    builder = BUILDERS.get(where.path.suffix.lower())
    if builder is None:
        raise DataError(f"{where} is neither a folder nor one of {', '.join(BUILDERS)}")
    return {"path": builder, "data_files": {"train": str(where.path.resolve())}}


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep the library quiet inside the block: no log of retries and errors, no word to a server about what is opened, and
    progress bars only on a terminal."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("huggingface_hub", "datasets"))}
    bars = datasets.are_progress_bars_disabled()
    counts, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, False
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # what goes wrong is raised as well
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        for logger, level in loggers.items():
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def undecoded(rows: Any, column: str, what: str) -> Any:
    """Return ``rows`` with images as bytes or paths, so that the library does not decode them itself.

    Raises:
        DataError: the column holds no images.
    """
    import datasets

    try:
        return rows.cast_column(column, datasets.Image(decode=False))
    except Exception as error:
        raise DataError(f"{what}: column {column!r} holds no images") from error


def chosen_column(features: Any, wanted: str | None, kind: str, what: str) -> str:
    """Return the column of that name, or the only one of that kind (``Image``, ``ClassLabel``).

    Raises:
        DataError: there is no such column, or more than one.
    """
    names = list(features or ())
    if wanted is not None:
        if features is None or wanted in names:
            return wanted
        raise DataError(f"{what} has no column {wanted!r}; {nearest(wanted, names)}")
    of_kind = [name for name in names if type(features[name]).__name__ == kind]
    if len(of_kind) != 1:
        problem = f"has {len(of_kind)} columns of type {kind}" if names else "does not say what its columns hold"
        raise DataError(f"{what} {problem}; columns: {', '.join(names) or 'unknown'}", hint="Name one as data.image.")
    return of_kind[0]


def label_column(features: Any, wanted: str | None, what: str) -> str | None:
    """Return the column of labels: the one of that name, or with ``auto`` the only one of type ClassLabel.

    Raises:
        DataError: ``auto``, and there is no such column, or more than one.
    """
    if wanted != AUTO or AUTO in (features or ()):
        return wanted
    classes = class_columns(features)
    if len(classes) != 1:
        listed = ", ".join(classes) or "none"
        raise DataError(
            f"{what} has {len(classes)} columns of type ClassLabel ({listed}), so data.label={AUTO} can't choose one",
            hint="Name one as data.label."
            if classes
            else "Leave data.label out, or give the column the type ClassLabel.",
        )
    return classes[0]


def class_columns(features: Any) -> list[str]:
    """Return the names of the columns that declare classes."""
    return [name for name, feature in (features or {}).items() if type(feature).__name__ == "ClassLabel"]


def declared_classes(features: Any, label: str, what: str) -> tuple[str, ...]:
    """Return the names of the classes of a label column.

    Raises:
        DataError: the column does not exist, or its classes are not declared.
    """
    classes = class_columns(features)
    if label not in classes:
        raise DataError(
            f"{what} has no column {label!r} of class labels; "
            + (nearest(label, classes) if classes else "no column declares classes")
        )
    names = tuple(map(str, features[label].names or ()))
    if not names:
        raise DataError(f"{what} declares no class for column {label!r}")
    return names


def check_same_classes(features: Any, label: str, names: tuple[str, ...], what: str) -> None:
    """Raise if a split declares other classes than the training split.

    Raises:
        DataError: it does, or its column of labels has another type.
    """
    if features is None:  # a stream that does not say
        return
    if (found := declared_classes(features, label, what)) != names:
        shown = [", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "") for classes in (found, names)]
        raise DataError(f"{what} declares the classes {shown[0]}, and the training split {shown[1]}; they must agree")


def check_rows(rows: Any, column: str, places: Places, split: str) -> None:
    """Check the files that the images of a split name, if the rows lie in memory.

    Raises:
        DataError: one may not be opened; see `Places.check`.
    """
    import pyarrow.compute as pc

    start = 0
    for images in rows.data.column(column).chunks:
        contents, paths = pc.struct_field(images, "bytes"), pc.struct_field(images, "path")
        for place in pc.indices_nonzero(pc.and_(pc.is_null(contents), pc.is_valid(paths))).to_pylist():
            path = paths[place].as_py()
            if path:
                places.check(path, f"the image in row {start + place} of split {split!r}")
        start += len(images)


def decoded(value: Any, fit: Fit, name: str, places: Places) -> Tensor:
    """Decode the image of a row, ``{"bytes": ..., "path": ...}``, to (C, H, W) uint8.

    Raises:
        CorruptImageError: the image can't be decoded.
        DataError: the file of the image can't be fetched, or may not be opened.
    """
    content, path = (value or {}).get("bytes"), (value or {}).get("path") or ""
    if content is None and not path:
        raise CorruptImageError("the row holds no image")
    if content is None:
        places.check(path, f"the image {name}")
    if content is None and ("::" in path or "://" in path):  # inside an archive, or on the hub
        content = _fetched(path, name)
    try:
        return fit.decode(Path(path) if content is None else io.BytesIO(content), name)
    except CorruptImageError as error:
        raise CorruptImageError(f"{path}: {error}" if path else str(error)) from error


def _fetched(path: str, name: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            content = bytearray()
            while len(content) <= MAX_FILE and (chunk := file.read(CHUNK)):
                content += chunk
    except Exception as error:
        raise DataError(f"the image {name}, {path}, can't be fetched: {error}", hint="Repeat the command.") from error
    if len(content) > MAX_FILE:
        raise DataError(f"the image {name}, {path}, has more than {amount(MAX_FILE)}")
    return bytes(content)
