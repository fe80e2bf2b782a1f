"""Files and addresses that a dataset names: which of them may be opened.

A dataset is data, and can come from anybody: its rows, its README and its lists of files are text that names what to open
next. What lies in the place that the user gave is opened; anything else, on this machine or on a server, only with the
permission of the person at the keyboard (`gebm_kit.core.trust.trust_paths`).
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gebm_kit.core.errors import DataError
from gebm_kit.core.reading import amount, open_regular, parse_yaml, read_json_file, read_text, texts_in
from gebm_kit.core.trust import paths_trusted

CARDS = ("README.md", ".huggingface.yaml")
"""Files of a dataset that may say, under ``configs``, which files its splits are."""

SAVED_FILES = ("dataset_dict.json", "state.json", "dataset_info.json", "dataset_infos.json")
"""Lists of files in JSON that the library reads itself; they are read within bounds before."""

FRONT_MATTER = re.compile(r"^\s*---[ \t]*(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r|\n|$)", re.DOTALL)
"""The YAML at the beginning of a README, as the library finds it."""

ARROW_FILE = b"ARROW1"
"""First bytes of an arrow file with an index; the library writes streams, which have none."""

ARCHIVES = ("zip://", "tar://", "gzip://")
"""Beginnings of a path inside an archive, which is named after ``::``."""

HINT = (
    "Put the files into the dataset. If you know what these names lead to, add --trust-paths (in Python: "
    "`with gebm_kit.trust_paths():`)."
)


@dataclass(frozen=True, slots=True)
class Places:
    """Places whose files may be opened.

    Attributes:
        folders: folders on this machine.
        file: one more file on this machine, such as an archive.
        hub: beginnings of addresses on the hub.
    """

    folders: tuple[str, ...] = ()
    file: str | None = None
    hub: tuple[str, ...] = ()

    def hold(self, path: str) -> bool:
        """Return whether a path or address is one of a file in these places, without looking at the file."""
        *inner, last = path.split("::")
        if any(not step.startswith(ARCHIVES) for step in inner):
            return False
        if "://" in last:
            return last.startswith(self.hub) if self.hub else False
        if "\0" in last or not os.path.isabs(last):
            return False
        last = os.path.normpath(last)
        return last == self.file or any(last.startswith(folder.rstrip(os.sep) + os.sep) for folder in self.folders)

    def check(self, path: str, what: str) -> None:
        """Raise if a file may not be opened.

        Args:
            what: what names the file, such as "the image in row 3".

        Raises:
            DataError: the file lies elsewhere and is not trusted, or is on a server and the library is offline.
        """
        if self.hold(path):
            return
        if not paths_trusted():
            raise DataError(f"{what} names a file that is not part of the data, {path!r}; it is not opened", hint=HINT)
        if is_address(path) and offline():
            raise DataError(f"{what} names an address, {path!r}, and HF_HUB_OFFLINE forbids connections")


def is_address(path: str) -> bool:
    """Return whether opening ``path`` asks a server."""
    last = path.rpartition("::")[2]
    return "://" in last and not last.startswith(("file://", "local://"))


def offline() -> bool:
    """Return whether the library must not connect, which ``HF_HUB_OFFLINE`` says."""
    import datasets

    return bool(datasets.config.HF_HUB_OFFLINE)


def places_of(path: Path | None, hub: str | None) -> Places:
    """Return the places of a dataset: its own, and where the library keeps what it downloaded or unpacked."""
    import datasets
    from huggingface_hub import constants

    kept: tuple[str, ...] = (str(datasets.config.EXTRACTED_DATASETS_PATH),)
    if path is None:
        kept = (*kept, str(datasets.config.DOWNLOADED_DATASETS_PATH), str(constants.HF_HUB_CACHE))
        return Places(tuple(map(os.path.abspath, kept)), hub=(f"hf://datasets/{hub}@", f"hf://datasets/{hub}/"))
    place = os.path.normpath(path.resolve())
    folders = tuple(map(os.path.abspath, kept))
    return Places((place, *folders)) if path.is_dir() else Places(folders, file=place)


# --- what is checked before the library opens anything ----------------------------------------------------------------
def check_folder(folder: Path) -> None:
    """Read the files that a folder's README and lists name, and raise if one lies elsewhere.

    Raises:
        DataError: a file is damaged, or names what may not be opened.
    """
    for name in CARDS:
        if (folder / name).exists():
            check_card(folder / name)
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error.strerror}") from error
    for place in (folder, *(folder / name for name in inside)):
        for name in SAVED_FILES:
            if (place / name).exists():
                _check_list(place / name)


def check_card(file: Path) -> None:
    """Raise if the section ``configs`` of a README, or of a YAML file, names anything outside its folder.

    Raises:
        DataError: see above, or it can't be read.
    """
    text = read_text(file)
    if file.suffix.lower() == ".md":
        found = FRONT_MATTER.match(text)
        text = found[1] if found else ""
    content = parse_yaml(text, name=str(file))
    configs = content.get("configs") if isinstance(content, Mapping) else None
    for value in texts_in(configs):
        if _leads_outside(value) and not paths_trusted():
            raise DataError(
                f"{file} names files that are not part of the data, {value!r}; they are not opened", hint=HINT
            )
        if is_address(value) and offline():
            raise DataError(f"{file} names an address, {value!r}, and HF_HUB_OFFLINE forbids connections")


def _check_list(file: Path) -> None:
    """Raise if a list in JSON, which ``save_to_disk`` writes, names files or splits elsewhere."""
    content = read_json_file(file)
    if not isinstance(content, Mapping):
        raise DataError(f"{file} is damaged: it is not an object")
    names = content.get("splits") if file.name == "dataset_dict.json" else content.get("_data_files")
    indices = content.get("_indices_data_files") if file.name == "state.json" else None
    if file.name not in ("dataset_dict.json", "state.json"):
        return
    for value in texts_in([names, indices]):
        if (os.sep in value or "/" in value or _leads_outside(value)) and not paths_trusted():
            raise DataError(f"{file} names a file that is not part of the data, {value!r}; it is not opened", hint=HINT)


def check_arrow(file: Path) -> None:
    """Raise if an arrow file is damaged: the library maps it into memory and trusts the offsets in it, wherever they lead.

    Raises:
        DataError: see above.
    """
    import pyarrow as pa

    open_regular(file).close()
    try:
        with pa.memory_map(str(file)) as source:
            if source.read(len(ARROW_FILE)) == ARROW_FILE:
                reader = pa.ipc.open_file(source)
                for index in range(reader.num_record_batches):
                    reader.get_batch(index).validate(full=True)
            else:
                source.seek(0)
                for batch in pa.ipc.open_stream(source):
                    batch.validate(full=True)
    except Exception as error:  # pyarrow raises many types on damaged files
        raise DataError(
            f"{file} can't be read as arrow: {' '.join(str(error).split())[:200]}", hint="It is cut short or damaged."
        ) from error


def check_zip(file: Path) -> None:
    """Raise if a zip archive unpacks to more than the disk of the library's cache holds.

    Raises:
        DataError: see above, or it is not a zip archive.
    """
    import datasets

    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} can't be opened as a zip archive: {error}") from error
    place = Path(datasets.config.HF_DATASETS_CACHE)
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise DataError(f"{file} unpacks to {amount(size)}, and {amount(free)} are free in {place}")


def _leads_outside(value: str) -> bool:
    """Return whether a name or pattern of files is more than a path inside the folder."""
    steps = re.split(r"[/\\]", value)
    return "://" in value or "::" in value or value.startswith("~") or os.path.isabs(value) or ".." in steps
