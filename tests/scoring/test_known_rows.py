"""Known rows travel with their task, and computed ones are filled in between them."""

import numpy as np
import pyarrow as pa
import pytest

from sentiment_core.model.probability_column import make_column
from sentiment_core.scoring.known_rows import KnownRows, as_written_now
from sentiment_core.scoring.records import Run
from sentiment_core.text.text_hash import hash_texts

LABELS = ["no", "yes"]
PROBABILITIES = np.array([[0.25, 0.75], [np.nan, np.nan], [0.75, 0.25]], np.float32)


def label_column(codes: list[int | None]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(LABELS))


@pytest.fixture
def known() -> KnownRows:
    """Five rows: the first and the fourth are computed, two others have the same text."""
    answers = pa.table(
        {
            "label": label_column([1, None, None]),
            "confidence": pa.array([0.75, None, 0.75], pa.float32()),
            **make_column(PROBABILITIES, ~np.isnan(PROBABILITIES[:, 0])),
            "status": ["ok", "null", "abstained"],
        }
    )
    answer_of = np.array([-1, 0, 1, -1, 0], np.int32)
    return KnownRows(hash_texts(["a", "b", None, "c", "b"]), answer_of, answers, ("x/1.parquet", "2.parquet"))


def test_known_rows_come_back_as_they_were(known):
    again = KnownRows.from_bytes(known.to_bytes())
    assert again.text_hash.equals(known.text_hash)
    assert again.answers.equals(known.answers)
    assert (again.answer_of.tolist(), again.replaced) == ([-1, 0, 1, -1, 0], ("x/1.parquet", "2.parquet"))
    nothing = KnownRows.from_bytes(KnownRows.nothing(4).to_bytes())
    assert (nothing.computed, nothing.reused, nothing.text_hash, nothing.replaced) == (4, 0, None, ())


def test_columns_have_all_rows_in_their_places(known):
    assert (known.computed, known.reused) == (2, 3)
    assert known.fill_in("label", label_column([0, 1])).to_pylist() == ["no", "yes", None, "yes", "yes"]
    filled = known.fill_in("confidence", pa.array([0.5, 0.625], pa.float32()))
    assert filled.to_pylist() == [0.5, 0.75, None, 0.625, 0.75]
    (computed,) = make_column(PROBABILITIES[[1, 2]], np.array([False, True])).values()
    assert known.fill_in("probabilities", computed).to_pylist() == [
        None,
        [0.25, 0.75],
        None,
        [0.75, 0.25],
        [0.25, 0.75],
    ]
    assert KnownRows.nothing(2).fill_in("label", label_column([0, 1])).to_pylist() == LABELS


def test_reused_rows_are_counted_by_row_not_by_text(known):
    rows = known.reused_rows(Run("in", "bundle"), {"": LABELS})[""]
    assert rows.status.tolist() == [0, 3, 0]
    assert rows.label_counts.tolist() == [0, 2]
    assert rows.has_score.tolist() == [True, False, True]
    assert rows.lengths.tolist() == [0, 0, 0]


def test_lists_of_labels_are_counted():
    answers = pa.table(
        {"labels": [["b", "a"], [], None], "confidence": [0.5, 0.5, None], "status": ["ok", "ok", "null"]}
    )
    known = KnownRows(None, np.array([0, 1, 2, 0], np.int32), answers)
    rows = known.reused_rows(Run("in", "bundle", multi_label=True), {"": ["a", "b", "c"]})
    assert rows[""].label_counts.tolist() == [2, 2, 0]
    assert KnownRows.nothing(2).reused_rows(Run("in", "bundle"), {"": LABELS}) == {}


def test_stored_columns_get_the_types_that_are_written_now():
    label = pa.chunked_array([["yes", None], ["no"]])
    assert as_written_now(label, label_column([]), LABELS).to_pylist() == ["yes", None, "no"]
    assert as_written_now(label, label_column([]), LABELS).type == label_column([]).type
    (probabilities,) = make_column(PROBABILITIES, ~np.isnan(PROBABILITIES[:, 0])).values()
    assert as_written_now(pa.chunked_array([probabilities]), probabilities, LABELS).equals(probabilities)
    text = pa.chunked_array([["x"]], pa.large_string())
    assert as_written_now(text, pa.array([], pa.string()), LABELS).type == pa.string()
