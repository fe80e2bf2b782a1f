"""Reports opened in a headless Chromium: nothing runs, is fetched or overflows, and axe finds nothing serious."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gebm_kit.cli.app import main

pytestmark = [pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")]

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip

SCRIPT = "<script>window.hit = 1</script>"
IMAGE = '"><img src=x onerror="window.hit = 2">'
BRACES = "{{ 7 * 7 }} {% raw %}"
"""Texts that would run, load something or be computed if a page took them for more than text."""

TABLE = f"""\
schema: 1
data: {{name: tabular, path: table.csv, labels: kind}}
base: {{name: mlp, latent_dim: 2, hidden: [8], conditional: true}}
energy: {{name: mlp, hidden: [8], conditional: true}}
loss: {{name: kale}}
train: {{steps: 4, energy_steps: 1, start_steps: 0, batch_size: 32, log_every: 1, checkpoint_every: 4}}
sampler: {{name: mala, step_size: 0.05}}
sample: {{num_samples: 40, num_chains: 20, warmup: 4, steps: 6}}
eval: {{metrics: [mmd], num_samples: 40, num_sets: 2}}
device: cpu
# a remark: {SCRIPT} {BRACES}
"""


@dataclass
class Opened:
    """A page that was opened, and what happened meanwhile."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def _chromium() -> str | None:
    """Return the path of a Chromium; the reason why there is none is the caller's to give."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    missing = [name for name in ("playwright", "axe_core_python") if importlib.util.find_spec(name) is None]
    path = _chromium()
    if missing or path is None:
        reason = f"no {' and no '.join(missing) or 'Chromium'} is installed to open reports with"
        if os.environ.get("CI") and not os.environ.get("WITHOUT_BROWSER"):
            pytest.fail(f"{reason}; .ci/run installs them")
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on a table whose names, recipe and evaluation hold whatever a page must not obey."""
    folder = tmp_path_factory.mktemp("hostile")
    numbers, kinds = random.Random(0), [f"red {SCRIPT}", f"blue {BRACES}", IMAGE]
    quoted = [name.replace('"', '""') for name in (f"size {SCRIPT}", f"weight {BRACES}", f"{IMAGE} $x_1$")]
    lines = ["".join(f'"{name}",' for name in quoted) + "kind"]
    for k in range(150):
        values = ",".join(f"{numbers.gauss(k % 3, 1):.3f}" for _ in quoted)
        kind = kinds[k % 3].replace('"', '""')
        lines.append(f'{values},"{kind}"')
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    recipe = folder / "<b>{{ 7 * 7 }}</b>.yaml".replace("/", "")
    recipe.write_text(TABLE.replace("table.csv", str(folder / "table.csv")))
    assert main(["train", str(recipe), "--out", str(folder / "run"), "--quiet"]) == 0
    _spoil(folder / "run")
    return folder / "run"


def _spoil(run: Path) -> None:
    """Put hostile texts where an evaluation, the versions and the overrides have texts of others."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["diagnostics"]["problems"] = [f"problem {SCRIPT} {BRACES}"]
    evaluation["diagnostics"]["sampler_reason"] = f"reason {IMAGE}"
    evaluation["verdict"][f"metric {SCRIPT}"] = f"sentence {SCRIPT} {BRACES}"
    for column in evaluation["metrics"].values():
        column[f"name {IMAGE}"] = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    environment = json.loads((run / "env.json").read_text())
    environment["plugins"] = {f"plugin {SCRIPT}": f"1 {IMAGE}"}
    (run / "env.json").write_text(json.dumps(environment))
    (run / "overrides.txt").write_text(f"data.path={SCRIPT}{BRACES}\n")


@pytest.fixture(scope="module")
def pages(trained: Path, hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the pages that are looked at: an image run, a table with classes and hostile texts, and both compared."""
    folder = tmp_path_factory.mktemp("pages")
    found = {name: folder / f"{name}.html" for name in ("images", "table", "compared")}
    assert main(["report", str(trained), "--out", str(found["images"]), "--quiet"]) == 0
    assert main(["report", str(hostile), "--out", str(found["table"]), "--quiet"]) == 0
    assert main(["compare", str(trained), str(hostile), "--html", str(found["compared"]), "--quiet"]) == 0
    return found


def _open(browser: Any, path: Path, width: int, scheme: str) -> Opened:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened = Opened(page)
    page.on("console", lambda message: opened.said.append(message.text))
    page.on("pageerror", lambda error: opened.said.append(str(error)))
    page.on("request", lambda request: opened.asked.append(request.url))
    page.goto(path.as_uri())
    return opened


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
@pytest.mark.parametrize("name", ["images", "table", "compared"])
def test_a_page_in_a_browser(browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    from axe_core_python.sync_playwright import Axe

    opened = _open(browser, pages[name], width, scheme)
    page = opened.page
    try:
        assert opened.said == []
        assert [url for url in opened.asked if url != pages[name].as_uri() and not url.startswith("data:")] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.hit") is None
        assert page.evaluate("document.scripts.length") == 0
        pictures = page.evaluate(
            "[...document.querySelectorAll('figure img, figure svg')]"
            ".map(e => e.getAttribute('alt') || e.getAttribute('aria-label'))"
        )
        assert pictures
        assert all(text and len(text) > 20 for text in pictures), pictures
        assert page.evaluate("document.querySelectorAll('h1').length") == 1
        if scheme == "dark" and name != "images":
            return  # axe takes seconds on long tables, and the dark scheme is the same everywhere
        found = Axe().run(page)["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []
    finally:
        page.close()


def test_hostile_texts_are_shown_as_text(browser: Any, pages: dict[str, Path]) -> None:
    for name in ("table", "compared"):
        page = _open(browser, pages[name], 1280, "light").page
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        text = page.evaluate("document.documentElement.textContent")
        for part in (SCRIPT, BRACES, IMAGE) if name == "table" else (SCRIPT, BRACES):
            assert part in text, (name, part)
        assert "49" not in page.title()
        assert "{{ 7 * 7 }}" in text
        assert page.evaluate("document.querySelectorAll('[onerror], b, img[src=x]').length") == 0
        page.close()
