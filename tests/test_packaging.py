"""The wheel that people install: its content, and that its program works from another folder."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the kit's wheel without network, from a copy of the files that git would ship."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "-w", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("gebm_kit-*.whl")
    return path


def test_the_wheel_holds_package_recipes_data_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for recipe in (ROOT / "recipes").rglob("*.yaml"):
        assert f"gebm_kit/recipes/{recipe.relative_to(ROOT / 'recipes')}" in names
    for source in (ROOT / "gebm_kit").rglob("*"):
        if source.is_file() and "__pycache__" not in source.parts and source.suffix != ".pyc":
            assert str(source.relative_to(ROOT)) in names
    assert "gebm_kit/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks", "plugins"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_finds_its_recipes(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    site = tmp_path / "site"
    program = f"import sys; sys.path.insert(0, {str(site)!r}); from gebm_kit.cli.app import main; sys.exit(main())"
    for words in (["recipes", "ls", "--json"], ["recipes", "check", "quickstart", "--json"]):
        done = subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
        assert str(tmp_path / "site" / "gebm_kit" / "recipes") in done.stdout
    assert json.loads(done.stdout)["ok"] is True
