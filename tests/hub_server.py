"""A server that speaks as much of the hub's protocol as downloads need, on this machine, from a folder.

Models lie in `{folder}/{org}/{name}`, data sets in `{folder}/datasets/{org}/{name}`; each has the one revision `main` and the
commit of the same content.
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The server, and what it was asked for.

    Attributes:
        folder: what it serves.
        gated: repositories that need access.
        members: tokens that have it.
        refused: tokens that the hub does not know.
        broken: the part of a file's name whose download ends in the middle.
        asked: paths of files that were downloaded.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.gated: set[str] = set()
        self.members: set[str] = set()
        self.refused: set[str] = set()
        self.broken: str | None = None
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        api = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/([^/]+)(/.*)?", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if match is None:
            return self.send({}, b"", 404)
        kind, name = match[1] or "", match[2]
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token in self.server.refused:
            return self.send({"X-Error-Message": "Invalid credentials in Authorization header"}, b"", 401)
        home = self.server.folder / ("datasets" if kind.startswith("datasets") else "") / name
        if not home.is_dir():
            return self.send({"X-Error-Code": "RepoNotFound"}, b"", 401)
        if (api[4] if api else file[3]) not in ("main", COMMIT):
            return self.send({"X-Error-Code": "RevisionNotFound"}, b"", 404)
        if api and api[3] == "revision":
            return self.send({}, json.dumps({"id": name, "sha": COMMIT}).encode())
        if api:
            tree = [
                {
                    "type": "file",
                    "path": place.relative_to(home).as_posix(),
                    "size": place.stat().st_size,
                    "oid": hashlib.sha1(place.read_bytes()).hexdigest(),
                }
                for place in sorted(home.rglob("*"))
                if place.is_file()
            ]
            return self.send({}, json.dumps(tree).encode())
        if name in self.server.gated and token not in self.server.members:
            return self.send({"X-Error-Code": "GatedRepo"}, b"", 403 if token else 401)
        content = (home / file[4]).read_bytes()
        if with_body:
            self.server.asked.append(file[4])
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        cut = with_body and self.server.broken is not None and self.server.broken in file[4]
        return self.send(headers, content, with_body=with_body, sent=len(content) // 2 if cut else None)

    def send(
        self, headers: dict[str, str], body: bytes, status: int = 200, with_body: bool = True, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body[:sent])
            if sent is not None:
                self.close_connection = True


@contextmanager
def serving(folder: Path):
    """Serve a folder as a hub."""
    hub = Hub(folder)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
