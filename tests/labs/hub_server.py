"""A server that speaks as much of the Hugging Face Hub's API as a download of a model takes, and fails when told to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_" + "t" * 34


class Hub:
    """One model, `repo`, whose files are those of `folder`."""

    def __init__(self, repo: str, folder: Path) -> None:
        self.repo, self.folder = repo, folder
        self.private = self.gated = False
        self.cut: dict[str, int] = {}  # file -> bytes after which its next download is dropped
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.url = ""

    def fetched(self) -> set[str]:
        """Names of the files that were asked for."""
        return {path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path}

    @contextmanager
    def serve(self) -> Iterator[Hub]:
        """Answer on a free port of this machine."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    """The four requests: what a revision is, what is in it, a file's ETag, a file."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append((self.command, path, self.headers.get("Range")))
        if not path.startswith((f"/api/models/{hub.repo}/", f"/api/models/{hub.repo}", f"/{hub.repo}/")):
            return self.refuse(404, "RepoNotFound", "Repository not found")
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if hub.private and not authorised:
            return self.refuse(401, "RepoNotFound", "Invalid username or password.")
        if hub.gated and not authorised:
            return self.refuse(403, "GatedRepo", "Access to this model is restricted.")
        if found := re.fullmatch(rf"/api/models/{hub.repo}(/revision/([^/]+))?", path):
            return self.revision(found[2] or "main")
        if re.fullmatch(rf"/api/models/{hub.repo}/tree/{COMMIT}", path):
            return self.send(json.dumps([self.row(file) for file in self.files()]).encode())
        if found := re.fullmatch(rf"/{hub.repo}/resolve/(main|{COMMIT})/(.+)", path):
            return self.file(found[2])
        return self.refuse(404, "EntryNotFound", "Entry not found")

    def files(self) -> list[Path]:
        return sorted(file for file in self.hub.folder.rglob("*") if file.is_file())

    def name(self, file: Path) -> str:
        return file.relative_to(self.hub.folder).as_posix()

    def row(self, file: Path) -> dict[str, object]:
        return {"type": "file", "path": self.name(file), "size": file.stat().st_size, "oid": self.etag(file)[:40]}

    def etag(self, file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def revision(self, name: str) -> None:
        if name not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        siblings = [{"rfilename": self.name(file)} for file in self.files()]
        return self.send(json.dumps({"id": self.hub.repo, "sha": COMMIT, "siblings": siblings}).encode())

    def file(self, name: str) -> None:
        file = self.hub.folder / name
        if not file.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data, start = file.read_bytes(), 0
        headers = {"ETag": f'"{self.etag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(found[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.hub.cut.pop(name, None) if self.command == "GET" else None
        self.send(data[start:], 206 if start else 200, headers, cut)
        return None

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(json.dumps({"error": message}).encode(), status, headers)

    def send(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None

    def log_message(self, *_: object) -> None:
        """Nothing: the tests read `asked`."""
