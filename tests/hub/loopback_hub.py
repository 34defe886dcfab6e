"""A small Hugging Face Hub on the loopback interface, in memory: what tests push to and load from.

    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "-c", "..."], env={**os.environ, **hub.environment(home=folder)})

It speaks as much of the Hub's protocol as huggingface_hub, transformers, diffusers and datasets use. The endpoints
stand in `loopback_routes.py`; here is what they answer from. huggingface_hub reads the endpoint when it is imported, so
a process has to be started with `environment`.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from loopback_routes import Connection

KINDS = ("models", "datasets", "spaces")
# Files of these kinds are stored as large files whatever their size, as the Hub's .gitattributes have it.
LARGE_FILE_ENDINGS = (".safetensors", ".bin", ".parquet", ".arrow", ".pt", ".gz", ".zip", ".npz", ".png", ".gif")
LARGE_FILE_BYTES = 10 * 2**20


@dataclass(frozen=True)
class StoredFile:
    """A version of a file: the id of its git blob, its size in bytes and, for a large file, its SHA-256."""

    oid: str
    size: int
    sha256: str | None = None


Tree = dict[str, StoredFile]


@dataclass
class Repository:
    """A repository: files of every commit, branches, tags and messages.

    Args:
        kind: one of `KINDS`.
        name: `user/name`.
        private: whether it is hidden from those without the token.
    """

    kind: str
    name: str
    private: bool = False
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, tree: Tree, message: str) -> str:
        """Makes `tree` the state of a branch; returns the id of the commit."""
        files = sorted((path, entry.oid) for path, entry in tree.items())
        identity = [self.kind, self.name, self.branches.get(branch), len(self.messages), message, files]
        commit = hashlib.sha1(json.dumps(identity).encode()).hexdigest()
        self.commits[commit] = tree
        self.branches[branch] = commit
        self.messages.append(message)
        return commit

    def resolve(self, revision: str | None) -> str | None:
        """Id of the commit that a branch, a tag or a commit id names; nothing where there is none."""
        revision = (revision or "main").removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.branches.get(revision) or self.tags.get(revision) or self._whole_id(revision)

    def _whole_id(self, revision: str) -> str | None:
        return revision if revision in self.commits else None


@dataclass
class Cut:
    """Connections that break in the middle of a file: those whose path has the ending, after so many bytes."""

    ending: str
    after: int
    times: int


class LoopbackHub:
    """The Hub: accounts (one), repositories, stored files, and a log of what was asked for.

    Args:
        user: the only account.
        token: its token, with all rights.
        large_file_bytes: files of this size or more go through the protocol of large files.

    Attributes:
        repositories: by kind (`"models"`, `"datasets"`, `"spaces"`) and name.
        requests: method, path and `Range` header of each request.
        unknown: those that no endpoint here answers; a test that relies on one finds it here.
    """

    def __init__(self, user: str = "me", token: str = "hf_loopback", large_file_bytes: int = LARGE_FILE_BYTES) -> None:
        self.user, self.token, self.large_file_bytes = user, token, large_file_bytes
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.unknown: list[tuple[str, str]] = []
        self.cuts: list[Cut] = []
        self.lock = threading.RLock()
        handler = type("HubConnection", (Connection,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path, token: str | None = None, offline: bool = False) -> dict[str, str]:
        """Variables for a process that is to see this Hub and no other.

        Args:
            home: folder of its cache; an empty one for a user who has loaded nothing yet.
            token: the account's by default, `""` for nobody's.
            offline: as on a computer without a network.
        """
        variables = {
            "HF_HOME": str(home),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        if token is None or token:
            variables["HF_TOKEN"] = token or self.token
        return {**variables, "HF_HUB_OFFLINE": "1"} if offline else variables

    def create(self, name: str, kind: str = "models", private: bool = False) -> Repository:
        """A new repository with an empty first commit."""
        self.repositories[kind, name] = Repository(kind, name, private)
        return self.repositories[kind, name]

    def repository(self, name: str, kind: str = "models") -> Repository:
        """A repository that is there, else a KeyError."""
        return self.repositories[kind, name]

    def files(self, name: str, kind: str = "models", revision: str = "main") -> Tree:
        """The files of a revision, by path."""
        repository = self.repository(name, kind)
        commit = repository.resolve(revision)
        if commit is None:
            raise KeyError(f"{name} has no revision {revision}")
        return repository.commits[commit]

    def read(self, name: str, path: str, kind: str = "models", revision: str = "main") -> bytes:
        """What a file of a repository holds."""
        return self.content(self.files(name, kind, revision)[path])

    def content(self, entry: StoredFile) -> bytes:
        """What a version of a file holds."""
        return self.blobs[entry.oid] if entry.sha256 is None else self.large_files[entry.sha256]

    def store(self, content: bytes) -> StoredFile:
        """Keeps a file that is not large."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.blobs[oid] = content
        return StoredFile(oid, len(content))

    def store_large(self, sha256: str) -> StoredFile:
        """Refers to a large file that was uploaded before, else a KeyError."""
        size = len(self.large_files[sha256])
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return StoredFile(self.store(pointer.encode()).oid, size, sha256)

    def is_large(self, path: str, size: int) -> bool:
        """Returns whether a file goes through the protocol of large files."""
        return path.endswith(LARGE_FILE_ENDINGS) or size >= self.large_file_bytes

    @contextmanager
    def cutting(self, ending: str, after: int, times: int = 1_000_000) -> Iterator[Cut]:
        """Breaks the connection in the middle of files.

        Args:
            ending: of the paths concerned, `owner/name/path`, such as `".safetensors"`.
            after: bytes that still arrive.
            times: downloads that break; what comes after is whole. The `Cut` counts them down.
        """
        cut = Cut(ending, after, times)
        self.cuts.append(cut)
        try:
            yield cut
        finally:
            self.cuts.remove(cut)

    def cut_for(self, path: str, size: int) -> int | None:
        """Bytes after which this download of `size` bytes breaks; nothing where it does not."""
        for cut in self.cuts:
            if path.endswith(cut.ending) and cut.times > 0 and size > cut.after:
                cut.times -= 1
                return cut.after
        return None

    def add(self, name: str, files: Mapping[str, bytes], kind: str = "models", private: bool = False) -> str:
        """Puts files into a new or existing repository's main branch, past the protocol; returns the commit."""
        repository = self.repositories.get((kind, name)) or self.create(name, kind, private)
        tree = dict(repository.commits[repository.branches["main"]])
        for path, content in files.items():
            tree[path] = self.store(content)
        return repository.commit("main", tree, "add files")
