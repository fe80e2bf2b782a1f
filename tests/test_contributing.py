"""The plugin printed in CONTRIBUTING.md: installed as printed, checked, trained with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TEXT, flags=re.DOTALL))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the printed plugin into a folder with pip, and return that folder."""
    root = tmp_path_factory.mktemp("contributing")
    for name, content in FILES.items():
        (root / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "src" / name).write_text(content)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "--no-index"]
    target = ["--no-build-isolation", "--target", str(root / "site"), str(root / "src")]
    subprocess.run([*pip, *target], check=True)
    (root / "site" / "test_walk.py").write_text(FILES["test_walk.py"])
    return root / "site"


def program(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "GEBM_KIT_LOAD_PLUGINS"}
    env["PYTHONPATH"] = str(installed)
    return subprocess.run([sys.executable, *words], env=env, cwd=installed.parent, capture_output=True, text=True)


def test_the_sampler_is_thirty_lines() -> None:
    assert set(FILES) == {"gebm_walk/walk.py", "gebm_walk/__init__.py", "pyproject.toml", "test_walk.py"}
    assert len(FILES["gebm_walk/walk.py"].splitlines()) <= 30


def test_the_printed_commands_work(installed: Path) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    for command in block.splitlines():
        name, *words = command.split()
        assert name == "gebm-kit"
        done = program(installed, "-m", "gebm_kit", *words)
        assert done.returncode == 0, done.stderr


def test_the_printed_test_passes(installed: Path) -> None:
    done = program(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "site/test_walk.py")
    assert done.returncode == 0, done.stdout + done.stderr
