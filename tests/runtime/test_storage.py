"""Files appear whole, and only what is data is found."""

import os

import pytest

from sentiment_core.errors import UserError
from sentiment_core.runtime import storage


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    place = str(tmp_path / "deep" / "a.bin")
    storage.write_file(place, b"first")

    def disk_full(source, target):
        assert os.path.exists(source)
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, "replace", disk_full)
    with pytest.raises(OSError, match="disk full"):
        storage.write_file(place, b"second")
    monkeypatch.undo()
    assert storage.read_file(place) == b"first"
    assert os.listdir(tmp_path / "deep") == ["a.bin"]


def test_temporary_names_are_no_data(tmp_path):
    (tmp_path / f"{storage.TEMPORARY}123-a.parquet").write_bytes(b"")
    (tmp_path / "a.parquet").write_bytes(b"")
    assert [stamp.path for stamp in storage.list_folder(str(tmp_path), (".parquet",))] == ["a.parquet"]


def test_folders_survive_packing(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"1")
    files = storage.read_folder(str(tmp_path))
    assert files == {"a": b"1", "sub/b": b"2"}
    with storage.unpacked(files) as folder:
        assert storage.read_folder(folder) == files
    assert not os.path.exists(folder)


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to.*--out"):
        storage.check_writable(str(tmp_path / "file" / "out"))
    with pytest.raises(UserError, match=r"GB free.*--out"):
        storage.check_space(str(tmp_path / "not" / "yet"), 10**18)


def test_unknown_uris_are_refused():
    with pytest.raises(UserError, match="expected a local path"):
        storage.locate("ftp://host/file")


def test_a_relative_output_of_a_submitted_job_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "working_dir_files" / "_ray_pkg_1"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    with pytest.raises(UserError, match="ends with the job; give an absolute path or a URI"):
        storage.check_lasting("scored")
    storage.check_lasting("/scored")
    storage.check_lasting("s3://bucket/scored")


def test_file_uris_are_local_paths_as_they_stand(tmp_path):
    (tmp_path / "city=New York" / "12%3A00").mkdir(parents=True)
    (tmp_path / "city=New York" / "12%3A00" / "a.parquet").write_bytes(b"x")
    root, (found,) = storage.find_files(f"file://{tmp_path}", (".parquet",))
    assert (root, found.path) == (str(tmp_path), "city=New York/12%3A00/a.parquet")
    assert storage.read_file(storage.join(f"file://{tmp_path}", found.path)) == b"x"


def test_a_folder_is_known_by_whatever_links_it_is_named(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    assert storage.overlap(str(tmp_path / "link"), f"file://{tmp_path}/corpus/scored")
    assert not storage.overlap(str(tmp_path / "corpus"), str(tmp_path / "corpus2"))
    assert storage.overlap("s3://bucket/a", "s3://bucket/a/b")
    assert not storage.overlap("s3://bucket/a", "s3://bucket/ab")


@pytest.mark.parametrize("place", ["s3://bucket", "s3://bucket/", "/"])
def test_a_place_without_a_folder_above_is_refused(place):
    with pytest.raises(UserError, match="has no folder above it"):
        storage.parent(place)


def test_no_place_is_refused():
    with pytest.raises(UserError, match="a place is ''"):
        storage.locate("")


def test_patterns_find_files_of_the_folder_itself(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    for name in ("config.json", "checkpoint-500/config.json", "notes.bin"):
        (tmp_path / name).write_bytes(b"")
    assert list(storage.read_folder(str(tmp_path), ("*.json",))) == ["config.json"]
