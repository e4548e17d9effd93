"""A hub on this machine: the part of huggingface.co's interface that loading models and data sets needs, over folders.

`root/models/OWNER/NAME` and `root/datasets/OWNER/NAME` are repositories at `main`; another revision is in a folder
beside it, `NAME@REVISION` with `%2F` for each slash. A repository in `gated` wants `TOKEN`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_stand_in"
DATE = "2026-01-01T00:00:00.000Z"


class Hub(ThreadingHTTPServer):
    """The server.

    Args:
        root: folder of the repositories.
        gated: names of those that want a token.
    """

    daemon_threads = True

    def __init__(self, root: Path, gated: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.gated = root, gated
        self.asked: list[str] = []
        """The method and the path of each request so far."""
        self.unanswered: list[str] = []
        """Those that it does not know how to answer."""
        self.private: dict[str, bool] = {}
        """The repositories that were made here."""
        self._hashes: dict[tuple[Path, int], str] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ends while it is connected is no error here."""

    @property
    def url(self) -> str:
        """What `HF_ENDPOINT` is to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def hash(self, path: Path) -> str:
        """Of a file's content."""
        key = (path, path.stat().st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = hashlib.sha1(path.read_bytes()).hexdigest()
        return self._hashes[key]


@contextmanager
def serving(root: Path, gated: tuple[str, ...] = ()) -> Iterator[Hub]:
    """A hub in a thread of its own, within this context."""
    with Hub(root, gated) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Repository:
    """A repository at a revision, or at the commit of one."""

    def __init__(self, hub: Hub, kind: str, name: str, revision: str) -> None:
        self.hub, self.name, self.main = hub, name, hub.root / kind / name
        folders = {"main": self.main}
        for folder in self.main.parent.glob(f"{self.main.name}@*"):
            folders[unquote(folder.name.partition("@")[2])] = folder
        self.revisions = {known: hashlib.sha1(f"{kind}/{name}@{known}".encode()).hexdigest() for known in folders}
        found = [known for known, commit in self.revisions.items() if revision in (known, commit)]
        self.folder = folders[found[0]] if found else None
        self.commit = self.revisions[found[0]] if found else ""

    def entry(self, path: Path) -> dict[str, Any]:
        """As in a listing."""
        assert self.folder is not None
        shown = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": hashlib.sha1(shown.encode()).hexdigest(), "size": 0, "path": shown}
        return {"type": "file", "oid": self.hub.hash(path), "size": path.stat().st_size, "path": shown}

    def about(self) -> dict[str, Any]:
        """As `GET /api/models/NAME` says it."""
        assert self.folder is not None
        files = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        gated = "manual" if self.name in self.hub.gated else False
        plain: dict[str, Any] = {"private": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return {
            **plain,
            "private": self.hub.private.get(self.name, False),
            "id": self.name,
            "sha": self.commit,
            "gated": gated,
            "siblings": [{"rfilename": n} for n in files],
        }

    def commits(self) -> list[dict[str, Any]]:
        """The last one of the revision, before it the one of main."""
        return [
            {"id": commit, "title": "files", "message": "", "date": DATE, "authors": [{"user": "someone"}]}
            for commit in dict.fromkeys((self.commit, self.revisions["main"]))
        ]

    def conversions(self) -> list[dict[str, Any]]:
        """The pull requests `refs/pr/N`: each with the weights of main as safetensors, by the hub's own program."""
        numbers = [int(name.rpartition("/")[2]) for name in self.revisions if name.startswith("refs/pr/")]
        plain = {"title": "Adding `safetensors` variant of this model", "status": "open", "isPullRequest": True}
        plain |= {"author": {"name": "SFconvertbot"}, "createdAt": DATE, "repo": {"name": self.name, "type": "model"}}
        return [{**plain, "num": number} for number in numbers]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr: `Hub.asked` has it."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bytes = b"") -> None:
        url = urlsplit(self.path)
        self.server.asked.append(f"{self.command} {self.path}")
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in ("models", "datasets"):
            if self.command == "POST" and parts[4] in ("preupload", "commit"):
                self._push(parts[1], "/".join(parts[2:4]), parts[4], body)
            else:
                self._api(parts[1], "/".join(parts[2:4]), parts[4:], body, parse_qs(url.query))
        elif parts == ["api", "validate-yaml"]:
            base = re.search(r"^base_model: (.*)$", json.loads(body)["content"], re.MULTILINE)
            fits = base is None or re.fullmatch(r"[\w.-]+/[\w.-]+", base[1]) is not None
            wrong = [] if fits else [{"message": '"base_model" must be the id of a model'}]
            self._send(200 if fits else 400, {"errors": wrong, "warnings": []})
        elif parts == ["api", "repos", "create"] and self._may_write():
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            self.server.private.setdefault(name, wanted.get("visibility") == "private" or bool(wanted.get("private")))
            (self.server.root / f"{wanted.get('type', 'model')}s" / name).mkdir(parents=True, exist_ok=True)
            self._send(200, {"url": f"{self.server.url}/{name}", "name": name})
        elif "resolve" in parts[2:4]:
            kind = "datasets" if parts[0] == "datasets" else "models"
            at = parts.index("resolve")
            self._file(kind, "/".join(parts[at - 2 : at]), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            self.server.unanswered.append(f"{self.command} {self.path}")
            self._send(404, {"error": f"the stand-in does not answer {self.command} {self.path}"})

    def _api(self, kind: str, name: str, rest: list[str], body: bytes, query: dict[str, list[str]]) -> None:
        what = rest[0] if rest else "revision"
        revision, path = rest[1] if len(rest) > 1 else "main", "/".join(rest[2:])
        if (found := self._open(kind, name, revision, what == "auth-check")) is None:
            return
        assert found.folder is not None
        if what == "revision":
            self._send(200, found.about())
        elif what == "auth-check":
            self._send(200, {})
        elif what == "commits":
            self._send(200, found.commits())
        elif what == "discussions":
            listed = found.conversions()
            self._send(200, {"discussions": listed, "count": len(listed), "start": 0})
        elif what == "tree" and not (found.folder / path).is_dir():
            self._send(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
        elif what == "tree":
            folder, deep = found.folder / path, query.get("recursive") == ["true"]
            self._send(200, [found.entry(each) for each in sorted(folder.rglob("*") if deep else folder.iterdir())])
        elif what == "paths-info":
            paths = [found.folder / one for one in json.loads(body)["paths"]]
            self._send(200, [found.entry(each) for each in paths if each.exists() and each != found.folder])
        else:
            self.server.unanswered.append(f"{self.command} {self.path}")
            self._send(404, {"error": f"the stand-in does not answer {self.command} {self.path}"})

    def _may_write(self) -> bool:
        """Whether the token allows it; or the hub's refusal is sent."""
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not allowed:
            self._send(401, {"error": "Invalid username or password."})
        return allowed

    def _push(self, kind: str, name: str, what: str, body: bytes) -> None:
        """What comes before a commit, and a commit, its files in its lines."""
        if not self._may_write():
            return
        if what == "preupload":
            paths = [one["path"] for one in json.loads(body)["files"]]
            how = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self._send(200, {"files": how})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                path = self.server.root / kind / name / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(value["content"]))
        commit = _Repository(self.server, kind, name, "main").commit
        self._send(
            200, {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"}
        )

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        if (found := self._open(kind, name, revision, True)) is None:
            return
        headers = {"X-Repo-Commit": found.commit}
        assert found.folder is not None
        file = found.folder / path
        if not file.is_file():
            return self._send(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
        headers |= {"ETag": f'"{self.server.hash(file)}"', "Accept-Ranges": "bytes"}
        content, status = file.read_bytes(), 200
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, headers)

    def _open(self, kind: str, name: str, revision: str, is_content: bool) -> _Repository | None:
        """The repository; or the hub's refusal is sent."""
        found = _Repository(self.server, kind, name, revision)
        if not found.main.is_dir():
            self._send(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif is_content and name in self.server.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            message = f"Access to model {name} is restricted. You must have access to it and be authenticated."
            self._send(401, {"error": message}, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        elif found.folder is None:
            self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        else:
            return found
        return None

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
