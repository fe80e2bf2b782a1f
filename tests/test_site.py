"""The documentation site: it is built without the kit's packages, its links lead somewhere, and it opens without network."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import gebm_kit
from gebm_kit import testing
from gebm_kit.core import interfaces
from gebm_kit.core.plugins import discover

pytest.importorskip("mkdocs")

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy", "gebm_kit"):
            raise ImportError(f"the site imports {name}")
sys.meta_path.insert(0, Block())
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as a version of it, built in a process that can import neither torch nor the kit."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "block").mkdir()
    (folder / "block" / "sitecustomize.py").write_text(BLOCK)
    environment = {**os.environ, "PYTHONPATH": str(folder / "block"), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, str(ROOT / "docs" / "site_version.py"), "0.1", str(folder / "versions")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder / "versions"


@pytest.fixture(scope="module")
def module(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Import a program of docs/."""
    sys.path.insert(0, str(ROOT / "docs"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "docs"))


def test_every_link_leads_somewhere_and_every_public_name_has_a_page(built: Path, module: Any) -> None:
    check = module("site_check")
    assert check.problems(built / "0.1") == []
    assert check.missing_names(built / "0.1") == []


def test_the_names_with_pages_are_all_public_names(module: Any) -> None:
    paths = {name.path for names in module("site_pages").api_names().values() for name in names}
    for package in (gebm_kit, interfaces, testing):
        assert {f"{package.__name__}.{name}" for name in package.__all__} <= paths
    builtin = discover({}, []).registry
    for kind in ("base", "sampler", "metric", "logger"):
        for record in builtin.of_kind(kind):
            assert record.component.target.replace(":", ".") in paths
    summaries = [name for names in module("site_pages").api_names().values() for name in names if not name.summary]
    assert not summaries


def test_faults_of_a_site_are_found(tmp_path: Path, module: Any) -> None:
    (tmp_path / "other.html").write_text('<h2 id="there">x</h2>')
    (tmp_path / "index.html").write_text(
        '<a href="other.html#there">x</a><a href="other.html#gone">x</a><a href="none.html">x</a><img src="x.png">'
        '<a href="https://example.org">x</a><script src="https://example.org/x.js"></script><a href="#top">x</a>'
    )
    found = "\n".join(module("site_check").problems(tmp_path))
    for fault in ("no anchor for other.html#gone", "no anchor for #top", "dead link none.html", "dead link x.png"):
        assert fault in found
    assert "a picture without a text alternative" in found
    assert "loads https://example.org/x.js from another host" in found
    assert len(found.splitlines()) == 6
    assert module("site_check").problems(tmp_path / "empty")


def test_links_out_of_docs_become_pages(module: Any) -> None:
    pages = module("site_pages")
    assert pages.page_of("plugins.md", "../CONTRIBUTING.md") == "project/CONTRIBUTING.md"
    assert pages.page_of("benchmarks/index.md", "../../LICENSE") == "project/LICENSE.text.md"
    assert pages.page_of("index.md", "notebooks/own_modules.ipynb") == "notebooks/own_modules.md"
    assert pages.page_of("project/CONTRIBUTING.md", "docs/plugins.md") == "plugins.md"
    assert pages.page_of("project/plugins/gebm-kit-hf/README.md", "../../README.md") == "index.md"
    assert pages.page_of("index.md", "recipes.md") is None
    assert pages.page_of("index.md", "https://example.org/x.ipynb") is None
    found = pages.outside_pages({"a.md": "[r](../recipes) `[c](../LICENSE)`\n```\n[d](../Makefile)\n```\n"})
    assert {"project/recipes/index.md", "project/recipes/quickstart.yaml.text.md"} <= set(found)
    assert "schema: 1" in found["project/recipes/quickstart.yaml.text.md"]
    assert not [uri for uri in found if "LICENSE" in uri or "Makefile" in uri]


def test_versions_are_listed_with_the_newest_first(built: Path, tmp_path: Path, module: Any) -> None:
    assert '"version": "0.1"' in (built / "versions.json").read_text()
    for name in ("0.9", "0.10", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").touch()
    assert module("site_version").list_versions(tmp_path) == ["0.10", "0.9"]
    assert "url=0.10/" in (tmp_path / "index.html").read_text()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


def test_it_opens_without_network_and_is_searched(built: Path, browser: Any) -> None:
    """By a server, with the selector of versions, and from disk; on a wide screen and on a phone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(built)))
    Thread(target=server.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{server.server_port}/"
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(origin)  # leads to the newest version
    page.wait_for_selector(".md-version__current", timeout=120_000)
    assert page.inner_text(".md-version__current").strip() == "0.1"
    for start in (page.url, (built / "0.1" / "index.html").as_uri()):
        page.goto(start)
        page.click("[data-md-component=search-query]")
        page.keyboard.type("elliptical")
        # results of the first letters come and go while the word is typed
        page.wait_for_selector(".md-search-result__link:has-text('elliptical')", timeout=120_000)
        page.wait_for_load_state("networkidle")  # what is cut off by leaving would count as a fault
    page.set_viewport_size({"width": 360, "height": 800})
    for name in ("index", "api/gk/train", "notebooks/own_modules", "benchmarks/index"):
        page.goto(f"{origin}0.1/{name}.html", wait_until="networkidle")
        assert not page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"), name
    server.shutdown()
    assert not [url for url in asked if not url.startswith((origin, "file:", "data:", "blob:"))]
    # a browser reads no versions.json from disk, which only sites of several versions have
    assert not [fault for fault in faults if "versions.json" not in fault and "net::ERR_FAILED" not in fault]
