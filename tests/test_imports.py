"""Commands that should start fast import nothing slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "numpy", "matplotlib", "arviz_stats", "scipy", "PIL")


def imported_by(*words: str) -> set[str]:
    """Return the modules that are loaded after ``gebm-kit WORDS``."""
    program = f"""
import sys
from gebm_kit.cli.app import main
code = main({list(words)!r})
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["sample", "--help"],
        ["eval", "--help"],
        ["refine", "--help"],
        ["tilt", "--help"],
        ["density", "--help"],
        ["score", "--help"],
        ["compare", "--help"],
        ["report", "--help"],
        ["list"],
        ["list", "sampler", "--json"],
        ["plugins", "list"],
        ["recipes", "ls"],
        ["data", "--help"],
        ["data", "prepare", "--help"],
        ["describe", "--help"],
        ["doctor", "--help"],
        ["recipes", "show", "quickstart"],
        ["recipes", "check", "--help"],
        ["recipes", "schema", "--help"],
        ["plugins", "new", "--help"],
        ["runs"],
        ["runs", "--json"],
    ],
    ids=" ".join,
)
def test_quick_commands_import_nothing_heavy(words: list[str]) -> None:
    assert not imported_by(*words) & set(HEAVY)


def test_listing_runs_imports_nothing_heavy(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "quickstart" / "first"
    run.mkdir(parents=True)
    (run / "resolved.yaml").write_text("{schema: 1, train: {steps: 9}}")
    (run / "status.json").write_text('{"recipe": "quickstart", "state": "finished", "step": 9, "seconds": 1.0}')
    assert not imported_by("runs", str(tmp_path), "--json") & set(HEAVY)


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, gebm_kit; gebm_kit.Component; gebm_kit.hookimpl; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)


def test_the_checks_are_an_attribute_of_the_package() -> None:
    program = "import sys, gebm_kit as gk; assert 'torch' not in sys.modules; gk.testing.check_energy"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_names_are_there() -> None:
    import gebm_kit

    for name in gebm_kit.__all__:
        assert getattr(gebm_kit, name) is not None
        assert name in dir(gebm_kit)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        gebm_kit.trian  # noqa: B018
