"""A corpus scored with several labels a row: columns, summary, abstention, verification."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sentiment_core import Classifier
from sentiment_core.data.shards import Unit
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.objective import MultiLabel
from sentiment_core.scoring import outputs
from sentiment_core.scoring.comparison import OutputDiffers, check_same
from sentiment_core.scoring.job import ScoreResult
from sentiment_core.scoring.records import Run
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.verify import VerifySettings, verify
from sentiment_core.text.status import apply_min_confidence
from tests.conftest import sentences
from tests.scoring.runs import plan_folder, read_scored, score_folder, write_shard

NAMES = ["anger", "joy", "love"]
TEXTS = [*sentences(60, seed=3)["text"].to_pylist(), None, "", "  "]


@pytest.fixture
def corpus(tmp_path) -> str:
    write_shard(tmp_path, "in/a.parquet", {"text": TEXTS, "label": ["kept"] * len(TEXTS)})
    write_shard(tmp_path, "in/deep/b.parquet", {"text": [None, "a film"], "label": ["kept"] * 2})
    return str(tmp_path / "in")


@pytest.fixture
def scored(in_process, multi_label_bundle, corpus, tmp_path) -> ScoreResult:
    return score_folder(multi_label_bundle, corpus, tmp_path / "out")


def test_columns_are_those_of_the_contract_and_agree_with_the_python_interface(scored, multi_label_bundle):
    table = read_scored(scored.place)
    assert table.column_names == [
        *["label", "labels", "confidence", "probabilities", "status", "source", "row", "text_hash"]
    ]
    assert set(table["label"].to_pylist()) == {"kept"}  # of the input: no clash with `labels`
    assert table.schema.field("labels").type == pa.list_(pa.string())
    classifier = Classifier.load(multi_label_bundle)
    predictions = classifier.predict(TEXTS)
    assert table["labels"].to_pylist()[: len(TEXTS)] == [prediction.labels for prediction in predictions]
    assert table["status"].to_pylist()[: len(TEXTS)] == [prediction.status for prediction in predictions]
    confidence = table["confidence"].to_pylist()[: len(TEXTS)]
    assert confidence[:60] == pytest.approx([prediction.confidence for prediction in predictions[:60]], abs=0.02)
    assert confidence[60:] == [None] * 3
    assert [] in table["labels"].to_pylist() or max(map(len, table["labels"].to_pylist()[:60])) > 1


def test_the_summary_counts_rows_by_label(scored):
    table = read_scored(scored.place)
    rows = {name: sum(name in (labels or []) for labels in table["labels"].to_pylist()) for name in NAMES}
    assert sum(rows.values()) > 0
    assert json.loads(outputs.storage.read_file(f"{scored.place}/_summary.json"))["labels"] == rows
    assert outputs.read_run_file(scored.place).run.multi_label


def test_the_same_command_resumes_and_a_rerun_finds_nothing_to_do(scored, multi_label_bundle, corpus):
    plan = plan_folder(multi_label_bundle, corpus, scored.place, probabilities=True)  # written always
    assert plan.units_to_score == []


def test_verification_passes_and_finds_what_was_changed(scored, corpus, tmp_path):
    settings = VerifySettings(input=corpus, out=str(scored.place))
    assert verify(settings).exit_code == 0
    full = verify(replace(settings, full=True))
    assert (full.exit_code, full.different) == (0, []), full.report()
    shutil.copytree(scored.place, tmp_path / "changed")
    path = tmp_path / "changed" / "a.parquet"
    table = pq.ParquetFile(path).read()
    i = table.column_names.index("labels")
    flipped = [
        None if labels is None else [n for n in NAMES if n not in labels] for labels in table["labels"].to_pylist()
    ]
    pq.write_table(table.set_column(i, table.schema.field(i), pa.chunked_array([pa.array(flipped)])), path)
    findings = verify(replace(settings, out=str(tmp_path / "changed"), full=True))
    assert findings.exit_code == 1
    assert any("labels is not as its footer counts it" in line for line in findings.damaged) or findings.different


def test_rows_abstain_by_their_least_certain_decision(in_process, multi_label_bundle, corpus, scored, tmp_path):
    confidence = pc.drop_null(read_scored(scored.place)["confidence"]).to_numpy()
    threshold = float(np.median(confidence))
    result = score_folder(multi_label_bundle, corpus, tmp_path / "abstained", min_confidence=threshold)
    table = read_scored(result.place)
    abstained = pc.equal(table["status"], "abstained").to_pylist()
    assert 0 < sum(abstained) < len(confidence)
    for row, is_abstained in zip(table.to_pylist(), abstained, strict=True):
        if row["confidence"] is not None:
            assert is_abstained == (row["confidence"] < np.float32(threshold)) == (row["labels"] is None)
    checked = verify(VerifySettings(input=corpus, out=str(result.place), full=True))
    assert checked.exit_code == 0, checked.report()


def test_an_input_with_labels_of_its_own_needs_a_prefix(multi_label_bundle, tmp_path):
    write_shard(tmp_path, "in/a.parquet", {"text": ["a"], "labels": [["x"]]})
    with pytest.raises(UserError, match="labels"):
        plan_folder(multi_label_bundle, tmp_path / "in", tmp_path / "out")
    plan = plan_folder(multi_label_bundle, tmp_path / "in", tmp_path / "out", prefix="pred_")
    assert "pred_labels" in plan.run.scored_columns


def test_other_thresholds_are_another_bundle(multi_label_bundle, tmp_path):
    shutil.copytree(multi_label_bundle, tmp_path / "copy")
    card = tmp_path / "copy" / "sentiment.json"
    content = json.loads(card.read_text())
    card.write_text(json.dumps(content | {"thresholds": [0.5, 0.5, 0.5]}))
    digests = [bundle.digest_of(bundle.read_files(path)[1]) for path in (multi_label_bundle, str(tmp_path / "copy"))]
    assert len(set(digests)) == 2


SCORES = np.array([[0.9, 0.2, 0.56], [0.1, 0.1, 0.1], [np.nan] * 3], np.float32)
OBJECTIVE = MultiLabel((0.5, 0.5, 0.55))
RUN = Run("in", "digest", probabilities=True, multi_label=True)


def rows_of(probabilities: np.ndarray, min_confidence: float = 0.0) -> tuple[pa.Table, dict[str, ScoredRows]]:
    """Return three rows with these probabilities, as a table too."""
    probabilities = probabilities.astype(np.float32)
    confidence = OBJECTIVE.decide(probabilities)[1]
    status = apply_min_confidence(np.array([0, 0, 3], np.int8), confidence, min_confidence)
    rows = {"": ScoredRows(OBJECTIVE, NAMES, status, probabilities, np.array([1, 1, 0]))}
    unit = Unit("a.parquet", 0, 3, 3, 1, 1, 1)
    return outputs.scored_table(unit, pa.table({"n": [1, 2, 3]}), rows, RUN), rows


def test_near_a_threshold_either_answer_is_right():
    now = SCORES - np.array([[0, 0, 0.015], [0, 0, 0], [0, 0, 0]], np.float32)
    assert rows_of(SCORES)[0]["labels"].to_pylist() == [["anger", "love"], [], None]
    assert rows_of(now)[0]["labels"].to_pylist() == [["anger"], [], None]
    check_same(rows_of(SCORES)[0], *rows_of(now), RUN)
    run = replace(RUN, min_confidence=0.555)
    check_same(rows_of(SCORES, 0.555)[0], *rows_of(now, 0.555), run)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("labels", [["anger"], [], None]),
        ("labels", [["anger", "love", "love"], [], None]),
        ("labels", [["anger", "hope"], [], None]),
        ("labels", [None, [], None]),
        ("labels", [["anger", "love"], [], []]),
        ("confidence", [0.6, 0.9, None]),
        ("confidence", [0.56, 0.9, 0.5]),
        ("probabilities", [[0.9, 0.2, 0.6], [0.1, 0.1, 0.1], None]),
        ("probabilities", [None, [0.1, 0.1, 0.1], None]),
    ],
)
def test_an_answer_that_does_not_follow_from_the_probabilities_is_found(column, values):
    table, rows = rows_of(SCORES)
    i = table.column_names.index(column)
    changed = table.set_column(i, column, pa.array(values, table.schema.field(i).type))
    with pytest.raises(OutputDiffers, match=r"1 of 3 rows have another score; row \d"):
        check_same(changed, table, rows, RUN)
