"""Scalars, pictures and tables for Weights & Biases (``pip install 'gebm-kit[wandb]'``)."""

from __future__ import annotations

import netrc
import os
import sys
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from gebm_kit.core.components import Injected, Range
from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.interfaces import Logger
from gebm_kit.core.paths import user_path
from gebm_kit.core.tracking import (
    Names,
    default_name,
    keep_id,
    new_id,
    own_folder,
    plain_name,
    tracked_id,
    tracker_package,
    variables,
)

SERVICE = "WANDB_SERVICE"
"""Variable that wandb sets while its service process runs."""


class WandB(Logger):
    """Logger of a Weights & Biases run: metrics over ``step``, the recipe as config, pictures and tables.

    By default nothing is sent and no account is needed: the run is written to ``wandb/`` of the run directory, and
    ``wandb sync runs/x/wandb/wandb/offline-run-*`` uploads it later. ``mode: online`` sends it as it trains; a missing key
    is then an error before training, never a question. A resumed run keeps its id, so that it continues online, and both
    parts of an offline run are uploaded as one. Steps that are trained again have two values.
    wandb writes from a process of its own; a kill loses what it has not written yet, the rows of a second or two.

    Names are made fit for trackers (docs/trackers.md).

    Args:
        project: name of the project.
        run_name: name of the run; null: that of the run directory.
        entity: user or team that owns the project; null: the default of the key's owner.
        group: group of runs that are shown together.
        tags: tags of the run.
        mode: ``offline`` writes files; ``online`` also sends them to ``WANDB_BASE_URL``, with the key in ``WANDB_API_KEY``
            or that of ``wandb login``.
        folder: folder of the files, relative to the directory where the command is started; null: ``wandb/`` of the run
            directory.
        images: whether to write pictures too.
        timeout: seconds to wait for the server at the start, and for what is left to send at the end.
        run_directory: directory of the run.
        directory: directory that ``folder`` is relative to.

    Raises:
        PluginError: wandb is not installed.
        UsageError: ``mode`` is ``online`` and there is no key; or the folder can't be made, or holds a
            symbolic link.
    """

    _open: ClassVar[int] = 0  # runs that this process writes at the moment
    _before: ClassVar[Any] = ()  # what wandb changes for the whole process, as it was before the first of them

    def __init__(
        self,
        project: str = "gebm-kit",
        run_name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: tuple[str, ...] = (),
        mode: Literal["offline", "online"] = "offline",
        folder: str | None = None,
        images: bool = True,
        timeout: Annotated[float, Range(1, None)] = 60.0,
        *,
        run_directory: Annotated[Path, Injected],
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        self.images, self.timeout, self._names = images, timeout, Names()
        module = _package()
        if mode == "online":
            _check_key()
        self.folder = own_folder(
            Path(run_directory) / "wandb" if folder is None else directory / user_path(folder), levels=2
        )
        self.run_id = tracked_id(run_directory, "wandb") or new_id()
        self._environment = {
            f"WANDB_{kind}_DIR": str(self.folder / kind.lower()) for kind in ("CACHE", "DATA", "CONFIG")
        }
        self._environment["WANDB_ERROR_REPORTING"] = "false"
        if WandB._open == 0:
            WandB._before = os.environ.get(SERVICE), sys.exit, sys.excepthook
        WandB._open += 1
        try:
            with variables(self._environment, keep=(SERVICE,)):
                self._run = module.init(
                    project=plain_name(project),
                    entity=entity,
                    group=None if group is None else plain_name(group),
                    name=default_name(run_directory) if run_name is None else plain_name(run_name),
                    tags=[plain_name(tag)[:64] for tag in tags],
                    id=self.run_id,
                    resume="allow",
                    reinit="create_new",
                    mode=mode,
                    dir=str(self.folder),
                    settings=_settings(module, timeout),
                )
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        except BaseException:
            _left(module)
            raise
        keep_id(run_directory, "wandb", self.run_id)

    @classmethod
    def check(cls) -> None:
        _package()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if scalars:
            self._run.log({"step": step, **{self._names.metric(name): float(value) for name, value in scalars.items()}})

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def log_image(self, step: int, name: str, path: Path) -> None:
        if self.images:
            with variables(self._environment):
                picture = _package().Image(str(path), caption=plain_name(name))
                self._run.log({"step": step, self._names.figure(name): picture})

    def log_table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]
    ) -> None:
        with variables(self._environment):
            table = _package().Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
            self._run.log({"step": step, self._names.table(name): table})

    def close(self) -> None:
        """Finish the run; the last one that closes stops wandb's process and sets back what wandb changed.

        Raises:
            RunFailed: what is left was not sent within ``timeout``; it is on disk.
        """
        worker = threading.Thread(target=self._run.finish, daemon=True)
        worker.start()
        worker.join(self.timeout)
        late = worker.is_alive()
        for path in Path(self._run.dir).parent.rglob("*"):  # links to wandb's log; a run directory holds none
            if path.is_symlink():
                path.unlink(missing_ok=True)
        _left(None if late else _package())
        if late:
            raise RunFailed(
                f"logger 'wandb' was still sending after {self.timeout:g} s",
                hint=f"`wandb sync {self.folder}/wandb/run-*{self.run_id}` sends the rest.",
            )


def _left(module: Any) -> None:
    """Count a run that ended; after the last one stop the process of `module`, and undo wandb's changes.

    A process that was there before, of a run that is not the kit's, stays. Without a module the process is left to send
    what it has.
    """
    WandB._open -= 1
    if WandB._open > 0:
        return
    service, sys.exit, sys.excepthook = WandB._before
    if service is None:
        if module is not None:
            module.teardown()
        os.environ.pop(SERVICE, None)


def _settings(module: Any, timeout: float) -> Any:
    return module.Settings(
        console="off",
        silent=True,
        symlink=False,  # a run directory holds no links
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=timeout,
        login_timeout=timeout,
    )


def _check_key() -> None:
    """Raise unless there is a key, where wandb would ask for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        if netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None:
            return
    except (OSError, netrc.NetrcParseError):
        pass
    raise UsageError(
        f"logger 'wandb' has mode=online, but there is no key for {host}",
        hint="Set WANDB_API_KEY, or run `wandb login` once; or leave mode=offline and upload later with `wandb sync`.",
    )


def _package() -> Any:
    return tracker_package("wandb", "wandb", {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"})
