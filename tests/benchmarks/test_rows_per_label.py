"""The benchmark of few labels draws as many rows of each label, none of them a test row."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path += [str(REPO), str(REPO / "benchmarks")]

from benchmarks.rows_per_label import RowsPerLabelSettings, draw, format_table, read_rows  # noqa: E402
from sentiment_core.errors import UserError  # noqa: E402


@pytest.fixture
def small_settings(tmp_path) -> RowsPerLabelSettings:
    texts = [f"film {i} was {'great' if i % 2 else 'bad'}" for i in range(60)] + ["short"] * 40
    labels = ["negative", "positive"] * 30 + ["positive"] * 40
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "data.parquet")
    return RowsPerLabelSettings("small", str(tmp_path / "data.parquet"), "encoder", test_rows=20, min_words=2)


def test_rows_are_drawn_by_label_from_texts_that_are_not_tested(small_settings):
    data, test = read_rows(small_settings)
    assert len(test) == 20
    assert not set(data.texts) & set(test.texts)
    assert len(set(data.texts)) == len(data) >= 40  # each text once
    assert "short" not in data.texts  # one word
    first, second = draw(data, 8, seed=0), draw(data, 8, seed=1)
    assert np.bincount(first.labels).tolist() == np.bincount(second.labels).tolist() == [8, 8]
    assert set(first.texts) != set(second.texts)


def test_a_label_with_too_few_rows_is_refused(small_settings):
    data, _ = read_rows(small_settings)
    rows = np.concatenate([np.flatnonzero(data.labels == 0)[:5], np.flatnonzero(data.labels == 1)])
    with pytest.raises(UserError, match=r"label 'negative' has 5 rows to draw; expected 8 or more\. Add rows\."):
        draw(data.take(rows), 32, seed=0)


def test_the_table_has_means_and_ranges_over_seeds():
    lines = [
        {"rows_per_label": 8, "way": way, "accuracy": accuracy}
        for way, accuracy in (("auto", 0.5), ("auto", 0.7), ("setfit", 0.4))
    ]
    heading, row = format_table(lines).splitlines()
    assert heading.split() == ["rows", "a", "label", "auto", "setfit"]
    assert row.split("  ")[-2:] == ["0.6000 (0.5000 to 0.7000)", "0.4000 (0.4000 to 0.4000)"]
