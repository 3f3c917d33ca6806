"""Recognize folders that hold a table of Delta Lake, Iceberg or Hudi.

Their Parquet files hold rows that were deleted or rewritten since; only the table's log tells which rows it has. So a
table is read as a whole, by its log, and its files are refused as a plain folder.
Layouts: Delta's protocol (PROTOCOL.md), Iceberg's table specification, Hudi's technical specification.
"""

import re
from collections.abc import Iterable

import pyarrow.fs

from sentiment_core.data import delta, iceberg
from sentiment_core.data.snapshot import Snapshot
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage

HUDI = "Hudi"
LOG_FOLDERS = {"_delta_log": delta.KIND, ".hoodie": HUDI}  # in the table's folder
ICEBERG_METADATA = re.compile(rf"(.*/)?metadata/{iceberg.METADATA_NAME.pattern}")


def open_table(path: str, version: int | None) -> Snapshot | None:
    """Read a version of the table at a path, the current one if None; return None if there is no table.

    Raises `UserError` for a table that cannot be read, and for a version where there is no table.
    """
    if path.startswith(iceberg.SCHEME):
        return iceberg.open_by_catalog(path, version)
    if ICEBERG_METADATA.fullmatch(storage.absolute(path)):
        return iceberg.open_by_metadata(path, version)
    filesystem, folder = storage.locate(path)
    kind = _kind_of_table(filesystem, folder.rstrip("/"), path)
    if kind == delta.KIND:
        return delta.open_table(path, version)
    if kind == iceberg.KIND:
        return iceberg.open_by_folder(path, version)
    if kind is not None:
        _refuse(kind, path)
    if version is not None:
        raise UserError(f"--input-version is {version}; only tables have versions, and {path} holds none; leave it out")
    return None


def refuse_table_files(folder: str, paths: Iterable[str]) -> None:
    """Refuse a listed folder if one of the paths below it belongs to a table. Raises `UserError`."""
    for path in paths:
        parts = path.split("/")
        for part in LOG_FOLDERS.keys() & set(parts):
            _refuse(LOG_FOLDERS[part], storage.join(folder, *parts[: parts.index(part)]))
        if ICEBERG_METADATA.fullmatch(path):
            _refuse(iceberg.KIND, storage.join(folder, *parts[:-2]))


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
        candidates,
        storage.map_in_threads(lambda folder: _kind_of_table(filesystem, folder, root), candidates),
        strict=True,
    ):
        if kind:
            _refuse(kind, folder)


def _kind_of_table(filesystem: pyarrow.fs.FileSystem, folder: str, path: str) -> str | None:
    """Return the kind of the table in a folder, None if it holds none or may not be looked into.

    `path`: what is read, in the same store. Raises `UserError` if the store does not answer.
    """
    logs = {f"{folder}/{name}": kind for name, kind in LOG_FOLDERS.items()}
    selector = pyarrow.fs.FileSelector(f"{folder}/metadata", allow_not_found=True)
    try:
        for info in storage.retry_transient_errors(path, lambda: filesystem.get_file_info(list(logs))):
            if info.type == pyarrow.fs.FileType.Directory:
                return logs[info.path]
        infos = storage.retry_transient_errors(path, lambda: filesystem.get_file_info(selector))
        if any(iceberg.METADATA_NAME.fullmatch(info.base_name) for info in infos):
            return iceberg.KIND
    except UnicodeDecodeError:
        pass
    except OSError as error:  # of a store that does not answer: it may be a table
        if not storage.is_local(path) and not storage.PERMANENT_ERROR.search(str(error)):
            raise UserError(f"{path} cannot be listed: {error}; check the path and the credentials") from None
    return None


def _refuse(kind: str, folder: str) -> None:
    files = f"{folder} is a table of {kind}, whose files also hold rows that the table has deleted or replaced"
    if kind == HUDI:
        raise UserError(f"{files}. Such tables are not read: export the current rows as Parquet, and give that folder.")
    raise UserError(f"{files}. Give the table's own folder, which is read by its log.")
