"""Labelled text is read, and refused when it cannot be used."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from sentiment_core.data import labelled
from sentiment_core.data.labelled import DataOrigin, DroppedRows
from sentiment_core.data.labels import LabelScheme
from sentiment_core.errors import UserError

ROWS = {"text": ['good, "fine"\nstuff', "bad", "NA", "so so"], "label": ["pos", "neg", "neg", "pos"]}


def write(folder, kind, columns):
    path = folder / f"data.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    elif kind == "csv":
        pyarrow.csv.write_csv(pa.table(columns), path)
    else:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_each_file_format_gives_the_same_rows(tmp_path, kind):
    data = labelled.read(write(tmp_path, kind, ROWS))
    assert data.texts == ROWS["text"]
    assert data.label_names == ["neg", "pos"]
    assert data.labels.tolist() == [1, 0, 0, 1]


def test_rows_are_located_in_their_files(tmp_path):
    for name, texts in (("a", ["x", None, "y"]), ("b", [None]), ("c", ["z", "x"])):
        pq.write_table(
            pa.table({"text": pa.array(texts, pa.string()), "label": [1] * len(texts)}), tmp_path / f"{name}.parquet"
        )
    data = labelled.read(str(tmp_path)).take(np.array([2, 3, 0, 1]))
    assert [data.locate(i) for i in range(4)] == [
        (str(tmp_path / f"{name}.parquet"), row) for name, row in (("c", 0), ("c", 1), ("a", 0), ("a", 2))
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_text_of_ten_megabytes_is_read(tmp_path, kind):
    columns = {"text": ["good " * 2_000_000, "bad"], "label": ["pos", "neg"]}
    assert labelled.read(write(tmp_path, kind, columns)).texts == columns["text"]


def test_a_folder_is_read_with_all_its_files(tmp_path):
    for name, kind in (("a", "csv"), ("b", "jsonl")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, kind, ROWS)
    data = labelled.read(str(tmp_path))
    assert data.texts == ROWS["text"] * 2
    assert data.origin.files == 2


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([3, 1, 1, 3], ["1", "3"], [1, 0, 0, 1]),
        ([10.0, 9.0, 9.0, 10.0], ["9", "10"], [1, 0, 0, 1]),
        ([True, False, False, True], ["false", "true"], [1, 0, 0, 1]),
    ],
)
def test_labels_may_be_whole_numbers_or_booleans(tmp_path, labels, names, numbers):
    data = labelled.read(write(tmp_path, "parquet", {"text": ROWS["text"], "label": labels}))
    assert (data.label_names, data.labels.tolist()) == (names, numbers)


def test_numbers_take_the_names_the_user_gives(tmp_path):
    path = write(tmp_path, "parquet", {"text": ROWS["text"], "label": [0, 1, 1, 0]})
    data = labelled.read(path, scheme=LabelScheme(["negative", "positive"], by_user=True))
    assert (data.label_names, data.labels.tolist()) == (["negative", "positive"], [0, 1, 1, 0])


def test_class_names_in_hub_files_are_used_and_unlabelled_rows_dropped(tmp_path):
    features = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, -1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "d.parquet")
    data = labelled.read(str(tmp_path))
    assert (data.label_names, data.labels.tolist()) == (["no", "yes"], [1, 0])
    assert data.origin.dropped == DroppedRows(without_text=0, without_label=1)


@pytest.mark.parametrize(
    ("asked", "names", "labels"),
    [
        (["negative", "positive"], ["negative", "positive"], [1, 0]),  # other names for 0 and 1, as of IMDB
        (["yes", "no"], ["yes", "no"], [0, 1]),  # the data's own names, in another order
    ],
)
def test_the_users_names_win_over_those_in_hub_files(tmp_path, asked, names, labels):
    features = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, -1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "d.parquet")
    data = labelled.read(str(tmp_path), scheme=LabelScheme(asked, by_user=True))
    assert (data.label_names, data.labels.tolist()) == (names, labels)
    with pytest.raises(
        UserError, match="has the labels no, yes, as the data names its numbers; expected one of a, b, c; map them"
    ):
        labelled.read(str(tmp_path), scheme=LabelScheme(["a", "b", "c"]))


def test_numbered_labels_stay_numbered_in_data_that_lacks_a_class(tmp_path):
    stars = ["1", "2", "3"]
    path = write(tmp_path, "parquet", {"text": ROWS["text"], "label": [0, 1, 1, 2]})
    data = labelled.read(path, scheme=LabelScheme(stars, by_user=True))
    assert (data.labels.tolist(), data.origin.numbered) == ([0, 1, 1, 2], True)
    path = write(tmp_path, "parquet", {"text": ROWS["text"], "label": [1, 1, 2, 2]})
    assert labelled.read(path, scheme=LabelScheme(stars, numbered=data.origin.numbered)).labels.tolist() == [1, 1, 2, 2]
    assert labelled.read(path, scheme=LabelScheme(stars)).labels.tolist() == [0, 0, 1, 1]


def test_rows_without_text_or_label_are_dropped_and_counted(tmp_path):
    columns = {"text": ["a", None, "", " \t", "b", "c"], "label": ["x", "x", "y", "y", None, "y"]}
    data = labelled.read(write(tmp_path, "parquet", columns))
    assert data.texts == ["a", "c"]
    assert data.origin.dropped == DroppedRows(without_text=3, without_label=1)


def test_bytes_that_are_not_utf8_become_replacement_characters(tmp_path):
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 3, 6], np.int32)), pa.py_buffer(b"ok\xffabc")]
    )
    pq.write_table(pa.table({"text": texts, "label": ["x", "y"]}), tmp_path / "d.parquet")
    assert labelled.read(str(tmp_path)).texts == ["ok\ufffd", "abc"]


def test_the_fingerprint_differs_with_the_content():
    data = labelled.LabelledTexts(["ab", "c"], np.array([0, 1]), ["x", "y"])
    assert data.fingerprint() == labelled.LabelledTexts(["ab", "c"], np.array([0, 1]), ["x", "y"]).fingerprint()
    assert data.fingerprint() != labelled.LabelledTexts(["a", "bc"], np.array([0, 1]), ["x", "y"]).fingerprint()
    assert data.fingerprint() != labelled.LabelledTexts(["ab", "c"], np.array([1, 0]), ["x", "y"]).fingerprint()


@pytest.mark.parametrize(
    ("columns", "names", "words"),
    [
        ({"body": ["a"], "label": ["x"]}, None, ["'text'", "body, label", "--text-column"]),
        ({"text": ["a"], "stars": ["x"]}, None, ["'label'", "text, stars", "--label-column"]),
        ({"text": [1], "label": ["x"]}, None, ["'text'", "int64", "--text-column"]),
        ({"text": ["a"], "label": [0.5]}, None, ["'label'", "0.5", "whole numbers"]),
        ({"text": ["a"], "label": [[True]]}, None, ["'label'", "lists of bool", "label names or numbers"]),
        ({"text": [None, " "], "label": ["x", "y"]}, None, ["no row", "2 rows, 2 without text"]),
        ({"text": ["a"], "label": ["z"]}, ["x", "y"], ["'z'", "x, y", "leave those cells empty"]),
        ({"text": ["a"], "label": [7]}, ["x", "y"], ["7", "x, y"]),
        ({"text": ["a"], "label": [float("inf")]}, None, ["'label'", "inf", "whole numbers"]),
    ],
)
def test_unusable_data_is_refused_with_the_remedy(tmp_path, columns, names, words):
    with pytest.raises(UserError) as error:
        labelled.read(write(tmp_path, "parquet", columns), scheme=LabelScheme(names))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"PAR1 no", ["a.parquet", "cannot be read as parquet"]),
        ("a.csv", b"text,label\na,b,c\n", ["a.csv", "cannot be read as csv"]),
        ("a.csv", b"", ["a.csv", "cannot be read as csv"]),
        ("a.csv", b"text,label,text\na,b,c\n", ["a.csv", "2 columns 'text'", "rename"]),
        ("a.jsonl", b"{", ["a.jsonl", "cannot be read as jsonl"]),
        ("a.xlsx", b"", ["a.xlsx", "unknown suffix", ".csv"]),
    ],
)
def test_files_that_do_not_fit_their_suffix_are_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        labelled.read(str(tmp_path / name))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("path", ["./nowhere", "nowhere.csv", "nowhere/*.csv", "a/b/c/d", "ftp://host/x.csv"])
def test_paths_that_do_not_exist_are_refused(path):
    with pytest.raises(UserError) as error:
        labelled.read(path)
    assert path.split("*")[0] in str(error.value)


def test_the_origin_is_written_and_read_again():
    origin = DataOrigin("data.csv", files=1, rows=5, dropped=DroppedRows(1, 0, 2), numbered=True, truncated_rows=3)
    content = origin.to_json()
    assert content == {
        "place": "data.csv",
        "files": 1,
        "rows": 5,
        "dropped": {"without_text": 1, "without_label": 0, "without_tokens": 2},
        "numbered": True,
        "truncated_rows": 3,
    }
    assert DataOrigin.from_json(content | {"train_rows": 4, "fingerprint": "0"}) == origin
    hub_content = DataOrigin("owner/name", revision="abc", rows=5).to_json()
    assert list(hub_content) == ["place", "revision", "rows", "dropped", "numbered"]
