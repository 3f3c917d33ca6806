"""Read the metadata of an Iceberg table, by the library pyiceberg.

Layout: Iceberg's table specification, https://iceberg.apache.org/spec/.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import pyarrow.fs

from sentiment_core.data.snapshot import (
    Snapshot,
    TableColumn,
    TableColumns,
    TableFile,
    describe_missing_extra,
    normalize,
    relative_to,
)
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.runtime.storage import FileStamp

KIND = "Iceberg"
SCHEME = "iceberg://"  # of a table by its catalog: iceberg://CATALOG/NAMESPACE.TABLE
# "v3", or "00003-" and mostly a UUID; compressed metadata have ".gz" before or behind
METADATA_NAME = re.compile(r"(?:v(\d+)|(\d+)-[^/]+?)(?:\.gz)?\.metadata\.json(?:\.gz)?")
VERSION_HINT = "version-hint.text"


def open_by_catalog(path: str, version: int | None) -> Snapshot:
    """Read a snapshot of the table that `iceberg://CATALOG/NAMESPACE.TABLE` names; None is the current one.

    The catalog is one of pyiceberg's own configuration. Raises `UserError`.
    """
    catalog, separator, name = path.removeprefix(SCHEME).partition("/")
    if not (catalog and separator and "." in name):
        raise UserError(f"{path} names no table; expected {SCHEME}CATALOG/NAMESPACE.TABLE")

    def load() -> Any:
        from pyiceberg.catalog import load_catalog

        return load_catalog(catalog).load_table(name)

    table = _load(path, load, f"check the settings of the catalog {catalog} in pyiceberg's configuration")
    return _read(table, path, normalize(table.location(), encoded=False), version)


def open_by_folder(path: str, version: int | None) -> Snapshot:
    """Read a snapshot of the table in a folder; None is the current one. Raises `UserError`."""
    return open_by_metadata(_find_newest(path), version)


def open_by_metadata(path: str, version: int | None) -> Snapshot:
    """Read a snapshot of a table by one of its metadata files. Raises `UserError`."""
    metadata_path = storage.absolute(path)

    def load() -> Any:
        from pyiceberg.table import StaticTable

        return StaticTable.from_metadata(metadata_path, _store_properties())

    table = _load(path, load, "check the file and the credentials")
    folder = storage.parent(storage.parent(metadata_path))
    root = normalize(table.location(), encoded=False)
    if not _is_same_folder(folder, root) and "write.metadata.path" not in table.properties:
        raise UserError(
            f"{folder} is an Iceberg table that was moved: its metadata says that it lies in {root}; move it back, or "
            "register it where it is now"
        )
    return _read(table, folder, root, version)


def _store_properties() -> dict[str, str]:
    """Return what pyiceberg does not take from the environment by itself, as other stores' clients do."""
    properties = {
        "s3.endpoint": os.environ.get("AWS_ENDPOINT_URL"),
        "s3.region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    return {name: value for name, value in properties.items() if value}


def _load(path: str, load: Callable[[], Any], remedy: str) -> Any:
    """Load a table; whatever goes wrong becomes a `UserError`."""
    try:
        return load()
    except ImportError as error:
        if (error.name or "pyiceberg").partition(".")[0] != "pyiceberg":
            raise UserError(
                f"{path} cannot be opened: {describe_error(error)}; install what the catalog needs"
            ) from None
        raise describe_missing_extra(path, KIND) from None
    except Exception as error:  # of catalogs and their clients, of many kinds
        raise UserError(f"{path} cannot be opened as an Iceberg table: {describe_error(error)}; {remedy}") from None


def _is_same_folder(folder: str, other: str) -> bool:
    if storage.is_local(folder) and storage.is_local(other):
        return os.path.realpath(folder) == os.path.realpath(other)
    return folder == other


def _find_newest(path: str) -> str:
    """Return the newest metadata file of the table in a folder: what its hint says, else the highest number.

    Raises `UserError` where two have that number.
    """
    folder = storage.join(storage.absolute(path), "metadata")
    filesystem, inner_path = storage.locate(folder)
    infos = storage.retry_transient_errors(
        folder, lambda: filesystem.get_file_info(pyarrow.fs.FileSelector(inner_path))
    )
    numbers: dict[int, list[str]] = {}
    hint = None
    for info in infos:
        if match := METADATA_NAME.fullmatch(info.base_name):
            numbers.setdefault(int(match[1] or match[2]), []).append(info.base_name)
        elif info.base_name == VERSION_HINT:
            hint = storage.read_file(storage.join(folder, VERSION_HINT)).decode("utf-8", "replace").strip()
    if hint and not hint.isdecimal():
        return storage.join(folder, hint if hint.endswith(".metadata.json") else f"{hint}.metadata.json")
    newest = int(hint) if hint else max(numbers)
    names = sorted(numbers.get(newest, []))
    if not names:
        raise UserError(f"{folder}/{VERSION_HINT} says {newest}, and no metadata file has that number; correct it")
    if len(names) > 1:
        raise UserError(
            f"{path} has two newest metadata files, {names[0]} and {names[1]}, and only its catalog knows which one "
            f"counts; give that file, or the table as {SCHEME}CATALOG/NAMESPACE.TABLE"
        )
    return storage.join(folder, names[0])


def _read(table: Any, path: str, root: str, version: int | None) -> Snapshot:
    snapshot = table.current_snapshot() if version is None else table.snapshot_by_id(version)
    if snapshot is None and version is None:
        raise UserError(f"{path} is an Iceberg table that nothing was written to; expected one with rows")
    if snapshot is None:
        current = table.current_snapshot()
        raise UserError(
            f"{path} has no snapshot {version}, it may have expired; its current one is "
            f"{current.snapshot_id if current else 'none'}; score that"
        )

    def plan() -> tuple[Any, list[Any]]:
        _check_deletes(table, snapshot, path)
        # the columns of now, or those that an older snapshot had
        is_current = snapshot.snapshot_id == table.metadata.current_snapshot_id
        pinned = None if is_current else snapshot.snapshot_id
        scan = table.scan(snapshot_id=pinned, options={"include_empty_files": "true"})
        return scan.projection(), list(scan.plan_files())

    try:
        schema, tasks = plan()
        columns = _describe_columns(table, schema)
        files = [_describe_file(table, schema, root, task.file, path) for task in tasks]
    except UserError:
        raise
    except Exception as error:  # of manifests, and of stores, of many kinds
        raise UserError(
            f"the snapshot {snapshot.snapshot_id} of {path} cannot be read: {describe_error(error)}; if it has "
            "expired, score a newer one"
        ) from None
    files.sort(key=lambda file: file.stamp.path)
    order = {item.snapshot_id: item.sequence_number or item.timestamp_ms for item in table.snapshots()}
    return Snapshot(KIND, root, snapshot.snapshot_id, files, columns, order, is_pinned=version is not None)


def _check_deletes(table: Any, snapshot: Any, path: str) -> None:
    """Refuse a snapshot that has delete files or deletion vectors. Raises `UserError`."""
    from pyiceberg.manifest import ManifestContent

    for manifest in snapshot.manifests(table.io):
        if manifest.content == ManifestContent.DELETES and manifest.fetch_manifest_entry(
            table.io, discard_deleted=True
        ):
            raise UserError(
                f"{path} is an Iceberg table with delete files: its data files also hold rows that were deleted; "
                "rewrite them with CALL CATALOG.system.rewrite_data_files(table => 'TABLE', options => "
                "map('delete-file-threshold', '1', 'remove-dangling-deletes', 'true'))"
            )


def _describe_columns(table: Any, schema: Any) -> TableColumns:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    arrow_schema = schema_to_pyarrow(schema, include_field_ids=True)
    mapping = table.name_mapping()
    names = {field.field_id: tuple(field.names) for field in mapping.root} if mapping else {}
    return TableColumns(
        tuple(
            TableColumn(
                arrow_schema.field(i),
                names.get(field.field_id, ()),
                field.field_id,
                default=field.initial_default,
                exact=bool(arrow_schema.field(i).type.num_fields),
            )
            for i, field in enumerate(schema.fields)
        )
    )


def _describe_file(table: Any, schema: Any, root: str, file: Any, path: str) -> TableFile:
    from pyiceberg.manifest import FileFormat
    from pyiceberg.transforms import IdentityTransform

    if file.file_format != FileFormat.PARQUET:
        raise UserError(f"{path} is an Iceberg table with files of {file.file_format.value}; only Parquet is read")
    relative_path = relative_to(root, normalize(file.file_path, encoded=False))
    values: dict[str, str | None] = {}
    for i, partition in enumerate(table.specs()[file.spec_id].fields):
        source = next((field for field in schema.fields if field.field_id == partition.source_id), None)
        if source is not None and isinstance(partition.transform, IdentityTransform):
            value = file.partition[i]
            values[source.name] = (
                None if value is None else partition.transform.to_human_string(source.field_type, value)
            )
    return TableFile(FileStamp(relative_path, file.file_size_in_bytes, 0), values)
