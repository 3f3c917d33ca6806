"""Find the data files at a path, by one rule for training, scoring, verifying and outputs.

Data are the files with a suffix of their kind. Names that begin with "_" or "." are hidden, as readers of Parquet
folders have it, but for partition folders such as `_year=2024`. A file with several names, by links, is one file.
"""

import contextlib
import os
import stat
from dataclasses import dataclass, field

import pyarrow.fs
from fsspec.implementations.arrow import ArrowFSWrapper

from sentiment_core.data import tables
from sentiment_core.data.snapshot import Snapshot
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.storage import RESERVED_NAMES, FileStamp

GLOB_CHARACTERS = "*?["
HIDDEN = ("_", ".")  # first characters of names
SHOWN_FILES = 3  # of those passed over, in a message


@dataclass(frozen=True)
class DataFiles:
    """The data files at a path, sorted by path, and the names beside them that are not read."""

    root: str  # folder or URI that all paths are relative to
    stamps: list[FileStamp]
    passed_over: list[str] = field(default_factory=list)  # visible files with another suffix
    links: list[str] = field(default_factory=list)  # further names of what is data already
    table: Snapshot | None = None  # the table's version whose files these are

    def describe_unread(self) -> list[str]:
        """Describe the names that are not read, a line a kind."""
        return [
            f"{len(paths):,} {kind}: {', '.join(paths[:SHOWN_FILES])}" + " ..." * (len(paths) > SHOWN_FILES)
            for kind, paths in (
                ("files passed over, since their names do not end as data files do", self.passed_over),
                ("links to data that is read under its own name", self.links),
            )
            if paths
        ]


def is_glob(path: str) -> bool:
    """Return whether a path holds a wildcard."""
    return any(character in path for character in GLOB_CHARACTERS)


def find_files(path: str, suffixes: tuple[str, ...], version: int | None = None) -> DataFiles:
    """Find the data files at a path.

    A folder gives the files with one of `suffixes`, at any depth. A single file or a glob gives what it matches,
    whatever the suffix. A table gives the files of its `version`, the current one if None. Files that
    `storage.check_relative_path` refuses are listed too. Raises `UserError` if nothing fits, and for a part of a table.
    """
    table = tables.open_table(path, version)
    if table:
        return DataFiles(table.root, [file.stamp for file in table.files], table=table)
    filesystem, inner_path = storage.locate(path)
    folders: set[str] = set()  # of what a glob matches
    targets: list[str] = []  # where links lead
    try:
        info = storage.retry_transient_errors(path, lambda: filesystem.get_file_info(inner_path))
        if info.type == pyarrow.fs.FileType.File:
            root = storage.absolute(path).rpartition("/")[0] or "/"
            data = DataFiles(root, [storage.make_stamp(info, info.base_name)])
        elif info.type == pyarrow.fs.FileType.Directory:
            data, other_files, targets = _list_folder(path, suffixes)
            tables.refuse_table_files(path, [*other_files, *(stamp.path for stamp in data.stamps)])
        elif is_glob(path):
            data = _expand_glob(path, filesystem, inner_path)
            folders = {os.path.dirname(stamp.path) for stamp in data.stamps}
        else:
            raise UserError(f"{path} does not exist; expected a file, a folder, a glob or a URI")
    except OSError as error:
        raise UserError(f"{path} cannot be listed: {error}; check the path and the credentials") from None
    tables.refuse_tables_around(data.root, folders)
    for target in sorted(set(targets)):
        tables.refuse_tables_around(target)
    if not data.stamps:
        if is_glob(path) and info.type == pyarrow.fs.FileType.NotFound:
            raise UserError(f"{path} matches no file; end it in /*.parquet")
        unread = "".join(f" ({line})" for line in data.describe_unread())
        raise UserError(f"{path} holds no {', '.join(suffixes)} file{unread}; check the path")
    return data


def list_files(folder: str, suffixes: tuple[str, ...]) -> list[FileStamp]:
    """List the data files below a folder. Raises `UserError`."""
    try:
        return _list_folder(folder, suffixes)[0].stamps
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error}; check the permission to read it") from None


def is_hidden(path: str) -> bool:
    """Return whether a part of a relative path is hidden from readers of Parquet folders."""
    return any(part[:1] in HIDDEN and "=" not in part and part not in RESERVED_NAMES for part in path.split("/"))


def has_hidden_partition(path: str) -> bool:
    """Return whether a relative path has a folder such as `_year=2024`, which some readers pass over."""
    return any(part[:1] in HIDDEN and "=" in part for part in path.split("/"))


def _list_folder(folder: str, suffixes: tuple[str, ...]) -> tuple[DataFiles, list[str], list[str]]:
    """List a folder: its data files, the other paths below it, and where links lead."""
    if storage.is_local(folder):
        walk = _LocalWalk(storage.locate(folder)[1], suffixes)
        files = DataFiles(storage.absolute(folder), walk.stamps, walk.passed_over, walk.links)
        return files, walk.hidden_folders + walk.passed_over, walk.targets
    stamps = storage.list_stamps(folder)
    visible = [stamp for stamp in stamps if not is_hidden(stamp.path)]
    data = [stamp for stamp in visible if stamp.path.lower().endswith(suffixes)]
    passed_over = [stamp.path for stamp in visible if not stamp.path.lower().endswith(suffixes)]
    return DataFiles(storage.absolute(folder), data, passed_over), [stamp.path for stamp in stamps], []


class _LocalWalk:
    """A walk through a local folder that meets each real file and folder once.

    Names without links come first, then links to folders, then links to files. A link to what was not met leads on; a
    link to what was met is a further name of it. So links in a circle end. Hidden folders are not entered.
    """

    def __init__(self, base: str, suffixes: tuple[str, ...]) -> None:
        self.stamps: list[FileStamp] = []
        self.passed_over: list[str] = []
        self.links: list[str] = []  # further names of what was met
        self.hidden_folders: list[str] = []
        self._suffixes = suffixes
        self._entered: set[str] = set()  # real paths of folders
        self._linked_files: set[str] = set()  # real paths of files met by a link
        self._links_ahead: list[tuple[str, str]] = []  # relative path, real path
        self.targets = [os.path.realpath(base)]  # real paths of what links lead to, and of the base
        self._enter("", self.targets[0])
        file_links: list[tuple[str, str]] = []
        while self._links_ahead:
            links, self._links_ahead = sorted(self._links_ahead), []
            for path, target in links:
                if os.path.isdir(target):
                    self.targets.append(target)
                    self._enter(path, target)
                else:
                    file_links.append((path, target))
        for path, target in sorted(file_links):
            self._follow(path, target)
        self.stamps.sort(key=lambda stamp: stamp.path)
        self.passed_over.sort()
        self.links.sort()

    def _enter(self, folder: str, real_folder: str) -> None:
        folders_ahead = [(folder, real_folder)]
        while folders_ahead:
            folder, real_folder = folders_ahead.pop()
            if real_folder in self._entered:
                self.links.append(folder)
                continue
            self._entered.add(real_folder)
            with os.scandir(real_folder) as entries:
                for entry in entries:
                    name = entry.name if entry.name.isascii() else os.fsencode(entry.name).decode(errors="replace")
                    path = f"{folder}/{name}" if folder else name
                    if is_hidden(name):
                        if _may_be_folder(entry):
                            self.hidden_folders.append(path)
                    elif entry.is_symlink():
                        self._links_ahead.append((path, os.path.realpath(entry.path)))
                    elif entry.is_dir():
                        folders_ahead.append((path, entry.path))
                    elif not name.lower().endswith(self._suffixes):
                        self.passed_over.append(path)
                    else:
                        with contextlib.suppress(FileNotFoundError):  # it was renamed or deleted meanwhile
                            self._take(path, entry.stat())

    def _follow(self, path: str, target: str) -> None:
        """Take the file that a link leads to, unless it was met."""
        folder, name = os.path.split(target)
        is_listed = folder in self._entered and not is_hidden(name) and name.lower().endswith(self._suffixes)
        if is_listed or target in self._linked_files:
            self.links.append(path)
            return
        self._linked_files.add(target)
        self.targets.append(folder)
        try:
            status = os.stat(target)
        except OSError:
            status = None
        self._take(path, status)

    def _take(self, path: str, status: os.stat_result | None) -> None:
        """Note a file as data or as passed over. A link to nothing (None) is data that cannot be read."""
        if not path.lower().endswith(self._suffixes) or not (status is None or stat.S_ISREG(status.st_mode)):
            self.passed_over.append(path)
        elif status is None:
            self.stamps.append(FileStamp(path, 0, 0))
        else:
            self.stamps.append(FileStamp(path, status.st_size, status.st_mtime_ns))


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder. A link in a circle, or one that may not be followed, may be one."""
    try:
        return entry.is_dir()
    except OSError:
        return True


def _expand_glob(path: str, filesystem: pyarrow.fs.FileSystem, inner_path: str) -> DataFiles:
    literal = path[: min(path.find(character) for character in GLOB_CHARACTERS if character in path)]
    root = storage.absolute(literal.rpartition("/")[0] if "/" in literal else ".")
    base = storage.locate(root)[1]
    infos = storage.retry_transient_errors(
        path, lambda: filesystem.get_file_info(ArrowFSWrapper(filesystem).glob(inner_path))
    )
    _check_no_folders(path, infos, base)
    stamps = [stamp for stamp in storage.make_stamps(infos, base) if not is_hidden(stamp.path)]
    if not storage.is_local(root):
        return DataFiles(root, stamps)
    by_real_path: dict[str, FileStamp] = {}
    real_folders: dict[str, str] = {}
    real_paths = {stamp.path: _resolve(f"{base}/{stamp.path}", real_folders) for stamp in stamps}
    real_base = os.path.realpath(base)
    for stamp in sorted(stamps, key=lambda stamp: real_paths[stamp.path] != f"{real_base}/{stamp.path}"):
        by_real_path.setdefault(real_paths[stamp.path], stamp)
    taken = sorted(by_real_path.values(), key=lambda stamp: stamp.path)
    return DataFiles(root, taken, links=sorted({stamp.path for stamp in stamps} - {stamp.path for stamp in taken}))


def _resolve(path: str, real_folders: dict[str, str]) -> str:
    """Return a file's path without links; `real_folders` holds those of folders that were met."""
    folder, name = os.path.split(path)
    if folder not in real_folders:
        real_folders[folder] = os.path.realpath(folder)
    real_path = f"{real_folders[folder]}/{name}"
    return os.path.realpath(real_path) if os.path.islink(real_path) else real_path


def _check_no_folders(path: str, infos: list[pyarrow.fs.FileInfo], base: str) -> None:
    """Refuse a glob that matches folders beside files.

    The files in these folders would be left out. A glob with "**" looks into them.
    """
    folders = [storage.relative_path(info, base) for info in infos if info.type == pyarrow.fs.FileType.Directory]
    folders = [folder for folder in folders if not is_hidden(folder)]
    if folders and len(folders) < len(infos) and "**" not in path:
        raise UserError(
            f"{path} matches files and folders ({folders[0]}); expected files: end it in /*.parquet, or in "
            "/**/*.parquet for those in the folders too"
        )
