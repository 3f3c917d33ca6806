"""Recognize folders that hold a table of Delta Lake, Iceberg or Hudi, and refuse them.

Their Parquet files hold rows that were deleted or rewritten since; only the table's log tells which rows it has.
Layouts: Delta's protocol (PROTOCOL.md), Iceberg's table specification, Hudi's technical specification.
"""

import re
from collections.abc import Iterable

import pyarrow.fs

from sentiment_core.errors import UserError
from sentiment_core.runtime import storage

LOG_FOLDERS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}  # in the table's folder
# "v3", or "00003-" and a UUID; compressed metadata have ".gz" before or behind
ICEBERG_NAME = r"(v\d+|\d+-[0-9a-f-]{36})(\.gz)?\.metadata\.json(\.gz)?"
ICEBERG_METADATA = re.compile(rf"(.*/)?metadata/{ICEBERG_NAME}")


def refuse_table_files(folder: str, paths: Iterable[str]) -> None:
    """Refuse a listed folder if one of the paths below it belongs to a table. Raises `UserError`."""
    for path in paths:
        parts = path.split("/")
        for part in LOG_FOLDERS.keys() & set(parts):
            _refuse(LOG_FOLDERS[part], storage.join(folder, *parts[: parts.index(part)]))
        if ICEBERG_METADATA.fullmatch(path):
            _refuse("Iceberg", storage.join(folder, *parts[:-2]))


def refuse_tables_around(root: str, folders: Iterable[str] = ()) -> None:
    """Refuse a folder that lies in a table, and those of the `folders` below it that do. Raises `UserError`.

    Folders above that may not be looked into count as no table.
    """
    filesystem, base = storage.locate(root)
    base = base.rstrip("/")
    above = [base[: match.start()] for match in re.finditer("/", base)][storage.is_local(root) :]
    paths = {folder[: match.end()] for folder in folders for match in re.finditer(r"[^/]+", folder)}
    below = {f"{base}/{path}" for path in paths if "=" not in path.rpartition("/")[2]}  # a partition is in a table
    candidates = [*above, base, *sorted(below)]
    for folder, kind in zip(
        candidates, storage.map_in_threads(lambda folder: _kind_of_table(filesystem, folder), candidates), strict=True
    ):
        if kind:
            _refuse(kind, folder)


def _kind_of_table(filesystem: pyarrow.fs.FileSystem, folder: str) -> str | None:
    """Return the kind of the table in a folder, None if it holds none or may not be looked into."""
    logs = {f"{folder}/{name}": kind for name, kind in LOG_FOLDERS.items()}
    selector = pyarrow.fs.FileSelector(f"{folder}/metadata", allow_not_found=True)
    try:
        for info in filesystem.get_file_info(list(logs)):
            if info.type == pyarrow.fs.FileType.Directory:
                return logs[info.path]
        if any(re.fullmatch(ICEBERG_NAME, info.base_name) for info in filesystem.get_file_info(selector)):
            return "Iceberg"
    except (OSError, UnicodeDecodeError):
        pass
    return None


def _refuse(kind: str, folder: str) -> None:
    raise UserError(
        f"{folder} is a table of {kind}, whose files also hold rows that the table has deleted or replaced. Tables are "
        "not read yet: export the current rows as Parquet, and give that folder."
    )
