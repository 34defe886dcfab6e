"""Where the page keeps its files: one temporary folder that empties itself."""

import shutil
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path


class Workspace:
    """A temporary folder that lives as long as this object; what is older than an hour in it goes as new files come.

    Args:
        max_age: seconds that a folder is kept.
    """

    def __init__(self, max_age: float = 3600.0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hf-vq-app-")
        self._max_age = max_age

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self._folder.name)

    def new_folder(self) -> Path:
        """Returns a new empty folder, after removing those that are too old."""
        files = self.path / "files"
        files.mkdir(exist_ok=True)
        for folder in files.iterdir():
            with suppress(FileNotFoundError):  # another call may remove the same folder at the same time
                if time.time() - folder.stat().st_mtime > self._max_age:
                    shutil.rmtree(folder, ignore_errors=True)
        new = files / uuid.uuid4().hex
        new.mkdir()
        return new

    def close(self) -> None:
        """Removes everything."""
        self._folder.cleanup()
