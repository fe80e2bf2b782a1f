"""``gebm-kit doctor``: what this installation has and can do, for a bug report or a new machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

from gebm_kit.cli import ui
from gebm_kit.cli.options import Debug, Json, Quiet
from gebm_kit.core.cache import cache_directory
from gebm_kit.core.plugins import installed
from gebm_kit.core.version import __version__

PACKAGES = (
    "torch", "numpy", "pluggy", "typer", "rich", "omegaconf", "safetensors", "packaging", "pillow", "matplotlib",
    "arviz-stats",
)  # fmt: skip


def doctor(json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Show Python, torch, devices, threads, plugins, cache and versions, and any problems with them."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    facts = _facts()

    def show() -> None:
        rows = [
            ["gebm-kit", facts["gebm_kit"]],
            ["python", f"{facts['python']} ({facts['executable']})"],
            ["platform", facts["platform"]],
            ["torch", facts["torch"] or "not importable"],
            ["devices", ", ".join(d["name"] for d in facts["devices"])],
            ["threads", f"{facts['threads']} of {facts['cpus']} CPUs"],
            ["cache", facts["cache"]],
            ["plugins", "; ".join(f"{p['distribution']} {p['state']}" for p in facts["plugins"]) or "none"],
            ["versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())],
            ["problems", "; ".join(facts["problems"]) or "none"],
        ]
        ui.table("", ["what", "found"], rows)

    say.result(facts, show)


def _facts() -> dict[str, Any]:
    problems = []
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{package} is not installed")
    report = installed().report
    problems += [f"plugin {p.distribution} failed: {p.error}" for p in report.failed]
    devices: list[dict[str, Any]] = [{"name": "cpu", "memory_bytes": None}]
    torch_version, threads = None, None
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything, and the user needs to read it
        problems.append(f"torch can't be imported: {type(error).__name__}: {error}")
    else:
        torch_version, threads = torch.__version__, torch.get_num_threads()
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            devices.append({"name": f"cuda:{index} {found.name}", "memory_bytes": found.total_memory})
    return {
        "gebm_kit": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "torch": torch_version,
        "devices": devices,
        "threads": threads,
        "cpus": os.cpu_count(),
        "cache": str(cache_directory()),
        "plugins": [
            {"distribution": p.distribution, "version": p.version, "state": p.state, "error": p.error} for p in report
        ],
        "versions": versions,
        "problems": problems,
    }
