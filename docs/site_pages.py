"""Hook of MkDocs (`make site`): the pages of the site that are not Markdown files in docs/.

It adds

- a page for every public name and built-in component, whose text mkdocstrings takes from the docstring;
- the notebooks, as Markdown;
- a page for every file outside docs/ that a page links to, such as CONTRIBUTING.md.

Nothing of the kit is imported: names are read from its source, so the site is built without torch.
"""

from __future__ import annotations

import ast
import functools
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from site_notebooks import notebook_page

ROOT = Path(__file__).parent.parent

RESULTS = {
    "Run": "engine.run_directory.run",
    "Draws": "engine.sampling.draws",
    "Diagnostics": "engine.sampling.diagnostics",
    "ShardedDraws": "engine.sampling.shards",
    "ClassShards": "engine.sampling.class_shards",
    "Evaluation": "engine.evaluation.evaluation",
    "Trace": "engine.evaluation.trace_result",
    "LogDensities": "engine.likelihood.log_densities",
    "RowScores": "engine.score",
    "Tilt": "engine.tilting.result",
    "Exported": "engine.export",
    "Progress": "core.progress",
}
"""Classes of which public functions return objects, or hand them to a callback, and their modules."""

MARKS = ("Component", "Range", "OfKind", "Injected", "check_arguments")
"""Names of `gebm_kit.core.components` that component authors use."""

OUTSIDE = (
    "project/CONTRIBUTING.md",
    "project/CHANGELOG.md",
    *(f"project/{path.relative_to(ROOT).as_posix()}" for path in sorted(ROOT.glob("plugins/*/README.md"))),
)
"""Pages outside docs/ that the navigation has."""

LINK = re.compile(r"(?P<code>^```.*?^```|`[^`\n]+`)|(?P<open>\]\()(?P<target>[^)\s]+)", re.DOTALL | re.MULTILINE)
"""Code, which is left alone, or a link with its target."""


class Name(NamedTuple):
    """A public name with a page of its own."""

    uri: str
    title: str
    path: str
    summary: str


# --- hooks -----------------------------------------------------------------------------------------------------------
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and put every folder of the navigation into it."""
    pages = {file.src_uri: Path(file.abs_src_path or "").read_text("utf-8") for file in files.documentation_pages()}
    for uri, text in outside_pages(pages).items():
        files.append(File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        for uri, content in notebook_page(Path(file.abs_src_path or ""), file.src_uri).items():
            files.append(File.generated(config, uri, content=content))
    for uri, text in api_pages().items():
        files.append(File.generated(config, uri, content=text))
    config.nav = with_folders(config.nav, sorted(file.src_uri for file in files.documentation_pages()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to notebooks and files outside docs/ into links to pages, and `\\|` in the code of tables into `|`."""
    uri = page.file.src_uri

    def rewritten(target: str) -> str:
        name, hash_, anchor = target.partition("#")
        found = page_of(uri, name)
        return target if found is None else posixpath.relpath(found, posixpath.dirname(uri) or ".") + hash_ + anchor

    if not re.search(r"^## ", markdown, flags=re.M):
        page.meta.setdefault("hide", ["toc"])  # an empty column would take a quarter of the width
    text = replace_links(markdown, rewritten)
    return re.sub(r"^\|.*$", lambda row: re.sub(r"`[^`]+`", _unescaped, row[0]), text, flags=re.MULTILINE)


def _unescaped(code: re.Match[str]) -> str:
    return code[0].replace("\\|", "|")


# --- links -----------------------------------------------------------------------------------------------------------
def replace_links(markdown: str, new: Callable[[str], str]) -> str:
    """Replace the targets of all links of a text that are not in code."""
    return LINK.sub(lambda found: found[0] if found["code"] else found["open"] + new(found["target"]), markdown)


def source_of(uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    return uri.removeprefix("project/").removesuffix(".text.md") if uri.startswith("project/") else f"docs/{uri}"


def page_of(uri: str, target: str) -> str | None:
    """Return the page of a file that a page links to; None where MkDocs finds it by itself."""
    if not target or re.match(r"[a-z]+:|/", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source_of(uri)), target))
    if path.startswith("docs/"):
        inside = path.removeprefix("docs/")
        notebook = inside.endswith(".ipynb") and not uri.startswith("notebooks/")
        return re.sub(r"\.ipynb$", ".md", inside) if notebook else inside if uri.startswith("project/") else None
    if path in ("README.md", "."):
        return "index.md"
    if (ROOT / path).is_dir():
        return f"project/{path}/index.md" if not (ROOT / path / "README.md").exists() else f"project/{path}/README.md"
    return f"project/{path}" if path.endswith(".md") else f"project/{path}.text.md"


def outside_pages(pages: dict[str, str]) -> dict[str, str]:
    """Return the text of `OUTSIDE`, and of every page outside docs/ that these pages or those found link to."""
    found = {uri: outside_page(uri) for uri in OUTSIDE}
    waiting = [*pages.items(), *found.items()]
    while waiting:
        uri, text = waiting.pop()
        targets: list[str] = []
        replace_links(text, lambda target, targets=targets: targets.append(target) or target)  # type: ignore[misc]
        for target in targets:
            page = page_of(uri, target.partition("#")[0])
            if page is not None and page.startswith("project/") and page not in found:
                found[page] = outside_page(page)
                waiting.append((page, found[page]))
    return found


def outside_page(uri: str) -> str:
    """Return the text of a page for something outside docs/: Markdown as it is, other files as code, folders as lists."""
    path = ROOT / source_of(uri)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        return text if path.suffix == ".md" else f"# {path.name}\n\n````{path.suffix[1:]}\n{text}````\n"
    folder = path.parent
    if path.name == "index.md" and folder.is_dir():
        names = sorted(each.name for each in folder.iterdir() if each.is_file() and not each.name.startswith("."))
        return "\n".join([f"# {folder.name}\n", *(f"- [{name}]({name})" for name in names)])
    raise FileNotFoundError(f"a page links to {path}, which does not exist")


# --- navigation ------------------------------------------------------------------------------------------------------
def with_folders(nav: Any, uris: list[str]) -> Any:
    """Return a navigation in which every `folder/` is the list of its pages, the index first; an empty one is left out."""
    if isinstance(nav, str) and nav.endswith("/"):
        inside = [uri for uri in uris if uri.startswith(nav)]
        return sorted(inside, key=lambda uri: (not uri.endswith(("/index.md", "/README.md")), uri.lower()))
    if isinstance(nav, dict):
        return {title: found for title, each in nav.items() if (found := with_folders(each, uris))}
    if isinstance(nav, list):
        parts: list[Any] = []
        for each in nav:
            found = with_folders(each, uris)
            parts += found if isinstance(found, list) else [found] if found else []
        return parts
    return nav


# --- public names ----------------------------------------------------------------------------------------------------
def api_names() -> dict[str, list[Name]]:
    """Return all public names, by group."""
    return {
        "Functions and classes of `gebm_kit`": list(exported("", "gk")),
        "What they return": [named("results", f"{module}.{name}", name) for name, module in RESULTS.items()],
        "Interfaces of components": list(exported("core.interfaces", "interfaces")),
        "Marks of parameters": [named("components", f"core.components.{name}", name) for name in MARKS],
        "Checks for plugin authors": list(exported("testing", "testing")),
        "Errors": [named("errors", f"core.errors.{name}", name) for name in classes("core.errors")],
        "Built-in components": list(builtins()),
    }


def api_pages() -> dict[str, str]:
    """Return the text of the page of every public name, and of their index."""
    groups = api_names()
    pages = {name.uri: name_page(name) for names in groups.values() for name in names}
    assert len({uri.lower() for uri in pages}) == sum(map(len, groups.values())), "two names share a page"
    parts = ["# API", "Every public name has a page, made from its docstring."]
    for title, names in groups.items():
        rows = [f"| [`{name.title}`]({name.uri.removeprefix('api/')}) | {name.summary} |" for name in names]
        parts.append(f"## {title}\n\n| name | |\n|---|---|\n" + "\n".join(rows))
    return pages | {"api/index.md": "\n\n".join(parts) + "\n"}


def name_page(name: Name) -> str:
    return f"---\ntitle: {name.title}\n---\n\n::: {name.path}\n"


def exported(module: str, folder: str) -> Iterator[Name]:
    """Yield the names in a module's `__all__`."""
    shown = "gk." if folder == "gk" else ""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and assigned(node) == ["__all__"]:
            for name in ast.literal_eval(node.value):
                yield named(folder, f"{module}.{name}".lstrip("."), f"{shown}{name}")


def named(folder: str, path: str, title: str) -> Name:
    module, _, name = path.rpartition(".")
    return Name(f"api/{folder}/{title.removeprefix('gk.')}.md", title, f"gebm_kit.{path}", summary(module, name))


def summary(module: str, name: str) -> str:
    """Return the first sentence that the source says of a name, which the module defines or imports."""
    body = [each for node in tree(module).body for each in (node.body if isinstance(node, ast.If) else [node])]
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        doc = ""
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return summary((node.module or "").removeprefix("gebm_kit").removeprefix("."), name)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            doc = ast.get_docstring(node) or ""
        elif name in assigned(node) and isinstance(after, ast.Expr):
            doc = str(ast.literal_eval(after.value))
        if doc:
            first = re.split(r"\n\n|(?<=\.)\s", doc.replace("``", "`"))[0]
            return " ".join(first.rstrip(":.").split()).replace("|", "\\|")
    return ""


def assigned(node: ast.AST) -> list[str]:
    """Return the names that a statement assigns to."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [ast.unparse(target) for target in targets]


def classes(module: str) -> list[str]:
    return [node.name for node in tree(module).body if isinstance(node, ast.ClassDef)]


def builtins() -> Iterator[Name]:
    """Yield the built-in components."""
    for node in ast.walk(tree("core.builtins")):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Component":
            kind, name, target, summary = (ast.literal_eval(argument) for argument in node.args)
            yield Name(f"api/{kind}/{name}.md", f"{kind} {name}", target.replace(":", "."), summary)


@functools.cache
def tree(module: str) -> ast.Module:
    """Return the syntax tree of a module of the kit; "" is the package itself."""
    path = ROOT / "gebm_kit" / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))
