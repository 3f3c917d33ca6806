"""Files that the revision 27de93b wrote: its bundle, output and nights still load, resume and verify.

`data/27de93b/README.md` says how they were made. Footers hold the input's size and time, and `_run.json` its path.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core import Classifier, score, verify
from sentiment_core.analysis.sample import SampleSettings, sample
from sentiment_core.analysis.sample_file import read_sample
from sentiment_core.nightly.job import nightly
from sentiment_core.nightly.settings import NightlySettings
from tests.conftest import sentences

DATA = Path(__file__).parent / "data" / "27de93b"
HOME = "/tmp/sentiment-core-27de93b"  # where the files were made
MTIME_S = 1_764_288_000  # of all input files
SCORED = {"probabilities": True, "min_confidence": 0.6}
TOLERANCE = 0.02  # other chips compute in other number types


@pytest.fixture
def old(tmp_path) -> Path:
    """Return a copy of the old files, in which the input's times and path are those that the old outputs name."""
    folder = Path(shutil.copytree(DATA, tmp_path / "old"))
    for path in folder.glob("*input/**/*.parquet"):
        os.utime(path, (MTIME_S, MTIME_S))
    for path in folder.glob("*/_run.json"):
        path.write_text(path.read_text().replace(HOME, str(folder)))
    for output in [*folder.glob("scored/**/*.parquet"), *folder.glob("nightly/**/*.parquet")]:
        rewrite_footer(output, str(folder))
    return folder


def rewrite_footer(path: Path, home: str) -> None:
    """Put the path of this copy into the footer of an output; leave its time of writing."""
    stat, table = path.stat(), pq.read_table(path, partitioning=None)
    metadata = {key: value.replace(HOME.encode(), home.encode()) for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the bytes and the time of writing of each Parquet file."""
    files = sorted(folder.rglob("*.parquet"))
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_an_old_bundle_gives_the_probabilities_that_it_gave(old):
    classifier = Classifier.load(old / "bundle")
    assert classifier.labels == ["negative", "positive"]
    for path in (old / "input").rglob("*.parquet"):
        before = pq.read_table(old / "scored" / path.relative_to(old / "input"), partitioning=None)
        texts = pq.read_table(path, partitioning=None)["text"].to_pylist()
        now = classifier.predict_proba(texts)
        rows = before["probabilities"].to_pylist()
        expected = np.array([row if row is not None else [np.nan] * 2 for row in rows], np.float32)
        np.testing.assert_allclose(now, expected, atol=TOLERANCE, equal_nan=True)
        assert np.isnan(now).any()
        assert set(np.nanargmax(now[~np.isnan(now).any(axis=1)], axis=1)) == {0, 1}


def test_an_old_output_is_whole_and_gets_only_what_is_new(old, in_process):
    request = {"model": old / "bundle", "input": old / "input", "out": old / "scored", **SCORED}
    before = contents(old / "scored")
    assert verify(input=old / "input", out=old / "scored").exit_code == 0
    result = score(**request)
    assert result.exit_code == 0
    assert result.summary["run"]["rows"] == 0
    assert result.summary["rows"] == 60
    assert contents(old / "scored") == before

    added = old / "input" / "date=2026-11-29" / "part-0.parquet"
    added.parent.mkdir()
    shutil.copy(old / "input" / "date=2026-11-28" / "part-0.parquet", added)
    result = score(**request)
    assert result.summary["run"]["rows"] == 30
    after = contents(old / "scored")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"date=2026-11-29/part-0.parquet"}
    findings = verify(input=old / "input", out=old / "scored")
    assert findings.exit_code == 0
    assert findings.rows_out == 90


def test_old_nights_go_on_and_are_compared_with(old, in_process):
    part = old / "nightly-input" / "date=2026-11-28"
    part.mkdir()
    pq.write_table(sentences(240, seed=9).select(["text"]), part / "part-0.parquet")
    places = {"model": old / "bundle", "input": old / "nightly-input", "out": old / "nightly"}
    before = contents(old / "nightly")
    night = nightly(NightlySettings(**{name: str(path) for name, path in places.items()}, night="2026-11-28"))
    assert night.state == "done"
    assert night.rows == 240
    assert not any(night.verified.values())
    assert {comparison.against for comparison in night.comparisons} >= {"past nights"}
    after = contents(old / "nightly")
    assert {name: after[name] for name in before} == before
    first = json.loads((old / "nightly" / "_nights" / "2026-11-27.json").read_text())
    assert first == json.loads((DATA / "nightly" / "_nights" / "2026-11-27.json").read_text())
    assert "2026-11-27" in (old / "nightly" / "_nights" / "index.html").read_text()


def test_rows_of_an_old_output_are_drawn(old, tmp_path):
    settings = SampleSettings(scored=str(old / "scored"), rows=20, to=str(tmp_path / "s.csv"))
    assert sample(settings).rows == 20
    drawn = read_sample(str(tmp_path / "s.csv"))
    paths = (old / "scored").rglob("*.parquet")
    status = pa.concat_tables(pq.read_table(path, partitioning=None, columns=["status"]) for path in paths)
    with_text = sum(name not in ("empty", "null") for name in status["status"].to_pylist())
    assert drawn.weight.sum() == pytest.approx(with_text)
