"""The endpoints of the loopback Hub: one function for each, and the connection that they answer."""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub, Repository, StoredFile

CREATED = "2026-01-01T00:00:00.000Z"
BRANCH_OR_TAG_EXISTS = {"error": "Reference already exists"}


class Refused(Exception):
    """An answer other than the one hoped for, with the code by which huggingface_hub knows the reason."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


class Connection(BaseHTTPRequestHandler):
    """One client's connection. `hub` is set by the subclass that `LoopbackHub` makes."""

    protocol_version = "HTTP/1.1"
    hub: "LoopbackHub"
    query: dict[str, list[str]]
    data: bytes

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keeps quiet on stderr."""

    def handle_request(self) -> None:
        """Answers with the first route that fits."""
        parts = urlsplit(self.path)
        self.query, self.data = parse_qs(parts.query, keep_blank_values=True), self._body()
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        try:
            self._check_token()
            for methods, pattern, function in ROUTES:
                match = re.fullmatch(pattern, parts.path)
                if match and self.command in methods:
                    return self._run(function, [None if part is None else unquote(part) for part in match.groups()])
            self.hub.unknown.append((self.command, self.path))
            raise Refused(404, "UnknownRoute", f"no route for {self.command} {parts.path}")
        except Refused as refused:
            self.reply({"error": refused.message}, refused.status, refused.headers)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_request

    def _run(self, function: "Route", arguments: list[str | None]) -> None:
        # Downloads answer without the lock: a client may leave one half read and ask for the next file.
        if self.command in ("GET", "HEAD"):
            return function(self, *arguments)
        with self.hub.lock:
            function(self, *arguments)

    def reply(
        self,
        body: Any,
        status: int = 200,
        headers: dict[str, str] | None = None,
        content_type: str = "application/json",
        cut: int | None = None,
    ) -> None:
        """Sends bytes, or anything else as JSON; with `cut` only so many bytes before the connection breaks."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(content)),
            "Content-Type": content_type,
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.data or b"{}")

    def require_token(self) -> None:
        """Refuses whoever is not logged in."""
        if "Authorization" not in self.headers:
            raise Refused(401, None, "Invalid username or password.")

    def repository(self, kind: str | None, name: str) -> "Repository":
        """The repository, refused where there is none or it is not for this client."""
        repository = self.hub.repositories.get(((kind or "models").strip("/"), name))
        logged_in = "Authorization" in self.headers
        if repository is None or (repository.private and not logged_in):
            # The Hub does not tell the two apart, so that names of private repositories stay private.
            raise Refused(404 if logged_in else 401, "RepoNotFound", "Repository not found")
        return repository

    def commit(self, repository: "Repository", revision: str | None) -> str:
        """The commit that a revision names, refused where there is none."""
        commit = repository.resolve(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _check_token(self) -> None:
        """Refuses a wrong token, also for what would be open to everybody."""
        if self.headers.get("Authorization", f"Bearer {self.hub.token}") != f"Bearer {self.hub.token}":
            raise Refused(401, None, "Invalid credentials in Authorization header")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        body = b""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return body


Route = Callable[..., None]


def who_am_i(call: Connection) -> None:
    call.require_token()
    access = {"displayName": "test", "role": "write"}
    user = {"type": "user", "id": "0", "name": call.hub.user, "fullname": call.hub.user, "isPro": False, "orgs": []}
    call.reply({**user, "auth": {"type": "access_token", "accessToken": access}})


def create_repository(call: Connection) -> None:
    call.require_token()
    asked, (kind, name) = call.json(), _named_in_body(call)
    url = f"{call.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{name}"
    if (kind, name) in call.hub.repositories:
        return call.reply({"error": "You already created this repo", "url": url}, 409)
    private = bool(asked.get("private")) or asked.get("visibility") == "private"
    call.hub.create(name, kind, private)
    call.reply({"url": url, "name": name, "id": name})


def delete_repository(call: Connection) -> None:
    call.require_token()
    kind, name = _named_in_body(call)
    call.repository(kind, name)
    del call.hub.repositories[kind, name]
    call.reply({})


def _named_in_body(call: Connection) -> tuple[str, str]:
    asked = call.json()
    return asked.get("type", "model") + "s", f"{asked.get('organization') or call.hub.user}/{asked['name']}"


def describe_repository(call: Connection, kind: str, name: str, revision: str | None = None) -> None:
    repository = call.repository(kind, name)
    commit = call.commit(repository, revision)
    files = sorted(repository.commits[commit].items())
    detailed = "blobs" in call.query
    card = _card_metadata(call, repository.commits[commit])
    call.reply(
        {
            **{"_id": "0", "id": name, "modelId": name, "author": name.split("/")[0], "sha": commit},
            **{"private": repository.private, "disabled": False, "gated": False, "downloads": 0, "likes": 0},
            **{"createdAt": CREATED, "lastModified": CREATED, "cardData": card, "tags": card.get("tags") or []},
            **{key: card[key] for key in ("library_name", "pipeline_tag") if key in card},
            "siblings": [{"rfilename": path, **(_sizes(entry) if detailed else {})} for path, entry in files],
        }
    )


def _card_metadata(call: Connection, tree: "dict[str, StoredFile]") -> dict[str, Any]:
    if "README.md" not in tree:
        return {}
    block = re.match(r"---\s*\n(.*?)\n---", call.hub.content(tree["README.md"]).decode(), re.DOTALL)
    return (yaml.safe_load(block.group(1)) or {}) if block else {}


def _sizes(entry: "StoredFile") -> dict[str, Any]:
    large = {"lfs": {"sha256": entry.sha256, "size": entry.size, "pointerSize": 130}} if entry.sha256 else {}
    return {"size": entry.size, "blobId": entry.oid, **large}


def _described(path: str, entry: "StoredFile") -> dict[str, Any]:
    large = {"lfs": {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}} if entry.sha256 else {}
    return {"type": "file", "oid": entry.oid, "size": entry.size, "path": path, **large}


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}


def list_tree(call: Connection, kind: str, name: str, revision: str, folder: str | None = None) -> None:
    repository = call.repository(kind, name)
    start = folder.rstrip("/") + "/" if folder else ""
    recursive = call.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    files, folders = [], set()
    for path, entry in sorted(repository.commits[call.commit(repository, revision)].items()):
        parts = path.removeprefix(start).split("/")
        if not path.startswith(start):
            continue
        folders.update(start + "/".join(parts[:end]) for end in range(1, len(parts)) if recursive or end == 1)
        if recursive or len(parts) == 1:
            files.append(_described(path, entry))
    if folder and not files and not folders:
        raise Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
    call.reply([_folder(path) for path in sorted(folders)] + files)


def describe_paths(call: Connection, kind: str, name: str, revision: str) -> None:
    repository = call.repository(kind, name)
    tree = repository.commits[call.commit(repository, revision)]
    try:
        paths = call.json()["paths"]
    except ValueError:
        paths = parse_qs(call.data.decode())["paths"]
    files = [_described(path, tree[path]) for path in paths if path in tree]
    call.reply(
        files + [_folder(path) for path in paths if any(file.startswith(f"{path.rstrip('/')}/") for file in tree)]
    )


def list_references(call: Connection, kind: str, name: str) -> None:
    repository = call.repository(kind, name)
    branches, tags = (
        [{"name": key, "ref": f"refs/{folder}/{key}", "targetCommit": commit} for key, commit in references.items()]
        for folder, references in (("heads", repository.branches), ("tags", repository.tags))
    )
    call.reply({"branches": branches, "converts": [], "tags": tags})


def create_branch(call: Connection, kind: str, name: str, branch: str) -> None:
    call.require_token()
    repository = call.repository(kind, name)
    if branch in repository.branches:
        return call.reply(BRANCH_OR_TAG_EXISTS, 409)
    repository.branches[branch] = call.commit(repository, call.json().get("startingPoint"))
    call.reply({})


def create_tag(call: Connection, kind: str, name: str, revision: str) -> None:
    call.require_token()
    repository, tag = call.repository(kind, name), call.json()["tag"]
    if tag in repository.tags:
        return call.reply(BRANCH_OR_TAG_EXISTS, 409)
    repository.tags[tag] = call.commit(repository, revision)
    call.reply({})


def choose_upload_modes(call: Connection, kind: str, name: str, revision: str) -> None:
    call.require_token()
    repository = call.repository(kind, name)
    tree = repository.commits[call.commit(repository, revision)]
    modes = []
    for file in call.json()["files"]:
        mode = "lfs" if call.hub.is_large(file["path"], file["size"]) else "regular"
        there = tree[file["path"]].oid if file["path"] in tree else None
        modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": there})
    call.reply({"files": modes})


def announce_large_files(call: Connection, kind: str | None, name: str) -> None:
    call.require_token()
    call.repository(kind, name)
    answers = []
    for wanted in call.json()["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in call.hub.large_files:
            upload = {"href": f"{call.hub.endpoint}/_lfs/{wanted['oid']}", "header": {}}
            verify = {"href": f"{call.hub.endpoint}/_lfs/verify", "header": {}}
            answer |= {"authenticated": True, "actions": {"upload": upload, "verify": verify}}
        answers.append(answer)
    call.reply({"transfer": "basic", "objects": answers}, content_type="application/vnd.git-lfs+json")


def receive_large_file(call: Connection, sha256: str) -> None:
    if hashlib.sha256(call.data).hexdigest() != sha256:
        raise Refused(400, "BadHash", "sha256 mismatch")
    call.hub.large_files[sha256] = call.data
    call.reply(b"")


def verify_large_file(call: Connection) -> None:
    asked = call.json()
    same = len(call.hub.large_files.get(asked["oid"], b"")) == asked["size"]
    call.reply({}, 200 if same else 404)


def create_commit(call: Connection, kind: str, name: str, revision: str) -> None:
    call.require_token()
    repository = call.repository(kind, name)
    if revision not in repository.branches:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    head, *changes = (json.loads(line) for line in call.data.splitlines() if line.strip())
    tip = repository.branches[revision]
    if head["value"].get("parentCommit") not in (None, tip):
        raise Refused(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
    tree = dict(repository.commits[tip])
    for change in changes:
        _apply(call, tree, change["key"], change["value"])
    commit = repository.commit(revision, tree, head["value"]["summary"])
    url = f"{call.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{name}/commit/{commit}"
    call.reply({"success": True, "commitOid": commit, "commitUrl": url, "pullRequestUrl": None})


def _apply(call: Connection, tree: "dict[str, StoredFile]", key: str, value: dict[str, Any]) -> None:
    """Makes one change of a commit in its tree."""
    if key == "file":
        tree[value["path"]] = call.hub.store(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in call.hub.large_files:
            raise Refused(400, "LfsMissing", f"{value['path']}: {value['oid']} was not uploaded")
        tree[value["path"]] = call.hub.store_large(value["oid"])
    elif key == "deletedFile":
        tree.pop(value["path"], None)
    elif key == "deletedFolder":
        for path in [path for path in tree if path.startswith(value["path"].rstrip("/") + "/")]:
            del tree[path]


def validate_card(call: Connection) -> None:
    block = re.match(r"---\s*\n(.*?)\n---", call.json()["content"], re.DOTALL)
    if block is None:
        return call.reply({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        error = "" if isinstance(yaml.safe_load(block.group(1)), dict) else "expected a mapping between two lines ---"
    except yaml.YAMLError as bad:
        error = str(bad)
    call.reply({"errors": [{"message": f"metadata: {error}"}] if error else [], "warnings": []}, 400 if error else 200)


def download(call: Connection, kind: str | None, name: str, revision: str, path: str) -> None:
    repository = call.repository(kind, name)
    commit = call.commit(repository, revision)
    entry = repository.commits[commit].get(path)
    if entry is None:
        raise Refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
    content = call.hub.content(entry)
    headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.sha256 or entry.oid}"', "Accept-Ranges": "bytes"}
    if entry.sha256:
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    part = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
    if part is None:
        return _send(call, f"{name}/{path}", content, 200, headers)
    first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
    if first >= len(content):
        return call.reply(b"", 416, {**headers, "Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    _send(call, f"{name}/{path}", content[first : last + 1], 206, headers)


def _send(call: Connection, path: str, content: bytes, status: int, headers: dict[str, str]) -> None:
    cut = call.hub.cut_for(path, len(content)) if call.command == "GET" else None
    call.reply(content, status, headers, "application/octet-stream", cut)


def accept_telemetry(call: Connection) -> None:
    call.reply(b"")


_KIND, _NAME = "(models|datasets|spaces)", "([^/]+/[^/]+)"
ROUTES: list[tuple[tuple[str, ...], str, Route]] = [
    (("GET",), "/api/whoami-v2", who_am_i),
    (("POST",), "/api/repos/create", create_repository),
    (("DELETE",), "/api/repos/delete", delete_repository),
    (("POST",), "/api/validate-yaml", validate_card),
    (("HEAD", "GET"), "/api/telemetry/.*", accept_telemetry),
    (("GET",), f"/api/{_KIND}/{_NAME}/revision/(.+)", describe_repository),
    (("GET",), f"/api/{_KIND}/{_NAME}/tree/([^/]+)(?:/(.*))?", list_tree),
    (("POST",), f"/api/{_KIND}/{_NAME}/paths-info/([^/]+)", describe_paths),
    (("GET",), f"/api/{_KIND}/{_NAME}/refs", list_references),
    (("POST",), f"/api/{_KIND}/{_NAME}/branch/(.+)", create_branch),
    (("POST",), f"/api/{_KIND}/{_NAME}/tag/(.+)", create_tag),
    (("POST",), f"/api/{_KIND}/{_NAME}/preupload/([^/]+)", choose_upload_modes),
    (("POST",), f"/api/{_KIND}/{_NAME}/commit/([^/]+)", create_commit),
    (("GET",), f"/api/{_KIND}/{_NAME}", describe_repository),
    (("POST",), "/_lfs/verify", verify_large_file),
    (("PUT",), "/_lfs/([0-9a-f]{64})", receive_large_file),
    (("POST",), rf"/(datasets/|spaces/)?{_NAME}\.git/info/lfs/objects/batch", announce_large_files),
    (("HEAD", "GET"), f"/(datasets/|spaces/)?{_NAME}/resolve/([^/]+)/(.+)", download),
]
