"""A server that speaks as much of the Hugging Face Hub's API as a download of a model takes, and fails when told to.

Large files are answered as the Hub answers those in LFS: by a redirect to another host that has no need of the token.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_" + "t" * 34
LARGE = (".gguf", ".safetensors")
"""Endings of the files that are in LFS, whatever their size."""


class Hub:
    """One model, `repo`, whose files are those of `folder`."""

    def __init__(self, repo: str, folder: Path, commit: str = COMMIT) -> None:
        self.repo, self.folder, self.commit = repo, folder, commit
        self.private = self.gated = False
        self.broken = 0  # a status for all answers
        self.cut: dict[str, int] = {}  # file -> bytes after which its next download is dropped
        self.held: dict[str, int] = {}  # file -> bytes after which its next whole download waits for `released`
        self.reached, self.released = threading.Event(), threading.Event()
        self.damaged: set[str] = set()  # files whose next download has other bytes
        self.listed: dict[str, int] = {}  # file -> the size that is said of it; also of files that are not there
        self.no_ranges = False
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.tokens_elsewhere = 0  # requests to the other host that carried a token
        self.url = self.elsewhere = ""

    @property
    def name(self) -> str:
        """What bitgen calls the model."""
        return f"hf:{self.repo}"

    def fetched(self) -> set[str]:
        """Names of the files that were asked for."""
        got = [path for method, path, _ in self.asked if method == "GET"]
        return {path.rpartition("/")[2] for path in got if "/resolve/" in path or path.startswith("/lfs/")}

    def ranges(self, name: str) -> list[str | None]:
        """The ranges of a large file that were asked for."""
        return [r for method, path, r in self.asked if method == "GET" and path == f"/lfs/{name}"]

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """For a process that takes this for the Hub and keeps its cache in `home`."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
        return {**kept, **own, **more}

    @contextmanager
    def serve(self) -> Iterator[Hub]:
        """Answer on a free port of this machine."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  clients are killed
        self.url, self.elsewhere = (f"http://{name}:{server.server_port}" for name in ("127.0.0.1", "localhost"))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            server.shutdown()
            server.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    """The requests: what a revision is, what is in it, a file's ETag, a file, a file of the other host."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(self.path.partition("?")[0])
        hub.asked.append((self.command, path, self.headers.get("Range")))
        if hub.broken:
            return self.refuse(hub.broken, "", "broken")
        if path.startswith("/lfs/"):
            hub.tokens_elsewhere += "Authorization" in self.headers
            return self.bytes_of(path.removeprefix("/lfs/"))
        if not path.startswith((f"/api/models/{hub.repo}/", f"/api/models/{hub.repo}", f"/{hub.repo}/")):
            return self.refuse(404, "RepoNotFound", "Repository not found")
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if hub.private and not authorised:
            return self.refuse(401, "RepoNotFound", "Invalid username or password.")
        if hub.gated and not authorised:
            return self.refuse(403, "GatedRepo", "Access to this model is restricted.")
        if found := re.fullmatch(rf"/api/models/{hub.repo}(/revision/([^/]+))?", path):
            return self.revision(found[2] or "main")
        if re.fullmatch(rf"/api/models/{hub.repo}/tree/{hub.commit}", path):
            return self.send(json.dumps([self.row(name) for name in self.names()]).encode())
        if found := re.fullmatch(rf"/{hub.repo}/resolve/(main|{hub.commit})/(.+)", path):
            return self.file(found[2])
        return self.refuse(404, "EntryNotFound", "Entry not found")

    def names(self) -> list[str]:
        there = {file.relative_to(self.hub.folder).as_posix() for file in self.hub.folder.rglob("*") if file.is_file()}
        return sorted(there | self.hub.listed.keys())

    def size(self, name: str) -> int:
        file = self.hub.folder / name
        return self.hub.listed.get(name, file.stat().st_size if file.is_file() else 0)

    def row(self, name: str) -> dict[str, object]:
        row: dict[str, object] = {"type": "file", "path": name, "size": self.size(name), "oid": self.etag(name)[:40]}
        if name.endswith(LARGE):
            row["lfs"] = {"oid": self.etag(name), "size": self.size(name), "pointerSize": 130}
        return row

    def etag(self, name: str) -> str:
        file = self.hub.folder / name
        return hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()

    def sibling(self, name: str) -> dict[str, object]:
        lfs = {"sha256": self.etag(name), "size": self.size(name), "pointerSize": 130}
        found = {"rfilename": name, "size": self.size(name), "blobId": self.etag(name)[:40]}
        return {**found, **({"lfs": lfs} if name.endswith(LARGE) else {})}

    def revision(self, name: str) -> None:
        if name not in ("main", self.hub.commit):
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        siblings = [self.sibling(name) for name in self.names()]
        return self.send(json.dumps({"id": self.hub.repo, "sha": self.hub.commit, "siblings": siblings}).encode())

    def file(self, name: str) -> None:
        file = self.hub.folder / name
        if not file.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        if not name.endswith(LARGE):
            return self.bytes_of(name, {"X-Repo-Commit": self.hub.commit})
        linked = {"X-Linked-Etag": f'"{self.etag(name)}"', "X-Linked-Size": str(self.size(name))}
        place = {"Location": f"{self.hub.elsewhere}/lfs/{quote(name)}", "X-Repo-Commit": self.hub.commit}
        return self.send(b"", 302, {**place, **linked})

    def bytes_of(self, name: str, more: dict[str, str] | None = None) -> None:
        data, start, stop = (self.hub.folder / name).read_bytes(), 0, None
        headers = {"ETag": f'"{self.etag(name)}"', "Accept-Ranges": "bytes", **(more or {})}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if found and not self.hub.no_ranges:
            start, stop = int(found[1]), int(found[2]) + 1 if found[2] else None
            last = min(len(data), stop or len(data)) - 1
            headers["Content-Range"] = f"bytes {start}-{last}/{len(data)}"
        if self.command == "GET" and name in self.hub.damaged:
            self.hub.damaged.discard(name)
            data = data[:-1] + bytes([data[-1] ^ 1])
        cut = self.hub.cut.pop(name, None) if self.command == "GET" else None
        whole = self.command == "GET" and "Range" not in self.headers
        held = self.hub.held.pop(name, None) if whole else None
        self.send(data[start:stop], 206 if "Content-Range" in headers else 200, headers, cut, held)

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(json.dumps({"error": message}).encode(), status, headers)

    def send(
        self,
        body: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
        held: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET" and held is not None:
            self.wfile.write(body[:held])
            self.wfile.flush()
            self.hub.reached.set()
            self.hub.released.wait(120)
            body = body[held:]
        if self.command == "GET":
            try:
                self.wfile.write(body[:cut])
            except OSError:  # the client was killed
                self.close_connection = True
        self.close_connection = self.close_connection or cut is not None

    def log_message(self, *_: object) -> None:
        """Nothing: the tests read `asked`."""
