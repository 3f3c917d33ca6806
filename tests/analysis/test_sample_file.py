"""A sample comes back from a spreadsheet as it was drawn, and one that was changed by hand is noticed."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from sentiment_core.analysis.sample_file import DrawnRow, format_sample, read_sample
from sentiment_core.data import labelled
from sentiment_core.data.labels import LabelScheme
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.text.text_hash import hash_texts

TEXTS = [
    "plain",
    '=HYPERLINK("http://x")',
    "+1 for this",
    "-5",
    "@all",
    "\tindented",
    'two\nlines, and a "quote"; it\'s fine',
    "'quoted",
    "'=literal",
    "10/10",
    "1e5",
    "TRUE",
    "naïve café",
    "a\r\nb",
    "  spaces  ",
]
LABELS = ["positive", "negative", ""] * 5
# strata of 100, 33 and 7 rows, 5 drawn from each
ROWS = [
    DrawnRow(f"day={i % 3}/ü=b.parquet", 1000 * i, ["day=0 | yes", "day=1", "-1 | é"][i % 3], [20, 6.6, 1.4][i % 3])
    for i in range(15)
]
HEADER = ["sample", "source", "row", "text", "label", "stratum", "weight"]


def cells_of(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def drawn() -> list[list[str]]:
    """Return the sample's cells with labels, as a person leaves them."""
    cells = cells_of(format_sample(ROWS, {"text": TEXTS}))
    for row, label in zip(cells[1:], LABELS, strict=True):
        row[4] = label
    return cells


def save(path: Path, cells: list[list[str]], separator=",", encoding="utf-8", newline="\r\n", mark="") -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=separator, lineterminator=newline).writerows(cells)
    path.write_bytes((mark + buffer.getvalue()).encode(encoding))
    return str(path)


def german(cells: list[list[str]]) -> list[list[str]]:
    return [[*row[:-1], row[-1].replace(".", ",")] for row in cells]


def check_same(path: str) -> None:
    sample = read_sample(path)
    by_row = {int(row): i for i, row in enumerate(sample.row)}
    assert sorted(by_row) == [row.row for row in ROWS]
    for i, row in enumerate(ROWS):
        j = by_row[row.row]
        assert (sample.source[j], sample.stratum[j]) == (row.source, row.stratum)
        assert sample.labels[j] == (LABELS[i] or None)
        assert sample.weight[j] == pytest.approx(row.weight, rel=1e-9)
    data = labelled.read(path)
    texts = dict(zip(sample.row.tolist(), (None,) * 15, strict=True))
    reached = sample.line[[label is not None for label in sample.labels]]
    rows_by_line = dict(zip(sample.line.tolist(), sample.row.tolist(), strict=True))
    assert data.positions.tolist() == reached.tolist()
    for position, text in zip(data.positions.tolist(), data.texts, strict=True):
        texts[rows_by_line[position]] = text
    for i, row in enumerate(ROWS):
        if LABELS[i]:
            assert texts[row.row] == TEXTS[i]


def test_the_written_file_is_read_again(tmp_path):
    check_same(save(tmp_path / "s.csv", drawn()))


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (german, {"separator": ";", "encoding": "cp1252"}),
        (german, {"separator": "\t", "encoding": "utf-16"}),
        (german, {"separator": ";", "encoding": "utf-8-sig"}),
        (lambda cells: cells, {"newline": "\n"}),
        (lambda cells: [cells[0], *sorted(cells[1:], key=lambda row: row[3])], {}),
        (lambda cells: [[*row[:3], "note", *row[3:]] for row in cells], {}),
        (lambda cells: [[*row[::-1]] for row in cells], {}),
        (lambda cells: [*cells, [""] * 7, [""] * 7], {"separator": ";"}),
        (lambda cells: [cells[0], *([*row[:2], f"{int(row[2]):,}", *row[3:]] for row in cells[1:])], {}),
    ],
    ids=["german cp1252", "utf-16 tabs", "utf-8 mark", "unix", "sorted", "column added", "reversed", "blank", "digits"],
)
def test_what_spreadsheets_change_is_undone(tmp_path, change, options):
    check_same(save(tmp_path / "s.csv", change(drawn()), **options))


def test_a_file_of_tabs_may_be_called_txt(tmp_path):
    assert len(read_sample(save(tmp_path / "s.txt", drawn(), "\t", "utf-16"))) == 15


def test_no_cell_is_a_formula_and_no_id_a_number(tmp_path):
    for row in cells_of(format_sample([DrawnRow("=a/b.parquet", 1, "-1", 2.0)] * 5, {"text": TEXTS[1:6]}))[1:]:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
        assert row[0][0].isalpha()


def test_texts_of_several_columns_stay_apart(tmp_path):
    content = format_sample(ROWS[:2], {"title": ["=a", None], "body": ["b", "c"]})
    cells = cells_of(content)
    assert cells[0][3:5] == ["title", "body"]
    for row in cells[1:]:
        row[5] = "x"
    data = labelled.read(save(tmp_path / "s.csv", cells), Columns(texts=("title", "body")))
    assert data.texts == ["=a\nb", "c"]


def test_a_text_column_may_not_have_the_name_of_a_sample_column():
    with pytest.raises(UserError, match="the text column 'source' has the name of a column of samples"):
        format_sample(ROWS, {"source": TEXTS})


def change(cells: list[list[str]], row: int, column: str, value: str) -> list[list[str]]:
    cells[row][HEADER.index(column)] = value
    return cells


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda c: change(c, 3, "weight", ""), "has other values in row row03of15-.*weight ''"),
        (lambda c: change(c, 3, "weight", "12.May"), "has other values in row row03of15-"),
        (lambda c: change(c, 3, "weight", "7"), "has other values in row row03of15-"),
        (lambda c: change(c, 3, "stratum", "mine"), "has other values in row row03of15-.*stratum 'mine'"),
        (lambda c: change(c, 3, "row", "1"), "has other values in row row03of15-"),
        (lambda c: change(c, 3, "source", "b.parquet"), "has other values in row row03of15-"),
        (lambda c: change(c, 3, "sample", "17"), "has the id '17' in column 'sample'"),
        (lambda c: c[:7] + c[9:], r"has 13 of the 15 rows that were drawn \(missing: 7, 8\).*leave the label"),
        (lambda c: [*c, c[3]], "has the row row03of15-.* more than once"),
        (lambda c: [row[:-1] for row in c], "has no column 'weight'"),
        (lambda c: [row[1:] for row in c], "has no column 'sample'"),
        (lambda c: [*c, ["", "x", "1", "my own text", "positive", "", ""]], "has the id '' in column 'sample'"),
        (lambda c: [[*row, row[0]] for row in c], "has two columns 'sample'"),
        (lambda c: c[:1], "has 0 of the 0 rows"),
    ],
)
def test_what_was_changed_by_hand_is_named(tmp_path, edit, sentence):
    with pytest.raises(UserError, match=sentence):
        read_sample(save(tmp_path / "s.csv", edit(drawn())))


def test_rows_of_two_samples_are_refused(tmp_path):
    other_rows = [DrawnRow(row.source, row.row + 1, row.stratum, row.weight) for row in ROWS]
    others = cells_of(format_sample(other_rows, {"text": TEXTS}))
    with pytest.raises(UserError, match="holds rows of 2 samples"):
        read_sample(save(tmp_path / "s.csv", drawn()[:8] + others[8:]))


def test_a_sample_for_training_has_no_weights(tmp_path):
    rows = [DrawnRow(row.source, row.row) for row in ROWS]
    path = tmp_path / "s.csv"
    path.write_bytes(format_sample(rows, {"text": TEXTS}))
    with pytest.raises(UserError, match="is a sample for training, whose rows do not stand for the corpus"):
        read_sample(str(path))


def test_a_sample_whose_weights_were_emptied_is_none_for_training(tmp_path):
    cells = drawn()
    emptied = [cells[0], *([*row[:5], "", ""] for row in cells[1:])]
    with pytest.raises(UserError, match="is a sample whose columns 'stratum' and 'weight' were emptied; restore them"):
        read_sample(save(tmp_path / "s.csv", emptied))


def test_what_is_no_csv_file_is_refused(tmp_path):
    (tmp_path / "s.csv").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read: it is empty"):
        read_sample(str(tmp_path / "s.csv"))
    with pytest.raises(UserError, match="cannot be read"):
        read_sample(str(tmp_path / "absent.csv"))


def test_weights_of_labelled_rows_stand_for_their_strata(tmp_path):
    sample = read_sample(save(tmp_path / "s.csv", drawn()))
    np.testing.assert_allclose(sorted(sample.stratum_rows), [7, 33, 100])
    weights = sample.spread_weights(sample.is_labelled)
    assert weights.sum() == pytest.approx(140 - sample.uncovered_rows(sample.is_labelled))
    assert (weights > 0).tolist() == sample.is_labelled.tolist()
    no_rows = np.zeros(15, bool)
    assert sample.uncovered_rows(no_rows) == 140
    assert not sample.spread_weights(no_rows).any()


def test_large_weights_are_written_in_full(tmp_path):
    rows = [DrawnRow("a", i, "all", 1_000_000_007 / 3) for i in range(3)]
    (tmp_path / "s.csv").write_bytes(format_sample(rows, {"text": ["a", "b", "c"]}))
    assert read_sample(str(tmp_path / "s.csv")).weight.sum() == pytest.approx(1_000_000_007, rel=1e-9)


def test_labels_are_looked_up_among_those_of_the_model(tmp_path):
    sample = read_sample(save(tmp_path / "s.csv", drawn()))
    numbers, is_labelled = sample.number_labels(LabelScheme(["negative", "positive"]))
    assert numbers[is_labelled].tolist() == [1, 0] * 5
    sentence = (
        r"s.csv has the label 'negative' in row row02of15-[-0-9a-f]+; expected one of good, positive; correct it, or "
        "leave the cell empty$"
    )
    with pytest.raises(UserError, match=sentence):
        sample.number_labels(LabelScheme(["good", "positive"]))


def test_spaces_around_a_label_do_not_count(tmp_path):
    cells = drawn()
    for row in cells[1:]:
        row[4] = f" {row[4]} "
    path = save(tmp_path / "s.csv", cells)
    numbers, is_labelled = read_sample(path).number_labels(LabelScheme(["negative", "positive"]))
    assert numbers[is_labelled].tolist() == [1, 0] * 5
    assert labelled.read(path).label_names == ["negative", "positive"]


def test_an_untouched_sample_is_read_whatever_its_names(tmp_path):
    rows = [DrawnRow(" a/b.parquet", 0, "lang=en ", 2.0), DrawnRow(" a/b.parquet", 1, " lang=de", 3.0)]
    (tmp_path / "s.csv").write_bytes(format_sample(rows, {"text": ["a", "b"]}))
    sample = read_sample(str(tmp_path / "s.csv"))
    assert sample.stratum.tolist() == ["lang=en", "lang=de"]
    assert sample.source.tolist() == [" a/b.parquet"] * 2


def test_ids_hold_the_hashes_that_outputs_have(tmp_path):
    columns = {"title": ["=a", None], "body": ["b", "c"]}
    (tmp_path / "s.csv").write_bytes(format_sample(ROWS[:2], columns))
    expected = [text_hash[:4].hex() for text_hash in hash_texts(["=a\nb", "c"]).to_pylist()]
    assert read_sample(str(tmp_path / "s.csv")).text_hashes == expected
    other_texts = cells_of(format_sample(ROWS[:2], columns | {"body": ["b", "d"]}))
    path = save(tmp_path / "t.csv", [*cells_of((tmp_path / "s.csv").read_bytes())[:2], other_texts[2]])
    with pytest.raises(UserError, match="holds rows of 2 samples"):
        read_sample(path)


@pytest.mark.parametrize(
    ("labelled_rows", "skipped"), [([], 0), ([0, 1, 2], 0), ([0, 3], 2), ([14], 14), (range(15), 0)]
)
def test_rows_that_somebody_passed_over_are_counted_in_any_order(tmp_path, labelled_rows, skipped):
    cells = drawn()
    for i, row in enumerate(cells[1:]):
        row[4] = "positive" if i in labelled_rows else ""
    assert sorted(cells[1:], key=lambda row: row[0]) == cells[1:]
    for order in (cells, [cells[0], *sorted(cells[1:], key=lambda row: row[3])]):
        assert read_sample(save(tmp_path / "s.csv", order)).skipped_rows == skipped


def test_several_labels_stand_in_one_cell(tmp_path):
    cells = drawn()
    for row, label in zip(cells[1:], ["joy|love", "|", "joy", "", "love | joy"] * 3, strict=True):
        row[4] = label
    sample = read_sample(save(tmp_path / "s.csv", cells))
    sets, is_labelled = sample.number_labels(LabelScheme(["joy", "love"], several=True), "|")
    assert is_labelled.tolist() == [True, True, True, False, True] * 3
    assert sets[:5].tolist() == [[True, True], [False, False], [True, False], [False, False], [True, True]]
