"""Build the site of one version beside the earlier ones: ``python docs/site_version.py 0.1 FOLDER``.

FOLDER/0.1 is the site, FOLDER/versions.json the list that its version selector reads (the format of mike, which Material for
MkDocs knows), and FOLDER/index.html leads to the newest version. FOLDER is what a web server publishes; git is not involved.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parent.parent
REDIRECT = """<!doctype html><meta charset="utf-8"><title>gebm-kit</title>
<link rel="icon" href="data:,"><meta http-equiv="refresh" content="0; url={0}/index.html">
<a href="{0}/index.html">gebm-kit {0}</a>
"""


def build_version(version: str, folder: Path) -> None:
    """Build the site of a version into `folder`, and list it."""
    Version(version)
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder / version))
    config.extra["version"] = {"provider": "mike"}
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    list_versions(folder)


def list_versions(folder: Path) -> list[str]:
    """Write the list of the versions that `folder` holds, the newest first and called latest, and return it."""
    found = [each.name for each in folder.iterdir() if _is_version(each.name) and (each / "index.html").is_file()]
    names = sorted(found, key=Version, reverse=True)
    rows = [{"version": name, "title": name, "aliases": ["latest"] if name == names[0] else []} for name in names]
    (folder / "versions.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(REDIRECT.format(names[0]), encoding="utf-8")
    return names


def _is_version(name: str) -> bool:
    try:
        Version(name)
    except InvalidVersion:
        return False
    return True


if __name__ == "__main__":
    build_version(sys.argv[1], Path(sys.argv[2]).resolve())
