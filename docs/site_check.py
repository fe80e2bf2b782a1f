"""Check a built site: ``python docs/site_check.py build/site``.

Every internal link and anchor leads somewhere, every picture has a text alternative, nothing is loaded from another host,
and every public name has a page.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Links(HTMLParser):
    """What a page links to, loads and can be linked at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.without_alternative: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag in ("a", "area") and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") not in ("prev", "next", "canonical") and "href" in given:
            self.loaded.append(given["href"])
        if "src" in given:
            self.loaded.append(given["src"])
        if tag == "img" and not given.get("alt"):
            self.without_alternative.append(given.get("src", ""))


def problems(site: Path) -> list[str]:
    """Return what is wrong with a built site, one line each."""
    pages = {path: _Links(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site} has no pages"]
    for path, page in pages.items():
        where = path.relative_to(site)
        root = site if where.name == "404.html" else path.parent  # which a server shows at any address
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    found.append(f"{where}: loads {link} from another host")
                continue
            start = site if parts.path.startswith("/") else root
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{where}: dead link {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{where}: no anchor for {link}")
        found += [f"{where}: a picture without a text alternative, {name[:80]}" for name in page.without_alternative]
    return found


def missing_names(site: Path) -> list[str]:
    """Return the public names without a page that has an anchor of that name, one line each."""
    from site_pages import api_names

    found = []
    for names in api_names().values():
        for name in names:
            page = site / name.uri.replace(".md", ".html")
            if not page.is_file() or name.path not in _Links(page.read_text(encoding="utf-8")).anchors:
                found.append(f"{name.path} has no page {page.relative_to(site)}")
    return found


if __name__ == "__main__":
    built = Path(sys.argv[1]).resolve()
    wrong = [*problems(built), *missing_names(built)]
    sys.stdout.write("\n".join(wrong or ["every link leads somewhere, and every public name has a page"]) + "\n")
    sys.exit(bool(wrong))
