"""A hub of the tests' own: an HTTP server on this machine that speaks the few calls of huggingface_hub that are used."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_of_the_tests"


class Hub:
    """Repositories in memory: the commits of each, newest last, as files by name.

    Attributes:
        repositories: name to commits.
        asked: method and path of every request.
        extra: names that the listing has beside the files.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.asked: list[str] = []
        self.extra: list[str] = []

    def commit_of(self, repository: str, number: int) -> str:
        return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()

    def number_of(self, repository: str, revision: str) -> int | None:
        commits = self.repositories[repository]
        if revision == "main":
            return len(commits) - 1
        return next((n for n in range(len(commits)) if self.commit_of(repository, n) == revision), None)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _error(self, status: int, code: str) -> None:
        self._answer(status, json.dumps({"error": code}).encode(), X_Error_Code=code, X_Error_Message=code)

    def _read(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            found = self._found(match[1], match[2] or "main")
            if found is not None:
                number, files = found
                names = [{"rfilename": name} for name in [*files, *self.hub.extra]]
                self._json({"id": match[1], "sha": self.hub.commit_of(match[1], number), "siblings": names})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            found = self._found(match[1], match[2])
            if found is not None:
                sizes = {
                    **{name: len(content) for name, content in found[1].items()},
                    **dict.fromkeys(self.hub.extra, 9),
                }
                self._json([{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in sizes.items()])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            found = self._found(match[1], match[2])
            if found is None:
                return
            number, files = found
            if match[3] not in files:
                self._error(404, "EntryNotFound")
                return
            content = files[match[3]]
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(200, content, ETag=tag, X_Repo_Commit=self.hub.commit_of(match[1], number))
        else:
            self._error(404, "RepoNotFound")

    def _found(self, repository: str, revision: str) -> tuple[int, dict[str, bytes]] | None:
        if repository not in self.hub.repositories:
            self._error(401, "RepoNotFound")
            return None
        number = self.hub.number_of(repository, revision)
        if number is None:
            self._error(404, "RevisionNotFound")
            return None
        return number, self.hub.repositories[repository][number]

    def do_POST(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(401, "Unauthorized")
            return
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            self.hub.repositories.setdefault(name, [])
            self._json({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            commits = self.hub.repositories[match[1]]
            files = dict(commits[-1]) if commits else {}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commits.append(files)
            sha = self.hub.commit_of(match[1], len(commits) - 1)
            self._json({"commitUrl": f"http://{self.headers['Host']}/{match[1]}/commit/{sha}", "commitOid": sha})
        else:
            self._error(404, "NotFound")


@contextlib.contextmanager
def serving() -> Iterator[tuple[Hub, str]]:
    """Serve a hub for the block; yields it with its address."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
