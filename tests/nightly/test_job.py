"""Nights on a small corpus; `chaos/test_nights.py` plays many of them on a cluster."""

import json
import time
import urllib.request
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from sentiment_core.data import shards
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.registry import PromoteSettings, promote
from sentiment_core.nightly import pages, record
from sentiment_core.nightly.job import describe_night, nightly
from sentiment_core.nightly.plan import make_plan
from sentiment_core.nightly.settings import NightlySettings
from sentiment_core.runtime import storage
from sentiment_core.scoring import tidy
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.conftest import shard
from tests.scoring.runs import stages_in_process, write_shard


@pytest.fixture(scope="module")
def played(ray_here, models, tmp_path_factory):
    """Run six nights: all new; drift; out of time; the rest of that; a shard changed, one gone; that one pruned."""
    base = tmp_path_factory.mktemp("nights")
    command = f"cat > {base}/alert.json"
    flags = {"model": str(models), "input": str(base / "in"), "out": str(base / "out"), "alert_command": command}
    records = {}

    def night(name, **more):
        with stages_in_process():
            records[name] = nightly(NightlySettings(night=name, **flags, **more))

    shard(base / "in", "date=1/a.parquet", 400, 0)
    shard(base / "in", "date=1/b.parquet", 300, 1)
    night("n1")
    assert not (base / "alert.json").exists()
    shard(base / "in", "date=2/c.parquet", 500, 2, times=8)
    shard(base / "in", "date=3/d.parquet", 50, 3)
    night("n2", date="2")
    promote(PromoteSettings(models=str(models), bundle="second"))
    night("n3", time_limit=1e-6)
    night("n4")
    shard(base / "in", "date=1/a.parquet", 350, 4)
    (base / "in" / "date=1" / "b.parquet").unlink()
    night("n5")
    before = {path: path.stat().st_mtime_ns for path in (base / "out").rglob("*.parquet")}
    night("n6", prune=True)
    del before[base / "out" / "date=1" / "b.parquet"]
    assert before == {path: path.stat().st_mtime_ns for path in (base / "out").rglob("*.parquet")}
    promote(PromoteSettings(models=str(models), back=True))
    return base, records


def test_a_night_scores_what_is_new_and_alerts_on_drift(in_process, played):
    base, records = played
    numbers = {name: (n.rows, n.left, n.removed, n.exit_code, n.state) for name, n in records.items()}
    assert numbers == {
        "n1": (700, 0, 0, 0, "done"),
        "n2": (500, 50, 0, 4, "done"),
        "n3": (numbers["n3"][0], 50 - numbers["n3"][0], 0, 0, "done"),  # tasks that run are not stopped
        "n4": (50 - numbers["n3"][0], 0, 0, 0, "done"),
        "n5": (350, 0, 0, 0, "done"),
        "n6": (0, 0, 1, 0, "done"),
    }
    assert {name: n.verified["orphaned"] for name, n in records.items() if n.verified["orphaned"]} == {"n5": 1}
    assert [n.night for n in record.read_nights(str(base / "out"))] == list(records)
    findings = verify(VerifySettings(input=str(base / "in"), out=str(base / "out"), full=True))
    assert (findings.exit_code, findings.rows_out, findings.compared, findings.scored_by_other_bundles) == (
        0,
        350 + 500 + 50,
        400,
        500,
    )
    assert "not scored again: 500 rows that other bundles scored" in findings.report()
    alert = json.loads((base / "alert.json").read_text())
    assert alert["night"] == "n2"
    assert "drift: text length: this night is unlike past nights" in alert["text"]


def test_every_output_names_the_bundle_that_made_it(played, models):
    base, _ = played
    digests = {name: bundle.digest_of(bundle.read_files(str(models / name))[1]) for name in ("first", "second")}
    made = {}
    for path in (base / "out").rglob("*.parquet"):
        origin = json.loads(pq.read_metadata(path).metadata[b"sentiment_core.origin"])
        made[path.name] = next(name for name, digest in digests.items() if digest == origin["run"]["bundle"])
    assert made == {"a.parquet": "second", "c.parquet": "first", "d.parquet": "second"}


def test_pages_and_lines_show_every_night(played):
    base, records = played
    index = (base / "out" / "_nights" / "index.html").read_text()
    for name in records:
        assert f'href="{name}.html"' in index
        assert f"<h1>Night {name}</h1>" in (base / "out" / "_nights" / f"{name}.html").read_text()
    lines = [json.loads(line) for line in (base / "out" / "_nights" / "nights.jsonl").read_text().splitlines()]
    assert [(line["night"], line["rows"]) for line in lines] == [(name, n.rows) for name, n in records.items()]
    page = (base / "out" / "_nights" / "n2.html").read_text()
    assert "text length: this night is unlike past nights" in page
    assert page.count("<img ") == 3


def test_a_night_is_drawn_beside_past_nights_and_evaluation_rows(played):
    _, records = played
    assert records["n2"].reference.distributions["labels"] == [20, 30]
    assert records["n2"].comparisons  # with past nights; the evaluation rows are too few to compare with
    assert "the bundle's evaluation rows" not in {comparison.against for comparison in records["n2"].comparisons}
    drawn = pages.draw_night(records["n2"], [records["n1"]])
    assert list(drawn) == ["Labels", "Confidence", "Text length"]
    (axes,) = drawn["Labels"].axes
    shares_of = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}
    assert list(shares_of) == ["the bundle's evaluation rows", "past nights", "this night"]
    assert shares_of["the bundle's evaluation rows"] == [0.4, 0.6]
    assert [sum(shares) for shares in shares_of.values()] == pytest.approx([1, 1, 1])
    (axes,) = drawn["Text length"].axes  # not noted in this bundle
    assert [bars.get_label() for bars in axes.containers] == ["past nights", "this night"]


def test_a_dry_run_describes_the_night_and_writes_nothing(played, models):
    base, _ = played
    shard(base / "in", "date=4/e.parquet", 70, 5)
    before = sorted((path, path.stat().st_mtime_ns) for path in (base / "out").rglob("*"))
    settings = {"model": str(models), "input": str(base / "in"), "out": str(base / "out"), "cost_per_hour": 100.0}
    description = make_plan(NightlySettings(**settings)).describe()
    assert "to score: 70 rows in 1 units" in description
    assert "tokens" in description
    assert "minutes at past nights' speed, cost " in description
    assert "rows left for other nights: 70" in make_plan(NightlySettings(**settings, date="2")).describe()
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (base / "out").rglob("*"))
    (base / "in" / "date=4" / "e.parquet").unlink()


def test_rows_are_counted_for_prometheus(played):
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 40
    while not (lines := [line for line in _scraped(address) if "sentiment_core_rows_total{" in line]):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert any('what="score"' in line and float(line.rpartition(" ")[2]) > 0 for line in lines)


def _scraped(address: str) -> list[str]:
    with urllib.request.urlopen(address, timeout=10) as response:
        return response.read().decode().splitlines()


def test_a_night_with_a_later_one_cannot_be_started_again(played, models):
    base, _ = played
    with pytest.raises(UserError, match="--night n2 is over: n6 has started since"):
        make_plan(NightlySettings(model=str(models), input=str(base / "in"), out=str(base / "out"), night="n2"))


def test_a_missing_partition_is_refused(played, models):
    base, _ = played
    with pytest.raises(UserError, match=r"--date 9: .* has no folder date=9"):
        make_plan(NightlySettings(model=str(models), input=str(base / "in"), out=str(base / "out"), date="9"))


def test_unscored_shards_of_partitions_that_were_not_chosen_are_no_fault(in_process, models, tmp_path):
    """They are without rows or unreadable; a partition of only unreadable shards can be chosen."""
    shard(tmp_path / "in", "date=1/a.parquet", 20, 0)
    shard(tmp_path / "in", "date=2/none.parquet", 0, 0)
    (tmp_path / "in" / "date=3").mkdir()
    (tmp_path / "in" / "date=3" / "broken.parquet").write_bytes(b"no Parquet")
    flags = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}

    def night(**more: str) -> tuple[int | None, int, int]:
        finished = nightly(NightlySettings(night="n", **flags, **more))
        return finished.exit_code, finished.rows, len(finished.failed_shards)

    assert night(date="1") == (0, 20, 0)
    assert night(date="3") == (3, 20, 1)
    assert night() == (3, 20, 1)


def test_nights_of_several_labels_compare_the_share_of_rows_with_each(in_process, multi_label_bundle, tmp_path):
    flags = {"model": multi_label_bundle, "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    shard(tmp_path / "in", "date=1/a.parquet", 300, 0)
    first = nightly(NightlySettings(night="n1", **flags))
    assert (first.rows, first.exit_code, first.profile.labelled_rows) == (300, 0, 300.0)
    shard(tmp_path / "in", "date=2/b.parquet", 300, 1)
    second = nightly(NightlySettings(night="n2", **flags))
    labels = [c for c in second.comparisons if (c.statistic, c.against) == ("labels", record.PAST)]
    assert len(labels) == 1
    assert "% of this night have '" in labels[0].sentence
    assert not labels[0].drifted  # the same kind of text
    assert [night.profile for night in record.read_nights(str(tmp_path / "out"))] == [first.profile, second.profile]
    shares = second.profile.bin_shares("labels")
    assert shares.tolist() == [rows / 300 for rows in second.profile.distributions["labels"]]
    page = (tmp_path / "out" / "_nights" / "n2.html").read_text()
    assert all(f"share {label}" in page for label in ("anger", "joy", "love"))


def test_rows_with_known_texts_are_in_no_statistic_of_a_night(in_process, models, tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    flags = {"model": str(models), "input": str(root), "out": str(out)}
    shard(root, "date=1/a.parquet", 300, 0)
    shard(root, "date=1/b.parquet", 40, 1)
    nightly(NightlySettings(night="n1", **flags))
    known = [pq.read_table(root / "date=1" / f"{name}.parquet", partitioning=None)["text"] for name in "ab"]
    new = pa.array([f"something else {i} " * 9 for i in range(250)])
    (root / "date=1" / "b.parquet").unlink()
    write_shard(root, "date=1/a.parquet", {"text": pa.concat_arrays([known[0].combine_chunks(), new])})
    write_shard(root, "date=2/c.parquet", {"text": known[1]})
    plan = make_plan(NightlySettings(night="n2", **flags, dry_run=True))
    assert 0 < plan.reused_rows < plan.scoring.rows_to_score == 590
    night = nightly(NightlySettings(night="n2", **flags))
    assert (night.rows, night.reused_rows, night.left, night.removed) == (250, 340, 0, 1)
    assert (night.profile.rows, sum(night.profile.distributions["text length"])) == (250, 250)
    assert {name: profile.rows for name, profile in night.partitions.items()} == {"date=1": 250, "date=2": 0}
    assert any(c.drifted and c.statistic == "text length" for c in night.comparisons)  # reused rows would hide it
    assert not any(night.verified.values())
    assert (night.runs[0].rows, night.runs[0].reused_rows) == (250, 340)
    assert describe_night(night).startswith("night n2: 250 rows scored, 340 reused, 0 left")
    page = (out / "_nights" / "n2.html").read_text()
    assert "<dt>rows reused</dt><dd>340</dd>" in page
    assert record.read_nights(str(out))[1].reused_rows == 340
    assert verify(VerifySettings(input=str(root), out=str(out), full=True)).exit_code == 0


def test_outputs_that_wait_to_be_deleted_count_for_no_night(in_process, models, tmp_path, monkeypatch):
    """As after a run that could not delete them; they are no fault of a night that ended early."""
    monkeypatch.setattr(shards, "UNIT_ROWS", 20)
    flags = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    shard(tmp_path / "in", "date=1/a.parquet", 15, 0)
    assert nightly(NightlySettings(night="n1", **flags)).rows == 15
    shard(tmp_path / "in", "date=1/a.parquet", 30, 1)

    def refuse(path: str) -> None:
        if path.endswith("/a.parquet"):
            raise PermissionError("not yours")
        storage.delete_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(tidy, "storage", SimpleNamespace(**vars(storage) | {"delete_file": refuse}))
        night = nightly(NightlySettings(night="n1", **flags))
    assert (night.rows + night.reused_rows, night.exit_code) == (30, 1)
    assert any("cannot be deleted" in alarm for alarm in night.alarms)
    night = nightly(NightlySettings(night="n1", **flags))
    assert (night.rows + night.reused_rows, night.exit_code, night.removed) == (30, 0, 1)
