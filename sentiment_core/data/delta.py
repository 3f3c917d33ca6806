"""Read the log of a Delta Lake table, by the library deltalake.

Layout: Delta's protocol, https://github.com/delta-io/delta/blob/master/PROTOCOL.md.
"""

import os
from typing import Any

import pyarrow as pa

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

KIND = "Delta Lake"
# Reader features that change nothing about what a data file says, or that are followed here. Where deletion vectors
# are allowed but absent, files say all.
FEATURES = {
    "columnMapping",
    "deletionVectors",
    "domainMetadata",
    "timestampNtz",
    "typeWidening",
    "typeWidening-preview",
    "v2Checkpoint",
    "vacuumProtocolCheck",
}
PHYSICAL_NAME, COLUMN_ID = "delta.columnMapping.physicalName", "delta.columnMapping.id"


def open_table(path: str, version: int | None) -> Snapshot:
    """Read a version of the Delta table in a folder; None is the latest. Raises `UserError`."""
    try:
        from deltalake import DeltaTable
    except ImportError:
        raise describe_missing_extra(path, KIND) from None
    root = storage.absolute(path)
    try:
        table = DeltaTable(root, storage_options=_storage_options(root))
        latest = table.version()
        if version is not None and version > latest:
            raise UserError(f"{path} has no version {version}; its latest is {latest}; score one up to that")
        if version is not None and version < latest:
            table.load_as_version(version)
        return _read(table, root, path, is_pinned=version is not None)
    except UserError:
        raise
    except Exception as error:  # of logs, and of stores, of many kinds
        named = "" if version is None else f" in version {version}, whose log may have been cleaned up"
        raise UserError(
            f"{path} cannot be read as a table of {KIND}{named}: {describe_error(error)}; check the table and the "
            "credentials"
        ) from None


def _storage_options(root: str) -> dict[str, str]:
    """Return what deltalake must be told beyond the environment that it shares with pyarrow."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if storage.is_local(root):
        return {}
    options = {"allow_http": "true"} if endpoint.startswith("http://") else {}
    region = getattr(storage.locate(root)[0], "region", None)
    if region and not {"AWS_REGION", "AWS_DEFAULT_REGION"} & set(os.environ):
        options["aws_region"] = region
    return options


def _read(table: Any, root: str, path: str, is_pinned: bool) -> Snapshot:
    _check_features(table, path)
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    partitioned_by = set(table.metadata().partition_columns)
    arrow_schema = pa.schema(table.schema().to_arrow())
    columns = tuple(
        _describe_column(field, arrow_schema.field(field.name), mapping, field.name in partitioned_by)
        for field in table.schema().fields
    )
    actions = pa.table(table.get_add_actions())
    values = {
        column.name: _partition_values(actions, (column.name, *column.stored_names)).cast(pa.string()).to_pylist()
        for column in columns
        if column.in_log
    }
    files = [
        TableFile(
            FileStamp(_locate(root, logged_path), size, mtime_ms * 10**6),
            {name: values_of_files[i] for name, values_of_files in values.items()},
        )
        for i, (logged_path, size, mtime_ms) in enumerate(
            zip(
                actions["path"].to_pylist(),
                actions["size_bytes"].to_pylist(),
                actions["modification_time"].to_pylist(),
                strict=True,
            )
        )
    ]
    files.sort(key=lambda file: file.stamp.path)
    return Snapshot(KIND, root, table.version(), files, TableColumns(columns), is_pinned=is_pinned)


def _check_features(table: Any, path: str) -> None:
    """Refuse a table whose data files do not say all, or say it in a way that is not known here. Raises `UserError`."""
    protocol = table.protocol()
    unknown = sorted(set(protocol.reader_features or ()) - FEATURES)
    if unknown:
        raise UserError(
            f"{path} is a table of {KIND} with the reader features {', '.join(unknown)}, which are not followed here; "
            "drop them with ALTER TABLE ... DROP FEATURE, or export the rows as Parquet"
        )
    if _has_deletion_vectors(table):
        raise UserError(
            f"{path} is a table of {KIND} with deletion vectors: its files also hold rows that were deleted; "
            f"rewrite them with REORG TABLE delta.`{path}` APPLY (PURGE)"
        )


def _partition_values(actions: pa.Table, names: tuple[str, ...]) -> pa.Array:
    """Return a partition column of the log, which has it under one of these names."""
    partition = actions["partition"].combine_chunks()
    return partition.field(next(name for name in names if partition.type.get_field_index(name) >= 0))


def _has_deletion_vectors(table: Any) -> bool:
    from deltalake.exceptions import DeltaError

    try:
        return any(len(batch) for batch in pa.RecordBatchReader.from_stream(table.deletion_vectors()))
    except DeltaError as error:
        if "deletion vector" in str(error).lower():  # there is one, and it cannot be read
            return True
        if "deletionVectors" in (table.protocol().reader_features or ()):
            raise
        return False  # the library asks for no less than it needs to read rows


def _describe_column(field: Any, arrow_field: pa.Field, mapping: str, is_partition: bool) -> TableColumn:
    """Describe a column of the table's schema; `mapping`: none, name or id."""
    if mapping == "none":
        return TableColumn(arrow_field, (field.name,), in_log=is_partition)
    by_id = mapping == "id"
    return TableColumn(
        arrow_field,
        () if by_id else (field.metadata.get(PHYSICAL_NAME, field.name),),
        int(field.metadata[COLUMN_ID]) if by_id else None,
        in_log=is_partition,
        exact=bool(arrow_field.type.num_fields),
    )


def _locate(root: str, logged_path: str) -> str:
    """Return the path of a data file from the log, where it is percent-encoded, and relative or a URI."""
    path = normalize(logged_path, encoded=True)
    return relative_to(root, path) if ":/" in logged_path else path
