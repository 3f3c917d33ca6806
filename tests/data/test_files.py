"""Which files at a path are data."""

import pytest

from sentiment_core.data import files
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage

PARQUET = (".parquet",)


def test_temporary_files_are_not_data(tmp_path):
    (tmp_path / storage.temporary_name()).with_suffix(".parquet").write_bytes(b"")
    (tmp_path / "a.parquet").write_bytes(b"")
    assert [stamp.path for stamp in files.list_files(str(tmp_path), PARQUET)] == ["a.parquet"]


def test_a_file_uri_is_a_local_path_as_it_is_written(tmp_path):
    (tmp_path / "city=New York" / "12%3A00").mkdir(parents=True)
    (tmp_path / "city=New York" / "12%3A00" / "a.parquet").write_bytes(b"x")
    root, (stamp,) = files.find_files(f"file://{tmp_path}", PARQUET)
    assert (root, stamp.path) == (str(tmp_path), "city=New York/12%3A00/a.parquet")
    assert storage.read_file(storage.join(f"file://{tmp_path}", stamp.path)) == b"x"


def test_a_single_file_needs_no_suffix(tmp_path):
    (tmp_path / "export").write_bytes(b"x")
    root, (stamp,) = files.find_files(str(tmp_path / "export"), PARQUET)
    assert (root, stamp.path, stamp.size) == (str(tmp_path), "export", 1)


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "_hidden.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no \.parquet file"):
        files.find_files(str(tmp_path), PARQUET)
