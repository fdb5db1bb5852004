"""A stand-in for the Hugging Face Hub on loopback: enough of its interface to load models and code from it.

Set `HF_ENDPOINT` to `url` in a process of its own: huggingface_hub reads it once, when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class HubStub:
    """Model repositories with commits and branches, served while the `with` block lasts.

    Attributes:
        requests: Method and path of every request so far.
    """

    handler: type[_Handler]  # set below: classes stand after what they use

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self._commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self._branches: dict[tuple[str, str], str] = {}

    def __enter__(self) -> HubStub:
        handler = type("Handler", (self.handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """The branch now holds exactly these files; returns the commit's id, 40 hex digits."""
        content = [repo, *(f"{name} {hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))]
        sha = hashlib.sha1("\n".join(content).encode()).hexdigest()
        self._commits[repo, sha] = dict(files)
        self._branches[repo, branch] = sha
        return sha

    def commit_folder(self, repo: str, folder: Path) -> str:
        """`commit` with all the files of a folder."""
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return self.commit(repo, {name: path.read_bytes() for name, path in files.items()})

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch or commit."""
        sha = self._branches.get((repo, revision), revision)
        files = self._commits.get((repo, sha))
        return None if files is None else (sha, files)


def blob_id(data: bytes) -> str:
    """The id that git, and so the Hub, gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStub

    def do_GET(self) -> None:
        self.hub.requests.append((self.command, self.path))
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._answer_api(match[1], match[2], match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._answer_file(*match.groups())
        else:
            self._send(404, b"{}", {})

    do_HEAD = do_GET

    def _answer_api(self, repo: str, kind: str | None, revision: str) -> None:
        found = self.hub.find(repo, revision)
        if found is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if kind else "RepoNotFound"})
        sha, files = found
        names = sorted(files)
        answer: Any = {"id": repo, "modelId": repo, "sha": sha, "siblings": [{"rfilename": name} for name in names]}
        if kind == "tree":
            answer = [self._tree_entry(name, files[name]) for name in names]
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _tree_entry(self, name: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(data), "oid": blob_id(data)}

    def _answer_file(self, repo: str, revision: str, name: str) -> None:
        found = self.hub.find(repo, revision)
        if found is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        sha, files = found
        if name not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        tag = f'"{blob_id(files[name])}"'
        return self._send(200, files[name], {"ETag": tag, "X-Repo-Commit": sha})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: `requests` holds them."""


HubStub.handler = _Handler
