"""The program ``gebm-kit``: its commands, and how errors become exit codes.

Exit codes: 0 done, 1 the run failed, 2 usage, recipe or input data, 3 plugin missing or broken, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.compare import compare
from gebm_kit.cli.data import app as data
from gebm_kit.cli.density import density
from gebm_kit.cli.describe import describe
from gebm_kit.cli.doctor import doctor
from gebm_kit.cli.evaluate import evaluate
from gebm_kit.cli.export import export
from gebm_kit.cli.list import list_components
from gebm_kit.cli.plugin_check import check as check_plugins
from gebm_kit.cli.plugin_new import new as new_plugin
from gebm_kit.cli.plugins import app as plugins
from gebm_kit.cli.push import push
from gebm_kit.cli.recipes import app as recipes
from gebm_kit.cli.refine import refine
from gebm_kit.cli.report import report
from gebm_kit.cli.runs import runs
from gebm_kit.cli.sample import sample
from gebm_kit.cli.score import score
from gebm_kit.cli.tilt import tilt
from gebm_kit.cli.train import train
from gebm_kit.cli.visible import open_streams, visible, visible_message
from gebm_kit.core.attribution import culprit, is_out_of_memory, plugin_error, raised_by
from gebm_kit.core.errors import GebmKitError, Interrupted, RunFailed
from gebm_kit.core.trust import trust_paths, trust_programs
from gebm_kit.core.version import __version__

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO)
"""Errors of a stdout that takes no more: a full disk, a descriptor that was opened for reading."""

app = typer.Typer(
    name="gebm-kit",
    help="Train, sample and evaluate Generalized Energy-Based Models.",
    epilog="Start with `gebm-kit train quickstart`; `gebm-kit recipes ls` lists all recipes.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("train")(train)
app.command("sample")(sample)
app.command("eval")(evaluate)
app.command("refine")(refine)
app.command("tilt")(tilt)
app.command("density")(density)
app.command("score")(score)
app.command("export")(export)
app.command("push")(push)
app.command("runs")(runs)
app.command("compare")(compare)
app.command("report")(report)
app.add_typer(data, name="data")
app.add_typer(recipes, name="recipes")
app.command("list")(list_components)
app.command("describe")(describe)
plugins.command("check")(check_plugins)
plugins.command("new")(new_plugin)
app.add_typer(plugins, name="plugins")
app.command("doctor")(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        ui.text(f"gebm-kit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, sample and evaluate Generalized Energy-Based Models."""


@functools.cache
def _program() -> Any:
    """Return the command of ``app``; made once, since typer reads every signature for it."""
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program on ``argv`` (default: the arguments of this process) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    flags = words[: words.index("--")] if "--" in words else words
    json, debug = "--json" in flags, "--debug" in flags
    with (
        open_streams(),
        _nothing_after_the_result(argv is None),
        _first_rank_speaks(debug),
        _signals_raise(),
        trust_programs(False),
        trust_paths(False),
        warnings.catch_warnings(),
    ):  # each command sets how warnings are shown
        try:
            code = _program().main(words, prog_name="gebm-kit", standalone_mode=False)
            sys.stdout.flush()
            if code == 128 + signal.SIGINT:  # typer's code for a KeyboardInterrupt
                raise _Stopped(signal.SIGINT)
            return code if isinstance(code, int) else 0
        except GebmKitError as error:
            hint = " ".join(filter(None, (error.hint, raised_by(error))))
            return _report(error.code, error.message, hint, error.exit_code, json=json, debug=debug)
        except _Stopped as stop:
            stopped = Interrupted(f"stopped by {signal.Signals(stop.signum).name}", signum=stop.signum)
            return _report(stopped.code, stopped.message, "", stopped.exit_code, json=json, debug=debug)
        except BrokenPipeError:
            return _reader_left()
        except SystemExit as stop:
            if isinstance(stop.__context__, BrokenPipeError):  # typer exits with code 1 on a closed pipe
                return _reader_left()
            if (blamed := plugin_error(stop)) is None:
                raise
            return _report(blamed.code, blamed.message, blamed.hint, blamed.exit_code, json=json, debug=debug)
        except Exception as error:
            if hasattr(error, "format_message"):  # a usage error of typer, whose class moved between its versions
                return _report("usage", error.format_message(), _try_help(error), 2, json=json, debug=debug)
            known = _known(error)
            if known is not None:
                return _report(known.code, known.message, known.hint, known.exit_code, json=json, debug=debug)
            message = f"this is a bug in gebm-kit: {type(error).__name__}: {error}"
            hint = "" if debug else "Run the command again with --debug and report what it shows."
            return _report("bug", message, hint, 1, json=json, debug=debug)
        except BaseException as error:  # a plugin raised one that derives from BaseException
            if (blamed := plugin_error(error)) is None:
                raise
            return _report(blamed.code, blamed.message, blamed.hint, blamed.exit_code, json=json, debug=debug)


def _known(error: Exception) -> GebmKitError | None:
    """Return the error to report for one that is not the kit's: a full disk, too little memory, a fault of a component."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE and not culprit(error):
        return RunFailed(f"the result can't be written: {error.strerror}")
    if is_out_of_memory(error):
        whose = f", in {found}" if (found := culprit(error)) else ""
        return RunFailed(
            f"there is too little memory{whose}: {' '.join(str(error).split())[:200] or type(error).__name__}"
        )
    return plugin_error(error)


@contextlib.contextmanager
def _first_rank_speaks(debug: bool) -> Iterator[None]:
    """Silence every process of torchrun but the first, unless ``debug``."""
    if debug or os.environ.get("WORLD_SIZE", "1") in ("0", "1") or os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _nothing_after_the_result(whole_process: bool) -> Iterator[None]:
    """Send to stderr what threads and exit handlers of plugins print after the command has ended."""
    try:
        yield
    finally:
        if whole_process:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                os.dup2(2, 1)


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM where there is no state to save; not a KeyboardInterrupt, which typer would handle itself."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Stopped(signum)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGINT and SIGTERM unwind the stack, so that half-written files are removed, and report them."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:  # a shell starts background jobs with SIGINT ignored
                before[signum] = signal.signal(signum, _stop)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _report(code: str, message: str, hint: str, exit_code: int, *, json: bool, debug: bool) -> int:
    if debug and sys.exc_info()[0] is not None:
        sys.stderr.write(visible(traceback.format_exc()))
    words = visible_message(f"gebm-kit: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    try:
        if json:
            ui.emit_json({"error": {"code": code, "message": message, "hint": hint}})
            sys.stdout.flush()
        else:
            sys.stderr.write(words)
    except BrokenPipeError:
        _reader_left()
    except OSError:  # stdout is a file on a full disk
        _reader_left()
        sys.stderr.write(words)
    return exit_code


def _try_help(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"Try `{context.command_path} --help`." if context is not None else ""


def _reader_left() -> int:
    """End quietly, as SIGPIPE would, after the reader of stdout closed it (``gebm-kit list | head -1``)."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter's last flush fails loudly
    return 0
