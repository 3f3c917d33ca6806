"""Labelled files are read as people have them."""

import bz2
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.data import labelled, readers
from sentiment_core.data.labels import LabelScheme
from sentiment_core.data.readers import Columns, MissingColumn
from sentiment_core.errors import UserError

TEXTS, LABELS = ['süß; "fine"\nstuff', "bad\tone", "NA"], ["pos", "neg", "neg"]
ROWS = [{"id": i, "text": text, "label": label} for i, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))]


def csv_file(separator):
    quoted = (separator.join(f'"{str(value).replace(chr(34), chr(34) * 2)}"' for value in row.values()) for row in ROWS)
    return "\n".join([separator.join(ROWS[0]), *quoted]) + "\n"


FILES = {
    "a.csv": csv_file(",").encode(),
    "semicolons.csv": csv_file(";").encode(),
    "tabs.csv": csv_file("\t").encode(),
    "a.tsv": csv_file("\t").encode(),
    "bars.CSV": csv_file("|").encode(),
    "excel.csv": csv_file(";").encode("utf-8-sig"),
    "utf16.csv": csv_file(",").encode("utf-16"),
    "a.csv.gz": gzip.compress(csv_file(",").encode()),
    "a.tsv.zst": pa.compress(csv_file("\t").encode(), "zstd", asbytes=True),
    "a.json": json.dumps(ROWS, indent=2).encode(),
    "lines.json": "\n".join(map(json.dumps, ROWS)).encode(),
    "a.jsonl.bz2": bz2.compress("\n".join(map(json.dumps, ROWS)).encode()),
    "a.ndjson": ("\ufeff" + "\r\n".join(map(json.dumps, ROWS))).encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_come_out_of_every_file(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    data = labelled.read(str(tmp_path / name))
    assert data.texts == TEXTS
    assert [data.label_names[i] for i in data.labels] == LABELS
    assert data.origin.remarks == []


def test_what_is_not_sure_is_asked_for(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text^label\nsüß^pos\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"no column 'text'; it has text\^label; choose with --text-column"):
        labelled.read(str(path))
    columns = Columns(csv_separator="^", csv_encoding="cp1252")
    assert labelled.read(str(path), columns).texts == ["süß"]
    data = labelled.read(str(path), Columns(csv_separator="^"))
    assert data.texts == ["s\ufffd\ufffd"]
    assert data.origin.remarks == ["1 texts hold U+FFFD, which stands for bytes that are not UTF-8"]
    with pytest.raises(UserError, match="--csv-encoding is 'latin-99'; expected the name of an encoding"):
        labelled.read(str(path), Columns(csv_separator="^", csv_encoding="latin-99"))


def test_columns_nobody_asked_for_may_hold_anything(tmp_path):
    rows = [
        {"text": "a", "label": "x", "meta": 1},
        {"text": "b", "label": "y", "meta": "one"},
        {"label": "x", "n": [{}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = labelled.read(str(tmp_path))
    assert (data.texts, data.origin.dropped.without_text) == (["a", "b"], 1)


def test_labels_may_be_numbers_in_one_row_and_texts_in_another(tmp_path):
    rows = [
        {"text": "a", "label": 1},
        {"text": "b", "label": "1"},
        {"text": "c", "label": True},
        {"text": "d", "label": 2},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    data = labelled.read(str(tmp_path))
    assert [data.label_names[i] for i in data.labels] == ["1", "1", "true", "2"]


def test_a_text_inside_a_struct_has_a_dotted_path(tmp_path):
    reviews = [
        {"body": {"text": "good"}, "stars": 5},
        {"body": None, "stars": 1},
        {"body": {"text": "bad"}, "stars": 1},
    ]
    table = pa.table({"review": reviews, "a.b": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"review": review, "a.b": "x"}) for review in reviews))
    for name in ("a.parquet", "b.jsonl"):
        data = labelled.read(str(tmp_path / name), Columns(("review.body.text",), "review.stars"))
        assert (data.texts, data.labels.tolist(), data.label_names) == (["good", "bad"], [1, 0], ["1", "5"])
        assert labelled.read(str(tmp_path / name), Columns(("a.b",), "review.stars")).texts[0] == "x"
        with pytest.raises(UserError, match=r"has no column 'review\.none'; it has review, a\.b"):
            labelled.read(str(tmp_path / name), Columns(("review.none",), "review.stars"))


def test_texts_may_be_bytes_or_json(tmp_path):
    storage = pa.array(["good", None])
    pq.write_table(
        pa.table({"text": pa.ExtensionArray.from_storage(pa.json_(pa.string()), storage), "label": [1, 2]}),
        tmp_path / "a.parquet",
    )
    pq.write_table(pa.table({"text": [b"bad", b"\xff"], "label": [1, 2]}), tmp_path / "b.parquet")
    assert labelled.read(str(tmp_path)).texts == ["good", "bad", "\ufffd"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"[1]", "row 1 is no JSON object"),
        ("a.json", b'{"text": "a"}\n{"text"', "line 2 is no JSON"),
        ("a.json", b"[" * 100_000, "no JSON"),
        ("a.jsonl", b'{"text": "a", "label": ["x"]}\n{"text": "b", "label": 1}', "objects or lists"),
        ("a.csv.gz", b"text,label\na,b\n", "cannot be read as csv.gz"),
        ("a.tsv", b"\n", "it is empty"),
        ("a.parquet", b"", "cannot be read as parquet"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        labelled.read(str(tmp_path / name))


def test_a_separator_may_have_a_name_and_is_one_character(tmp_path):
    (tmp_path / "a.csv").write_text("\n\ntext\tlabel\na,b\tx\n")
    for separator in ("tab", r"\t", "\t", None):
        assert labelled.read(str(tmp_path), Columns(csv_separator=separator)).texts == ["a,b"]
    with pytest.raises(UserError, match="--csv-separator is '::'; expected one character, or tab"):
        Columns(csv_separator="::")


def test_a_file_beside_its_compressed_copy_is_refused(tmp_path):
    for name in ("a.csv", "a.csv.gz"):
        (tmp_path / name).write_bytes(FILES[name])
    with pytest.raises(UserError, match=r"holds a\.csv and a\.csv\.gz, the same file twice; remove one of them"):
        labelled.read(str(tmp_path))


def test_lone_surrogates_become_replacement_characters(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d", "label": "x"}\n{"text": "\\ud83d\\ude00", "label": "y"}\n')
    assert labelled.read(str(tmp_path)).texts[1] == "\U0001f600"
    assert "\ufffd" in labelled.read(str(tmp_path)).texts[0]


def test_files_of_other_kinds_are_passed_over_and_named(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,x\n")
    (tmp_path / "b.xlsx").write_bytes(b"x")
    (remark,) = labelled.read(str(tmp_path)).origin.remarks
    assert remark.startswith(f"{tmp_path}: 1 files passed over")
    assert remark.endswith("b.xlsx")


def test_every_reader_is_found_by_its_suffix():
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in readers.READERS)
    assert {".parquet", ".csv", ".jsonl", ".json.gz"} <= set(readers.SUFFIXES)


@pytest.mark.parametrize("separator", [";", "|", "\t"])
def test_a_separator_is_found_where_a_column_is_missing(tmp_path, separator):
    """The label may be missing: then the texts alone are read."""
    path = tmp_path / "a.csv"
    path.write_text(f"id{separator}text\n1{separator}a, b\n")
    with pytest.raises(MissingColumn, match="has no column 'label'; it has id, text"):
        labelled.read(str(path))
    assert labelled.read_texts(str(path), Columns()) == ["a, b"]


def test_codes_in_csv_keep_their_leading_zeros(tmp_path):
    """Beside names, and alone; numbers that are no codes stay numbers."""
    (tmp_path / "a.csv").write_text("text,label\nx,0110\ny,A1\n")
    (tmp_path / "b.csv").write_text("text,label\nx,0110\ny,0220\n")
    data = labelled.read(str(tmp_path))
    assert data.label_names == ["0110", "0220", "A1"]
    assert [data.label_names[i] for i in data.labels] == ["0110", "A1", "0110", "0220"]
    scheme = LabelScheme(names=["01", "02", "03"])
    (tmp_path / "c.csv").write_text("text,label\nx,02\ny,01\n")
    assert labelled.read(str(tmp_path / "c.csv"), scheme=scheme).labels.tolist() == [1, 0]
    for cells in (("1", "0"), ("1.0", "0.0"), (" 1", " 0")):
        (tmp_path / "d.csv").write_text("text,label\n" + "".join(f"x,{cell}\n" for cell in cells))
        assert labelled.read(str(tmp_path / "d.csv")).label_names == ["0", "1"]


def test_a_csv_column_may_begin_with_digits_and_go_on_with_names(tmp_path, monkeypatch):
    """Arrow decides by the first block."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", 64)
    (tmp_path / "a.csv").write_text("text,label\n" + "some text,7\n" * 20 + "some text,none\n")
    assert labelled.read(str(tmp_path / "a.csv")).label_names == ["7", "none"]
