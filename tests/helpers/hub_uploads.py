"""A stand-in Hub that takes uploads: creating repositories, commits of plain and LFS files, and tags."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_stub import HubStub, _Handler, blob_id


TOKEN = "hf_" + "x" * 34


class UploadHub(HubStub):
    """A `HubStub` whose repositories are made and filled through huggingface_hub, by who has `TOKEN`.

    Attributes:
        lfs: Endings of the names of files that are to be stored by LFS.
        messages: The first lines of the commits, in order.
        fail_at: Method and a part of the path of requests to be answered by 500.
    """

    def __init__(self, lfs: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.lfs = lfs
        self.messages: list[str] = []
        self.fail_at: tuple[str, str] | None = None
        self._tags: dict[tuple[str, str], str] = {}
        self._objects: dict[str, bytes] = {}

    def create(self, repo: str) -> bool:
        """Makes an empty repository with a first commit, as the Hub does; False if there is one."""
        if self.find(repo, "main"):
            return False
        self.commit(repo, {".gitattributes": b"*.bin filter=lfs\n"})
        return True

    def tag(self, repo: str, name: str, revision: str) -> bool:
        """Names a commit; False if the name is taken."""
        found = self.find(repo, revision)
        assert found is not None
        if (repo, name) in self._tags:
            return False
        self._tags[repo, name] = self._branches[repo, name] = found[0]
        return True

    def refs(self, repo: str) -> dict[str, list[dict[str, str]]]:
        """Branches and tags in the form of the Hub's answer."""

        def named(kind: str, table: dict[tuple[str, str], str]) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha}
                for (owner, name), sha in table.items()
                if owner == repo
            ]

        heads = {key: sha for key, sha in self._branches.items() if key not in self._tags}
        return {"branches": named("heads", heads), "tags": named("tags", self._tags), "converts": []}

    def apply(self, repo: str, revision: str, lines: list[dict[str, Any]]) -> str:
        """The commit that a payload of NDJSON lines describes."""
        found = self.find(repo, revision)
        assert found is not None
        files = dict(found[1])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self._objects[value["oid"]]
            else:
                raise AssertionError(f"a commit that does what it should not: {line['key']}")
        return self.commit(repo, files, revision)

    def is_lfs(self, name: str) -> bool:
        return name.endswith(self.lfs)


class _UploadHandler(_Handler):
    hub: UploadHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            return self._guarded(lambda: self._json({"name": "someone", "type": "user", "orgs": []}))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", path):
            if self.hub.find(match[1], "main") is None:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return self._json(self.hub.refs(match[1]))
        return super().do_GET()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._guarded(self._post)

    def do_PUT(self) -> None:  # the storage behind LFS: its addresses are secrets themselves, so that no token is sent
        data = self._body()
        self.hub.requests.append((self.command, self.path))
        self.hub._objects[hashlib.sha256(data).hexdigest()] = data
        self._send(200, b"", {})

    def _guarded(self, answer: Any) -> None:
        self.hub.requests.append((self.command, self.path))
        failing = self.hub.fail_at
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._body()
            self._send(401, b'{"error": "Invalid credentials"}', {})
        elif failing and failing[0] == self.command and failing[1] in self.path:
            self._body()
            self._send(500, b"{}", {})
        else:
            answer()

    def _post(self) -> None:
        path, data = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/repos/create":
            order = json.loads(data)
            repo = f"{order.get('organization') or 'someone'}/{order['name']}"
            return self._json({"url": f"{self.hub.url}/{repo}"}, 200 if self.hub.create(repo) else 409)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._lfs_batch(json.loads(data))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|tag)/(.+)", path)
        assert match is not None, path
        repo, kind, revision = match.groups()
        if kind == "preupload":
            return self._preupload(repo, revision, json.loads(data)["files"])
        if kind == "tag":
            return self._json({}, 200 if self.hub.tag(repo, json.loads(data)["tag"], revision) else 409)
        sha = self.hub.apply(repo, revision, [json.loads(line) for line in data.splitlines()])
        return self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def _preupload(self, repo: str, revision: str, files: list[dict[str, Any]]) -> None:
        found = self.hub.find(repo, revision)
        assert found is not None
        answers = []
        for file in files:
            mode = "lfs" if self.hub.is_lfs(file["path"]) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in found[1]:
                data = found[1][file["path"]]
                answer["oid"] = hashlib.sha256(data).hexdigest() if mode == "lfs" else blob_id(data)
            answers.append(answer)
        self._json({"files": answers})

    def _lfs_batch(self, order: dict[str, Any]) -> None:
        self._json(
            {
                "transfer": "basic",
                "objects": [
                    {**entry, "actions": {"upload": {"href": f"{self.hub.url}/storage/{entry['oid']}"}}}
                    for entry in order["objects"]
                ],
            }
        )

    def _tree_entry(self, name: str, data: bytes) -> dict[str, Any]:
        entry = super()._tree_entry(name, data)
        if not self.hub.is_lfs(name):
            return entry
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(data).hexdigest()}\n"
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": len(pointer)}
        return {**entry, "oid": blob_id(pointer.encode()), "lfs": lfs}

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, answer: Any, status: int = 200) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})


UploadHub.handler = _UploadHandler
