"""Scoring rows again shows what was changed in an output."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentiment_core.data.shards import Unit
from sentiment_core.errors import UserError
from sentiment_core.scoring import plan
from sentiment_core.scoring.rescore import PART_ROWS, Rescoring, draw_sample
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.conftest import make_bundle
from tests.scoring.conftest import ODD_TEXTS
from tests.scoring.runs import score_folder, write_shard


def test_rows_scored_again_show_what_was_changed(in_process, odd_scored, odd_corpus, tmp_path):
    """A sample of more rows than there are: all, in parts."""
    shutil.copytree(odd_scored.place, tmp_path / "out")
    changes = {  # that verification does not see unless it scores again
        "kind=a/plain.parquet": ("id", lambda ids: pc.add(ids, 1)),
        "kind=a/large.parquet": ("status", lambda status: status.take([4, 1, 2, 3, 0, *range(5, len(ODD_TEXTS))])),
        "kind=b/invalid.parquet": ("confidence", lambda confidence: pc.subtract(confidence, 0.03)),
    }
    for name, (column, change) in changes.items():
        table = pq.ParquetFile(tmp_path / "out" / name).read()
        i, kind = table.column_names.index(column), table.schema.field(column).type
        changed = table.set_column(i, table.schema.field(column), change(table[column]).cast(kind))
        pq.write_table(changed, tmp_path / "out" / name)
    settings = VerifySettings(input=str(odd_corpus), out=str(tmp_path / "out"))
    assert verify(settings).exit_code == 0
    findings = verify(replace(settings, sample=10_000))
    report, rows = findings.report(), len(ODD_TEXTS)
    assert (findings.exit_code, len(findings.different)) == (1, 3), report
    assert f"column 'id' differs in {rows} of {rows} rows; row 0: 1, expected 0" in report
    assert f"kind=a/large.parquet: status differs in 2 of {rows} rows; row 0: truncated, expected ok" in report
    assert "kind=b/invalid.parquet: 1 of 1 rows have another score" in report


def test_another_bundle_than_the_one_that_scored_is_refused(odd_scored, odd_corpus, tiny_bundle, tmp_path):
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    card = json.loads((other / "sentiment.json").read_text())
    (other / "sentiment.json").write_text(json.dumps(card | {"max_length": 7}))
    with pytest.raises(UserError, match="is not the bundle that scored"):
        verify(VerifySettings(input=str(odd_corpus), out=odd_scored.place, full=True, model=str(other)))


def test_what_an_older_version_scored_in_8_bits_is_compared_with_floats(
    in_process, tiny_encoder, tmp_path, monkeypatch
):
    """Its bundles say nothing of how to put layers into 8 bits."""
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good", "bad", None]})
    old = make_bundle(tiny_encoder, tmp_path / "b", int8={"agreement": 0.999, "rows": 500})
    monkeypatch.setattr(plan, "require_int8_agreement", lambda *bundle: None)
    out = tmp_path / "out"
    assert score_folder(old, tmp_path / "in", out, int8=True).exit_code == 0
    settings = VerifySettings(input=str(tmp_path / "in"), out=str(out), full=True)
    assert verify(settings).report().startswith("3 rows in, 3 rows out\nscored again: 3 rows are the same")
    table = pq.read_table(out / "a.parquet")
    for change, exit_code in ((0.06, 0), (0.2, 1)):  # as far as its 8 bits were off, and further
        lower = table.set_column(
            table.column_names.index("confidence"),
            table.schema.field("confidence"),
            pc.subtract(table["confidence"], pa.scalar(change, pa.float32())),
        )
        pq.write_table(lower, out / "a.parquet")
        assert verify(settings).exit_code == exit_code


def test_an_output_that_does_not_say_how_it_was_scored_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no readable _run\.json"):
        Rescoring.load(str(tmp_path), None)


@given(rows=st.lists(st.integers(0, 200), max_size=20), sample_rows=st.integers(1, 500))
def test_the_parts_of_a_sample_do_not_overlap(rows, sample_rows):
    units = [Unit(f"{i}.parquet", 7, 7 + n, n, 1, 1, 10 * n) for i, n in enumerate(rows)]
    sample = draw_sample(units, sample_rows, random.Random(0))
    drawn = [(unit.source, row) for part, unit in sample.items() for row in range(part.start, part.stop)]
    assert len(set(drawn)) == len(drawn)
    assert all(unit.start <= part.start < part.stop <= unit.stop for part, unit in sample.items())
    assert min(sample_rows, sum(rows)) <= len(drawn) <= sample_rows + PART_ROWS
