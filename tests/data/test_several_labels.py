"""Rows with several labels, or none: lists of names or numbers, and texts with a separator."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.data import labelled, splits
from sentiment_core.data.labels import LabelScheme
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError

LISTS = [["joy", "love"], [], None, ["anger"], ["joy", "joy"]]
FOLD = [["joy", "love"], [], ["anger"], ["joy"]]  # of the rows that are labelled


def write(path, labels, feature=None):
    """Write rows with these labels; `feature` describes them as the `datasets` library would."""
    table = pa.table({"text": [f"{path.name} {i}" for i in range(len(labels))], "label": labels})
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})} if feature else None
    pq.write_table(table.replace_schema_metadata(metadata), path)


def names_of(data):
    return [[data.label_names[i] for i in np.flatnonzero(row)] for row in data.labels]


def read(path, scheme: LabelScheme = LabelScheme(), **options):  # noqa: B008 (frozen)
    return labelled.read(str(path), Columns(**options), scheme)


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string_view())])
def test_lists_of_names_are_read_and_rows_without_a_list_dropped(tmp_path, kind):
    write(tmp_path / "a.parquet", pa.array(LISTS, pa.list_(pa.string())).cast(kind))
    data = read(tmp_path / "a.parquet")
    assert data.several
    assert data.labels.dtype == bool
    assert data.label_names == ["anger", "joy", "love"]
    assert names_of(data) == FOLD
    assert data.origin.dropped.without_label == 1


def test_lists_in_json_lines_are_read(tmp_path):
    rows = [{"text": f"row {i}", "label": labels} for i, labels in enumerate(LISTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert names_of(read(tmp_path / "a.jsonl")) == FOLD


def test_texts_are_split_at_the_separator_which_alone_means_no_label(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,joy; love\nb,;\nc,\nd,anger\ne,joy;joy;\n")
    assert names_of(read(tmp_path / "a.csv", label_separator=";")) == FOLD
    assert read(tmp_path / "a.csv").label_names == [";", "anger", "joy; love", "joy;joy;"]  # one label a row
    with pytest.raises(UserError, match="--label-separator is ' '"):
        Columns(label_separator=" ")


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": {"names": ["anger", "joy", "love"], "_type": "ClassLabel"}, "_type": "List"},
        {"feature": {"names": ["anger", "joy", "love"], "_type": "ClassLabel"}, "length": -1, "_type": "Sequence"},
        [{"names": ["anger", "joy", "love"], "_type": "ClassLabel"}],
    ],
)
def test_numbers_have_the_names_that_the_data_declares(tmp_path, feature):
    write(tmp_path / "a.parquet", [[1, 2], [], None, [0], [1, 1], [0, -1]], feature)
    data = read(tmp_path / "a.parquet")
    assert names_of(data) == FOLD
    assert data.origin.dropped.without_label == 2  # the last one has a number without a name


def test_numbers_without_names_need_some(tmp_path):
    write(tmp_path / "a.parquet", [[1, 2], [], None, [0], [1]])
    with pytest.raises(UserError, match=r"lists of numbers without names; name the numbers .* with --label-names"):
        read(tmp_path / "a.parquet")
    assert names_of(read(tmp_path / "a.parquet", LabelScheme(["anger", "joy", "love"], by_user=True))) == FOLD
    (tmp_path / "b.csv").write_text("text,label\na,1;2\nb,;\nd,0\ne,1\n")
    scheme = LabelScheme(["anger", "joy", "love"], by_user=True)
    assert names_of(read(tmp_path / "b.csv", scheme, label_separator=";")) == FOLD


def test_labels_are_mapped_and_unknown_ones_refused(tmp_path):
    write(tmp_path / "a.parquet", [["Freude"], ["love", "hope"]])
    scheme = LabelScheme(["joy", "love"], mapping={"Freude": "joy", "hope": "love"}, several=True)
    assert names_of(read(tmp_path / "a.parquet", scheme)) == [["joy"], ["love"]]
    with pytest.raises(UserError, match="has the label 'hope'; expected one of joy, love"):
        read(tmp_path / "a.parquet", LabelScheme(["joy", "love"], mapping={"Freude": "joy"}))


def test_one_label_a_row_and_lists_are_not_taken_for_each_other(tmp_path):
    write(tmp_path / "lists.parquet", [["joy"]])
    write(tmp_path / "single.parquet", ["joy"])
    with pytest.raises(UserError, match=r"has lists of labels in .*lists.parquet and one label a row in .*single"):
        read(tmp_path)
    with pytest.raises(UserError, match="has lists of labels; expected one label a row, as the model gives it"):
        read(tmp_path / "lists.parquet", LabelScheme(["joy", "love"], several=False))
    with pytest.raises(UserError, match=r"has one label a row; expected lists of labels.* give --label-separator"):
        read(tmp_path / "single.parquet", LabelScheme(["joy", "love"], several=True))
    write(tmp_path / "flags.parquet", [[True, False]])
    with pytest.raises(UserError, match="holds lists of bool; expected lists of label names or numbers"):
        read(tmp_path / "flags.parquet")


def test_texts_without_a_label_have_another_fingerprint_than_those_with_one(tmp_path):
    for i, labels in enumerate(([["a"], ["b"]], [["a"], []], [["a"], ["a", "b"]], [["a"], ["b"]])):
        (tmp_path / str(i)).mkdir()
        write(tmp_path / str(i) / "a.parquet", pa.array(labels, pa.list_(pa.string())))
    scheme = LabelScheme(["a", "b"], several=True)
    first, *others, again = [read(tmp_path / str(i), scheme).fingerprint() for i in range(4)]
    assert again == first
    assert len({first, *others}) == 3


def draw(rows: int) -> labelled.LabelledTexts:
    """Rows with frequent, rare and single labels, and many without any."""
    rng = np.random.default_rng(0)
    names = ["often", "seldom", "thrice", "once"]
    labels = rng.random((rows, 4)) < np.array([0.5, 0.02, 0, 0])
    labels[:3, 2] = labels[3, 3] = True
    return labelled.LabelledTexts([f"text {i}" for i in range(rows)], labels, names)


def test_a_split_has_each_label_in_proportion_and_rare_ones_on_both_sides():
    data = draw(1_000)
    train, evaluation = splits.hold_out(data, 0.2, seed=1)
    assert len(evaluation) == pytest.approx(200, abs=10)
    assert not set(train.texts) & set(evaluation.texts)
    assert len(train) + len(evaluation) == 1_000
    counts, drawn = data.labels.sum(axis=0), evaluation.labels.sum(axis=0)
    np.testing.assert_allclose(drawn[:2], 0.2 * counts[:2], atol=1)
    assert drawn[2:].tolist() == [1, 0]
    assert train.origin.remarks == ["trained on but never evaluated, since they have too few texts: once"]
    again, _ = splits.hold_out(data, 0.2, seed=1)
    assert again.texts == train.texts
    assert splits.hold_out(data, 0.2, seed=2)[0].texts != train.texts


def test_all_rows_of_a_text_are_on_the_same_side():
    data = draw(200)
    repeated = data.take(np.repeat(np.arange(200), 3))
    train, evaluation = splits.hold_out(repeated, 0.25, seed=0)
    assert not set(train.texts) & set(evaluation.texts)
    assert len(evaluation) == pytest.approx(150, abs=9)


def test_rare_labels_can_be_left_out_and_their_rows_stay():
    data = draw(1_000)
    names = labelled.find_frequent_labels(data, 10)
    assert names == ["often", "seldom"]
    left = labelled.restrict_labels(data, names)
    assert len(left) == 1_000
    assert left.label_names == names
    np.testing.assert_array_equal(left.labels, data.labels[:, :2])
