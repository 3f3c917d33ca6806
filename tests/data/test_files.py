"""Which files at a path are data: one rule, whatever the names and links."""

import contextlib
import os

import pytest

from sentiment_core.data import files
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage

PARQUET = (".parquet",)


def touch(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")


def paths(data):
    return [stamp.path for stamp in data.stamps]


def test_hidden_names_are_no_data_but_partitions_are(tmp_path):
    touch(tmp_path, "a.parquet", "_b.parquet", ".c.parquet", "_d/e.parquet", "_year=2024/f.parquet", "_SUCCESS")
    touch(tmp_path, f"{storage.temporary_name()}.parquet")
    data = files.find_files(str(tmp_path), PARQUET)
    assert paths(data) == ["_year=2024/f.parquet", "a.parquet"]
    assert data.describe_unread() == []
    assert [stamp.path for stamp in files.list_files(str(tmp_path), PARQUET)] == paths(data)


def test_what_vanishes_while_a_folder_is_listed_is_not_there(tmp_path, monkeypatch):
    """A writer renames its draft. A folder must stay: without it, all of its rows would count as gone."""
    touch(tmp_path, "a.parquet", "b.parquet", "b.tmp", "day=1/c.parquet")
    scandir = os.scandir

    class Vanishing:
        def __init__(self, entry):
            self.entry = entry

        def __getattr__(self, name):
            return getattr(self.entry, name)

        def stat(self):
            raise FileNotFoundError(self.entry.path)

    @contextlib.contextmanager
    def scan(path):
        if path in gone:
            raise FileNotFoundError(path)
        with scandir(path) as entries:
            yield [Vanishing(entry) if entry.name[0] == "b" else entry for entry in entries]

    gone: list[str] = []
    monkeypatch.setattr(files.os, "scandir", scan)
    data = files.find_files(str(tmp_path), PARQUET)
    assert (paths(data), data.passed_over) == (["a.parquet", "day=1/c.parquet"], ["b.tmp"])
    gone.append(str(tmp_path / "day=1"))
    with pytest.raises(UserError, match="cannot be listed"):
        files.find_files(str(tmp_path), PARQUET)


def test_hidden_links_that_lead_nowhere_change_nothing(tmp_path):
    touch(tmp_path, "in/a.parquet", "logs/a.parquet")
    for link, target in ((".circle", ".circle"), ("_below_a_file", "a.parquet/x"), ("_long", 300 * "x")):
        os.symlink(target, tmp_path / "in" / link)
    assert paths(files.find_files(str(tmp_path / "in"), PARQUET)) == ["a.parquet"]
    os.symlink("_delta_log", tmp_path / "logs" / "_delta_log")  # a table may be meant
    with pytest.raises(UserError, match=f"{tmp_path}/logs is a table of Delta Lake"):
        files.find_files(str(tmp_path), PARQUET)


def test_files_with_other_endings_are_counted_and_named(tmp_path):
    touch(tmp_path, "a.parquet", "b.parquet.gzip", "000000_0", "x/README.txt", "x/y", ".a.parquet.crc")
    data = files.find_files(str(tmp_path), PARQUET)
    assert paths(data) == ["a.parquet"]
    (line,) = data.describe_unread()
    assert line.startswith("4 files passed over")
    assert line.endswith("000000_0, b.parquet.gzip, x/README.txt ...")


def test_a_file_with_several_names_is_one_file(tmp_path):
    touch(tmp_path, "2026-11-30/a.parquet", "b.parquet")
    for link, target in (("latest", "2026-11-30"), ("self", "."), ("z.parquet", "b.parquet"), ("up/loop", "..")):
        (tmp_path / link).parent.mkdir(exist_ok=True)
        os.symlink(target, tmp_path / link)
    data = files.find_files(str(tmp_path), PARQUET)
    assert paths(data) == ["2026-11-30/a.parquet", "b.parquet"]
    assert data.links == ["latest", "self", "up/loop", "z.parquet"]
    assert data.describe_unread() == ["4 links to data that is read under its own name: latest, self, up/loop ..."]
    for glob, expected in (("*/*.parquet", "2026-11-30/a.parquet"), ("*.parquet", "b.parquet")):
        assert expected in paths(files.find_files(f"{tmp_path}/{glob}", PARQUET))
    data = files.find_files(f"{tmp_path}/*/*.parquet", PARQUET)
    assert "latest/a.parquet" in data.links
    assert len({os.path.realpath(tmp_path / path) for path in paths(data)}) == len(data.stamps)


def test_links_lead_to_data_elsewhere_and_behind_hidden_names(tmp_path):
    touch(tmp_path, "elsewhere/a.parquet", "in/..data/b.parquet", "in/blobs/0123")
    for link, target in (("there", "../elsewhere"), ("b.parquet", "..data/b.parquet"), ("c.parquet", "blobs/0123")):
        os.symlink(target, tmp_path / "in" / link)
    os.symlink("nowhere", tmp_path / "in" / "gone.parquet")
    data = files.find_files(str(tmp_path / "in"), PARQUET)
    assert paths(data) == ["b.parquet", "c.parquet", "gone.parquet", "there/a.parquet"]
    assert data.passed_over == ["blobs/0123"]
    assert {stamp.path: stamp.size for stamp in data.stamps}["gone.parquet"] == 0  # it fails when it is read


def test_a_file_behind_two_links_is_one_file(tmp_path):
    touch(tmp_path, "elsewhere/x.parquet")
    (tmp_path / "in").mkdir()
    os.symlink("../elsewhere/x.parquet", tmp_path / "in" / "a.parquet")
    os.symlink("../elsewhere", tmp_path / "in" / "b")
    data = files.find_files(str(tmp_path / "in"), PARQUET)
    assert (paths(data), data.links) == (["b/x.parquet"], ["a.parquet"])


def test_a_file_uri_is_a_local_path_as_it_is_written(tmp_path):
    touch(tmp_path, "city=New York/12%3A00/a.parquet")
    data = files.find_files(f"file://{tmp_path}", PARQUET)
    (stamp,) = data.stamps
    assert (data.root, stamp.path) == (str(tmp_path), "city=New York/12%3A00/a.parquet")
    assert storage.read_file(storage.join(f"file://{tmp_path}", stamp.path)) == b"x"


def test_a_single_file_needs_no_suffix(tmp_path):
    (tmp_path / "export").write_bytes(b"x")
    data = files.find_files(str(tmp_path / "export"), PARQUET)
    (stamp,) = data.stamps
    assert (data.root, stamp.path, stamp.size) == (str(tmp_path), "export", 1)


def test_a_folder_without_data_is_refused(tmp_path):
    touch(tmp_path, "_hidden.parquet", "a.csv")
    with pytest.raises(UserError, match=r"holds no \.parquet file \(1 files passed over, .*: a\.csv\)"):
        files.find_files(str(tmp_path), PARQUET)


TABLES = {
    "Delta Lake": "_delta_log/00000000000000000000.json",
    "Hudi": ".hoodie/hoodie.properties",
    "Iceberg": "metadata/v1.metadata.json",
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("path", ["", "lake", "lake/t/day=1", "lake/t/day=1/a.parquet", "lake/*/*/*.parquet"])
def test_a_part_of_a_table_is_refused_wherever_its_log_lies(tmp_path, kind, path):
    touch(tmp_path, "lake/t/day=1/a.parquet", f"lake/t/{TABLES[kind]}", "other/a.parquet")
    assert paths(files.find_files(str(tmp_path / "other"), PARQUET)) == ["a.parquet"]
    with pytest.raises(UserError, match=f"{tmp_path}/lake/t is a table of {kind}, whose files also hold rows"):
        files.find_files(str(tmp_path / path), PARQUET)


def test_a_table_of_hudi_is_refused(tmp_path):
    touch(tmp_path, "t/day=1/a.parquet", "t/.hoodie/hoodie.properties")
    with pytest.raises(UserError, match=r"/t is a table of Hudi, .*: export the current rows"):
        files.find_files(str(tmp_path / "t"), PARQUET)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("path", ["in", "in/link"])
def test_a_table_behind_a_link_is_refused(tmp_path, kind, path):
    touch(tmp_path, "t/day=1/a.parquet", f"t/{TABLES[kind]}", "in/b.parquet")
    os.symlink("../t/day=1", tmp_path / "in" / "link")
    with pytest.raises(UserError, match=f"{tmp_path}/t is a table of {kind}"):
        files.find_files(str(tmp_path / path), PARQUET)


def test_metadata_of_a_table_are_no_labelled_data(tmp_path):
    touch(tmp_path, "t/metadata/00001-0189c3d2-1d5a-7a7e-8d5c-0123456789ab.gz.metadata.json", "t/data/a.parquet")
    with pytest.raises(UserError, match=f"{tmp_path}/t is a table of Iceberg"):
        files.find_files(str(tmp_path), (".json", ".parquet"))


def test_a_folder_of_metadata_alone_is_no_table(tmp_path):
    touch(tmp_path, "in/a.parquet", "in/metadata/notes.json", "metadata/kaggle.metadata.json")
    assert paths(files.find_files(str(tmp_path / "in"), PARQUET)) == ["a.parquet"]
