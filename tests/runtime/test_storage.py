"""Files on a local disk: written whole, read whole, named one way."""

import os

import pytest

from sentiment_core.errors import UserError
from sentiment_core.runtime import storage


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = str(tmp_path / "deep" / "a.bin")
    storage.write_file(path, b"first")

    def disk_full(source, target):
        assert os.path.exists(source)
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, "replace", disk_full)
    with pytest.raises(OSError, match="disk full"):
        storage.write_file(path, b"second")
    monkeypatch.undo()
    assert storage.read_file(path) == b"first"
    assert os.listdir(tmp_path / "deep") == ["a.bin"]


def test_an_unpacked_folder_equals_the_one_that_was_read(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"1")
    contents = storage.read_folder(str(tmp_path))
    assert contents == {"a": b"1", "sub/b": b"2"}
    with storage.unpack_files(contents) as folder:
        assert storage.read_folder(folder) == contents
    assert not os.path.exists(folder)


def test_patterns_select_files_of_the_folder_itself(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    for name in ("config.json", "checkpoint-500/config.json", "notes.bin"):
        (tmp_path / name).write_bytes(b"")
    assert list(storage.read_folder(str(tmp_path), ("*.json",))) == ["config.json"]


def test_a_folder_with_temporary_files_alone_is_not_occupied(tmp_path):
    (tmp_path / storage.temporary_name()).write_bytes(b"")
    assert not storage.is_occupied(str(tmp_path))
    assert not storage.is_occupied(str(tmp_path / "missing"))
    (tmp_path / "a").write_bytes(b"")
    assert storage.is_occupied(str(tmp_path))
    assert storage.is_occupied(str(tmp_path / "a"))


def test_only_old_temporary_files_are_deleted(tmp_path):
    (tmp_path / "k=1").mkdir()
    old, new = tmp_path / "k=1" / storage.temporary_name(), tmp_path / storage.temporary_name()
    for path in (old, new, tmp_path / "a.parquet"):
        path.write_bytes(b"")
    now_ns = new.stat().st_mtime_ns
    os.utime(old, ns=(0, now_ns - storage.ABANDONED_AFTER_S * 10**9))
    storage.delete_abandoned_files(str(tmp_path), now_ns)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted([new.name, "a.parquet"])


def test_results_of_threads_come_in_the_order_of_the_items():
    assert list(storage.map_in_threads(lambda item: item * 2, range(100))) == list(range(0, 200, 2))


def test_a_folder_is_recognized_through_links(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    assert storage.contains(str(tmp_path / "link"), f"file://{tmp_path}/corpus/scored")
    assert not storage.contains(str(tmp_path / "corpus"), str(tmp_path / "corpus2"))
    assert storage.contains("s3://bucket/a", "s3://bucket/a/b")
    assert not storage.contains("s3://bucket/a", "s3://bucket/ab")


@pytest.mark.parametrize("path", ["s3://bucket", "s3://bucket/", "/"])
def test_a_path_without_a_parent_folder_is_refused(path):
    with pytest.raises(UserError, match=f"--out {path} is not in a folder; choose a path inside"):
        storage.parent(path)


def test_an_empty_path_is_refused():
    with pytest.raises(UserError, match="a path is ''; expected a local path"):
        storage.locate("")


def test_an_unknown_kind_of_uri_is_refused():
    with pytest.raises(UserError, match="expected a local path"):
        storage.locate("ftp://host/file")


def test_a_corpus_on_the_hub_is_to_be_downloaded():
    with pytest.raises(UserError, match=r"lies on the Hugging Face hub, .*; download it first: hf download"):
        storage.locate("hf://datasets/owner/name/a.parquet")
