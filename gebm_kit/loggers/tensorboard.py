"""Scalars, pictures and tables for TensorBoard (``pip install 'gebm-kit[tensorboard]'``); TensorFlow is not needed."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from gebm_kit.core.components import Injected
from gebm_kit.core.errors import PluginError
from gebm_kit.core.files import refuse_links
from gebm_kit.core.interfaces import Logger


class TensorBoard(Logger):
    """Logger of event files in ``tensorboard/`` of the run directory; ``tensorboard --logdir runs`` shows all runs together.

    A dot in a name opens a group (``eval.gebm.mmd`` becomes ``eval/gebm/mmd``); names without a dot are in ``train``. Every
    row is flushed, so that a killed run loses none. A run that resumes from a checkpoint tells TensorBoard to drop what was
    logged after that checkpoint, so that no step appears twice.

    Args:
        images: whether to write pictures too.
        run_directory: directory of the run.
        start_step: step of the checkpoint that training resumes from.

    Raises:
        PluginError: TensorBoard is not installed.
        UsageError: ``tensorboard/`` is a symbolic link.
    """

    def __init__(
        self,
        images: bool = True,
        *,
        run_directory: Annotated[Path, Injected],
        start_step: Annotated[int, Injected] = 0,
    ) -> None:
        self.images = images
        self.start_step = start_step
        refuse_links(Path(run_directory) / "tensorboard")
        # TensorBoard drops purge_step and later steps; the checkpoint's own row stays
        self._writer = _writer_class()(str(Path(run_directory) / "tensorboard"), purge_step=start_step + 1)

    @classmethod
    def check(cls) -> None:
        _writer_class()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(_tag(name), value, step)
        self._writer.flush()

    def log_config(self, config: Mapping[str, Any]) -> None:
        if self.start_step == 0:  # a resumed run has logged it already
            text = json.dumps(config, indent=2, default=str)
            self._writer.add_text("recipe", "\n".join(f"    {line}" for line in text.splitlines()), 0)
            self._writer.flush()

    def log_image(self, step: int, name: str, path: Path) -> None:
        if self.images:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(_tag(f"figures.{name}"), pixels, step, dataformats="HWC")
            self._writer.flush()

    def log_table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]
    ) -> None:
        lines = [columns, ["---"] * len(columns), *(map(_cell, row) for row in rows)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self._writer.add_text(_tag(f"tables.{name}"), text, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _tag(name: str) -> str:
    return name.replace(".", "/") if "." in name else f"train/{name}"


def _cell(value: str | float | None) -> str:
    text = "" if value is None else value if isinstance(value, str) else f"{value:.6g}"
    return html.escape(" ".join(text.split())).replace("|", "\\|")


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PluginError(
            f"logger 'tensorboard' needs the package tensorboard, which can't be imported: {error}",
            hint="Install it with `pip install 'gebm-kit[tensorboard]'`, or train without it: loggers=[].",
        ) from error
    return SummaryWriter
