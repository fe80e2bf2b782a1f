"""Notebooks as Markdown, with the outputs that they were saved with, for the documentation site."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def notebook_page(path: Path, uri: str) -> dict[str, str | bytes]:
    """Return a notebook's page and its pictures, by their places on the site.

    Args:
        path: the notebook.
        uri: its place on the site; the page has the same with the ending `.md`.
    """
    stem = uri.removesuffix(".ipynb")
    pictures: dict[str, str | bytes] = {}
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            parts.append(_output(output, stem, pictures))
    parts.append(f"[Download this notebook]({path.name}).")
    return {f"{stem}.md": "\n\n".join(part for part in parts if part) + "\n", **pictures}


def _output(output: dict[str, Any], stem: str, pictures: dict[str, str | bytes]) -> str:
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
    for kind, ending in PICTURES.items():
        if kind in data:
            name = f"{stem}-{len(pictures) + 1}.{ending}"
            pictures[name] = base64.b64decode(data[kind])
            return f"![Output of the code above]({Path(name).name})"
    if "text/html" in data:
        return f'<div class="notebook-output">\n{data["text/html"]}\n</div>'
    text = data.get("text/plain") or "".join(output.get("text", []))
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip()
    return f"```text\n{text}\n```" if text else ""
