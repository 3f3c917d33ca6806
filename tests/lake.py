"""Make tables of Delta Lake and Iceberg, also such as the libraries cannot write, for tests."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
    write_manifest_list,
)
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from sentiment_core.data import files, unit_reader

NAMESPACE = "ns"


def read_rows(path: object, version: int | None = None) -> pa.Table:
    """Read all rows of a table as this project does, in the order of its files."""
    data = files.find_files(str(path), (".parquet",), version)
    table = data.table
    assert table is not None
    names = table.columns.schema.names
    parts = [unit_reader.read_table_file(table.root, file, names, table.columns) for file in table.files]
    return pa.concat_tables(parts) if parts else table.columns.schema.empty_table()


def to_rows(table: pa.Table, *names: str) -> list[dict[str, Any]]:
    """Return rows in an order of their own, with these columns or all."""
    rows = table.select(list(names) or table.column_names).to_pylist()
    return sorted(rows, key=lambda row: json.dumps(row, default=str))


def write_delta(folder: Path, **columns: Any) -> None:
    """Append rows to a Delta table, which may get new columns by that."""
    write_deltalake(str(folder), pa.table(columns), mode="append", schema_mode="merge")


def delta_rows(folder: Path, version: int | None = None) -> pa.Table:
    """Read a Delta table by its library, which reads it whole."""
    return pa.table(DeltaTable(str(folder), version=version).scan())


def edit_delta_log(folder: Path, edit: Any, version: int = 0) -> None:
    """Change the actions of a version's log; `edit` gets each kind and its content."""
    path = folder / "_delta_log" / f"{version:020}.json"
    actions = [json.loads(line) for line in path.read_text().splitlines()]
    for action in actions:
        for kind, content in action.items():
            edit(kind, content)
    path.write_text("".join(json.dumps(action) + "\n" for action in actions))


def set_features(*features: str) -> Any:
    """Return an edit that makes a table ask its readers for these features."""

    def edit(kind: str, content: dict[str, Any]) -> None:
        if kind == "protocol":
            content |= {"minReaderVersion": 3, "minWriterVersion": 7}
            content |= {"readerFeatures": list(features), "writerFeatures": list(features)}

    return edit


def make_catalog(folder: Path) -> SqlCatalog:
    """Make a catalog with one namespace, on SQLite."""
    folder.mkdir(parents=True, exist_ok=True)
    catalog = SqlCatalog("lake", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    catalog.create_namespace_if_not_exists(NAMESPACE)
    return catalog


def make_iceberg(folder: Path, name: str = "t", **columns: Any) -> Table:
    """Make an Iceberg table with these rows."""
    rows = pa.table(columns)
    table = make_catalog(folder).create_table(f"{NAMESPACE}.{name}", rows.schema)
    table.append(rows)
    return table


def iceberg_folder(table: Table) -> Path:
    """Return the folder of a table on this disk."""
    return Path(table.location().removeprefix("file://"))


def move(folder: Path, to: Path) -> Path:
    """Move a table's folder."""
    shutil.move(folder, to)
    return to


class DeleteManifestWriter(ManifestWriterV2):
    """Writes a manifest of delete files, which pyiceberg reads and does not write."""

    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return super()._meta | {"content": "deletes"}


def add_delete_file(table: Table, content: DataFileContent = DataFileContent.POSITION_DELETES) -> Path:
    """Give an Iceberg table a delete file, as other engines do; return its newest metadata file."""
    snapshot, folder = table.current_snapshot(), iceberg_folder(table)
    assert snapshot is not None
    file = DataFile.from_args(
        content=content,
        file_path=f"{table.location()}/data/deletes.parquet",
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=100,
    )
    entry = ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=snapshot.snapshot_id, data_file=file)
    output = table.io.new_output(f"{table.location()}/metadata/deletes-m0.avro")
    with DeleteManifestWriter(table.spec(), table.schema(), output, snapshot.snapshot_id, "deflate") as writer:
        writer.add_entry(entry)
    place = f"{table.location()}/metadata/snap-with-deletes.avro"
    sequence_number = (snapshot.sequence_number or 0) + 1
    with write_manifest_list(
        2, table.io.new_output(place), snapshot.snapshot_id, None, sequence_number, "deflate"
    ) as manifest_list:
        manifest_list.add_manifests([*snapshot.manifests(table.io), writer.to_manifest_file()])
    metadata = json.loads(Path(table.metadata_location.removeprefix("file://")).read_text())
    for item in metadata["snapshots"]:
        if item["snapshot-id"] == snapshot.snapshot_id:
            item["manifest-list"] = place
    path = folder / "metadata" / "00099-0189c3d2-1d5a-7a7e-8d5c-0123456789ab.metadata.json"
    path.write_text(json.dumps(metadata))
    return path
