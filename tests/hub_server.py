"""A local server with the part of the Hugging Face Hub's API that huggingface_hub calls for models."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_valid"
LFS_SUFFIXES = (".safetensors",)


@dataclass
class Repository:
    """Files by commit, and commits by revision."""

    is_private: bool = False
    is_gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], revision: str = "main", message: str = "") -> str:
        """Add a commit, and return its hash."""
        text = json.dumps([[name, hashlib.sha256(data).hexdigest()] for name, data in sorted(files.items())])
        sha = hashlib.sha1(f"{len(self.commits)} {text}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.revisions[revision] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str) -> dict[str, bytes] | None:
        """Return the files of a branch or commit."""
        return self.commits.get(self.revisions.get(revision, revision))


@dataclass
class Hub:
    """Repositories, and a log of the requests."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""

    downloads: list[tuple[str, str | None]] = field(default_factory=list)
    """File and range of every download."""

    cut: dict[str, int] = field(default_factory=dict)
    """File -> bytes after which its next download breaks off."""

    fail: set[str] = field(default_factory=set)
    """Files whose downloads fail."""

    url: str = ""

    def add_folder(self, name: str, folder: Path, revision: str = "main", **options: Any) -> Repository:
        """Add a folder as a commit of a repository."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        repository = self.repositories.setdefault(name, Repository(**options))
        repository.commit(files, revision)
        return repository


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._get(is_head=True)

    def do_GET(self) -> None:
        self._get()

    def do_PUT(self) -> None:
        data = self._body()
        self.hub.blobs[hashlib.sha256(data).hexdigest()] = data
        self._send(200)

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(401, "", "Invalid username or password.")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/(.+/.+)\.git/info/lfs/objects/batch", path):
            objects = [
                {"oid": each["oid"], "size": each["size"]}
                | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|branch|commit)/(.+)", path):
            repository = self.hub.repositories[found[1]]
            getattr(self, f"_{found[2]}")(repository, found[3], body)
        else:
            self._error(404, "", "not found")

    def _create(self, body: Any) -> None:
        name = f"{body['organization']}/{body['name']}"
        is_new = name not in self.hub.repositories
        if is_new:
            is_private = body.get("visibility") == "private" or bool(body.get("private"))
            self.hub.repositories[name] = Repository(is_private=is_private)
            self.hub.repositories[name].commit({".gitattributes": b""})
        self._json({"url": f"{self.hub.url}/{name}"}, 200 if is_new else 409)

    def _branch(self, repository: Repository, revision: str, body: bytes) -> None:
        is_new = revision not in repository.revisions
        repository.revisions.setdefault(revision, repository.revisions["main"])
        self._send(201 if is_new else 409)

    def _preupload(self, repository: Repository, revision: str, body: bytes) -> None:
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for each in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _commit(self, repository: Repository, revision: str, body: bytes) -> None:
        files, message = dict(repository.files(revision) or {}), ""
        for line in body.decode().splitlines():
            key, value = (operation := json.loads(line))["key"], operation["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files, revision, message)
        name = next(name for name, each in self.hub.repositories.items() if each is repository)
        self._json({"commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def _get(self, *, is_head: bool = False) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = found or file
        repository = self.hub.repositories.get(match[1]) if match else None
        has_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if match is None or repository is None:
            self._error(404 if has_token else 401, "RepoNotFound", "Repository not found")
        elif repository.is_private and not has_token:
            self._error(401, "RepoNotFound", "Invalid username or password.")
        elif repository.is_gated:
            self._error(403 if has_token else 401, "GatedRepo", "Access to the model is restricted.")
        elif file:
            self._file(repository, file[2], file[3], is_head=is_head)
        elif (files := repository.files(match[3] or "main")) is None:
            self._error(404, "RevisionNotFound", "Invalid rev id")
        elif match[2] == "tree":
            self._json([_tree_entry(name, data) for name, data in sorted(files.items())])
        else:
            sha = repository.revisions.get(match[3] or "main", match[3])
            siblings = [{"rfilename": name} for name in sorted(files)]
            self._json({"id": match[1], "sha": sha, "private": repository.is_private, "siblings": siblings})

    def _file(self, repository: Repository, revision: str, name: str, *, is_head: bool) -> None:
        data = (repository.files(revision) or {}).get(name)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        span = self.headers.get("Range")
        if not is_head:
            self.hub.downloads.append((name, span))
        if name in self.hub.fail and not is_head:
            self._error(500, "", "Internal error")
            return
        first = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
        commit = repository.revisions.get(revision, revision)
        headers = {"ETag": f'"{_etag(name, data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if span:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        cut = None if is_head else self.hub.cut.pop(name, None)
        self._send(206 if span else 200, data[first:], headers, is_head=is_head, cut=cut)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers, is_head=self.command == "HEAD")

    def _send(
        self,
        status: int,
        data: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        is_head: bool = False,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not is_head:
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True


def _etag(name: str, data: bytes) -> str:
    if name.endswith(LFS_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tree_entry(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data)}
    if name.endswith(LFS_SUFFIXES):
        digest = _etag(name, data)
        return entry | {"oid": digest[:40], "lfs": {"oid": digest, "size": len(data), "pointerSize": 134}}
    return entry | {"oid": _etag(name, data)}


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a Hub without repositories on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
