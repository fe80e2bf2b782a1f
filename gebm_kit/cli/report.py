"""``gebm-kit report``: a page about a run that a person opens in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import (
    CheckpointWord,
    Debug,
    Device,
    Json,
    Quiet,
    RunWord,
    Threads,
    TrustPaths,
    TrustProgram,
    place,
    set_trust,
)
from gebm_kit.cli.run_options import named_or_newest, set_up_cpu
from gebm_kit.core.errors import UsageError
from gebm_kit.core.paths import HTML_ENDINGS, check_ending, user_path


def report(
    run_word: RunWord = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            parser=place("--out"),
            help="The page, an .html file, which is replaced; default: report.html in the run directory.",
        ),
    ] = None,
    checkpoint: CheckpointWord = "last",
    trust_program: TrustProgram = False,
    trust_paths: TrustPaths = False,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one HTML file about a RUN, whatever its state: verdict, draws, curves, diagnostics, how to make it again.

    The file opens from disk without network. Nothing is evaluated for it.
    """
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    if out is not None:
        check_ending(out, HTML_ENDINGS, "--out must be an HTML file", "For example --out report.html.")
    if run_word is not None and "=" in run_word and not Path(run_word).exists():
        raise UsageError(f"`gebm-kit report` takes no overrides, got {run_word!r}", hint="It shows a run as it is.")
    set_trust(trust_program, trust_paths)
    set_up_cpu(threads)
    from gebm_kit.engine.report import report as engine_report
    from gebm_kit.engine.reporting.tilt_page import is_tilt
    from gebm_kit.engine.run_directory.run import open_run

    place = user_path(named_or_newest(run_word, say), what="RUN")
    path = engine_report(place if is_tilt(place) else open_run(place, checkpoint), out, device=device)
    size = path.stat().st_size
    say.result({"run": str(place), "report": str(path), "bytes": size}, lambda: ui.text(f"report: {path}"))
