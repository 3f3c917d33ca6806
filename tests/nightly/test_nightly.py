"""Nights: what is new is scored, told and compared; `chaos/test_nights.py` plays many of them on a cluster."""

import http.server
import json
import os
import threading
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from sentiment_core.errors import UserError
from sentiment_core.model import bundle, registry
from sentiment_core.model.registry import PromoteSettings, promote
from sentiment_core.nightly import drift, pages, record
from sentiment_core.nightly.drift import Profile
from sentiment_core.nightly.job import NightlySettings, make_plan, nightly
from sentiment_core.nightly.record import Night
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.conftest import make_bundle, shard


@pytest.fixture(scope="module")
def models(tiny_encoder, tmp_path_factory) -> Path:
    """Two bundles, of which the first is current."""
    place = tmp_path_factory.mktemp("registry")
    few = {"rows": 50, "predicted_shares": {"negative": 0.4, "positive": 0.6}, "confidence_histogram": [0] * 19 + [50]}
    make_bundle(tiny_encoder, place / "first", reference=few)
    make_bundle(tiny_encoder, place / "second", max_length=24)
    promote(PromoteSettings(models=str(place), bundle="first"))
    return place


# The registry


def test_a_bundle_is_promoted_and_gone_back_from(models):
    place = str(models)
    assert registry.resolve(place) == f"{place}/first"
    assert registry.resolve(f"{place}/second") == f"{place}/second"
    assert promote(PromoteSettings(models=place, bundle="second", reason="better")).endswith("current: second")
    assert registry.resolve(place) == f"{place}/second"
    said = promote(PromoteSettings(models=place, back=True))
    assert said.endswith("current: first")
    assert [line.split()[1:3] for line in said.splitlines()[:-1]] == [
        ["promoted", "first"],
        ["promoted", "second"],
        ["back", "first"],
    ]
    with pytest.raises(UserError, match="no bundle before the current one"):
        promote(PromoteSettings(models=place, back=True))
    with pytest.raises(UserError, match="first has become the current bundle meanwhile"):
        registry.record_decision(place, "first", registry.ROLLED_BACK, "asked for twice at once")
    with pytest.raises(UserError, match="first has become the current bundle meanwhile"):
        registry.record_decision(place, "second", "promoted", "better than what was current", current=f"{place}/second")
    assert registry.resolve(place) == f"{place}/first"


def test_what_cannot_become_current_is_refused(models, tiny_encoder):
    with pytest.raises(UserError, match="is not a bundle"):
        promote(PromoteSettings(models=str(models), bundle="third"))
    make_bundle(tiny_encoder, models / "topics", labels=("a", "b", "c"))
    with pytest.raises(UserError, match="has the labels a, b, c; expected those of the current one"):
        promote(PromoteSettings(models=str(models), bundle="topics"))
    assert registry.resolve(str(models)) == f"{models}/first"


# Nights


@pytest.fixture(scope="module")
def played(ray_here, models, tmp_path_factory):
    """Six nights: all new; drifted; short of time; the rest of it; a shard changed, one gone; that one pruned."""
    base = tmp_path_factory.mktemp("nights")
    command = f"cat > {base}/alert.json"
    flags = {"model": str(models), "input": str(base / "in"), "out": str(base / "out"), "alert_command": command}
    records = {}

    def night(name, **more):
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


def test_a_night_scores_what_is_new_and_tells(played):
    base, records = played
    told = {name: (n.rows, n.left, n.removed, n.exit_code, n.state) for name, n in records.items()}
    assert told == {
        "n1": (700, 0, 0, 0, "done"),
        "n2": (500, 50, 0, 4, "done"),
        "n3": (told["n3"][0], 50 - told["n3"][0], 0, 0, "done"),  # the limit ends what waits, not what is under way
        "n4": (50 - told["n3"][0], 0, 0, 0, "done"),
        "n5": (350, 0, 0, 0, "done"),
        "n6": (0, 0, 1, 0, "done"),
    }
    assert {name: n.verified["orphaned"] for name, n in records.items() if n.verified["orphaned"]} == {"n5": 1}
    assert [n.night for n in record.read_all(str(base / "out"))] == list(records)
    found = verify(VerifySettings(input=str(base / "in"), out=str(base / "out"), full=True))
    assert (found.exit_code, found.rows_out, found.compared, found.passed_over) == (0, 350 + 500 + 50, 400, 500)
    assert "not scored once more: 500 rows that other bundles have scored" in found.report()
    alert = json.loads((base / "alert.json").read_text())
    assert alert["night"] == "n2"
    assert "drift: text length: this night is unlike past nights" in alert["text"]


def test_each_output_says_which_bundle_made_it(played, models):
    base, _ = played
    digests = {name: bundle.digest_of(bundle.read_files(str(models / name))[1]) for name in ("first", "second")}
    made = {}
    for path in (base / "out").rglob("*.parquet"):
        origin = json.loads(pq.read_metadata(path).metadata[b"sentiment_core.origin"])
        made[path.name] = next(name for name, digest in digests.items() if digest == origin["run"]["bundle"])
    assert made == {"a.parquet": "second", "c.parquet": "first", "d.parquet": "second"}


def test_the_pages_show_every_night_and_the_lines_are_json(played):
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


def test_a_night_is_drawn_beside_past_nights_and_the_evaluation_rows(played):
    _, records = played
    assert records["n2"].reference["distributions"]["labels"] == [20, 30]
    assert records["n2"].comparisons  # with past nights; the evaluation rows are too few to compare with
    assert "the bundle's evaluation rows" not in {one["against"] for one in records["n2"].comparisons}
    drawn = pages.draw_night(records["n2"], [records["n1"]])
    assert list(drawn) == ["Labels", "Confidence", "Text length"]
    (axes,) = drawn["Labels"].axes
    beside = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}
    assert list(beside) == ["the bundle's evaluation rows", "past nights", "this night"]
    assert beside["the bundle's evaluation rows"] == [0.4, 0.6]
    assert [sum(shares) for shares in beside.values()] == pytest.approx([1, 1, 1])
    (axes,) = drawn["Text length"].axes  # not noted in this bundle
    assert [bars.get_label() for bars in axes.containers] == ["past nights", "this night"]


def test_a_dry_run_tells_and_writes_nothing(played, models):
    base, _ = played
    shard(base / "in", "date=4/e.parquet", 70, 5)
    before = sorted((path, path.stat().st_mtime_ns) for path in (base / "out").rglob("*"))
    settings = {"model": str(models), "input": str(base / "in"), "out": str(base / "out"), "cost_per_hour": 100.0}
    said = make_plan(NightlySettings(**settings)).describe()
    assert "to score: 70 rows in 1 units" in said
    assert "tokens" in said
    assert "as fast as in past nights, cost " in said
    assert "rows left for other nights: 70" in make_plan(NightlySettings(**settings, date="2")).describe()
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (base / "out").rglob("*"))
    (base / "in" / "date=4" / "e.parquet").unlink()


def test_ray_counts_for_prometheus(played):
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 40
    while not (found := [line for line in _scraped(address) if "sentiment_core_rows_total{" in line]):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert any('what="score"' in line and float(line.rpartition(" ")[2]) > 0 for line in found)


def _scraped(address: str) -> list[str]:
    with urllib.request.urlopen(address, timeout=10) as response:
        return response.read().decode().splitlines()


def test_a_change_that_stays_becomes_the_new_normal():
    def kept(*drifted: bool | None) -> list[str]:
        """None: of too few rows to be judged."""
        found = [
            Night(
                f"{i:02}",
                "done",
                rows=10 if d is None else 1000,
                comparisons=[{"drifted": bool(d), "of": record.WHOLE, "against": record.PAST}],
            )
            for i, d in enumerate(drifted)
        ]
        return [night.night for night in record.compared_with(found)]

    assert kept(False, True, False, True) == ["00", "02"]
    assert kept(*[False] * 20) == [f"{i:02}" for i in range(6, 20)]
    assert kept(False, *[True] * 6) == ["00"]
    assert kept(False, *[True] * 7) == [f"{i:02}" for i in range(1, 8)]
    assert kept(False, *[True] * 7, False, True) == [f"{i:02}" for i in range(1, 9)]
    assert kept(False, *[True] * 6, None) == ["00", "07"]
    assert kept(False, *[True] * 6, None, True) == [*(f"{i:02}" for i in range(1, 7)), "08"]


def test_another_bundles_nights_count_as_far_as_they_can():
    profile = Profile(
        9, {drift.LENGTHS: [1.0], drift.LABELS: [2.0]}, {drift.UNKNOWN: [1, 2, 1], "empty texts": [3, 4, 1]}
    )
    other = Night("1", bundle="x", tokens_by="t", profile=asdict(profile))

    def known(**now: str) -> set[str]:
        found = record.past_profile([other], Night("2", **now))
        return {*found.distributions, *found.shares}

    assert known(bundle="x", tokens_by="t") == {drift.LENGTHS, drift.LABELS, drift.UNKNOWN, "empty texts"}
    assert known(bundle="y", tokens_by="t") == {drift.LENGTHS, drift.UNKNOWN, "empty texts"}
    assert known(bundle="y", tokens_by="u") == {"empty texts"}


def test_partitions_that_wait_do_not_count_against_a_night(ray_here, models, tmp_path):
    """Another partition's shards without rows, or that cannot be read; and one of which none can."""
    shard(tmp_path / "in", "date=1/a.parquet", 20, 0)
    shard(tmp_path / "in", "date=2/none.parquet", 0, 0)
    (tmp_path / "in" / "date=3").mkdir()
    (tmp_path / "in" / "date=3" / "broken.parquet").write_bytes(b"no Parquet")
    flags = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}

    def night(**more: str) -> tuple[int | None, int, int]:
        found = nightly(NightlySettings(night="n", **flags, **more))
        return found.exit_code, found.rows, len(found.failed_shards)

    assert night(date="1") == (0, 20, 0)
    assert night(date="3") == (3, 20, 1)
    assert night() == (3, 20, 1)


def test_what_a_night_that_broke_off_has_scored_is_inherited_once():
    whole, broken, heir = Night("1", "done", since_ns=5), Night("2", since_ns=7), Night("3", "done", since_ns=7)
    assert record.latest([]) is None
    assert record.latest([whole, broken]) is broken
    assert record.latest([whole, broken, heir]) is heir
    assert record.latest([whole, broken, Night("3", since_ns=7)]).night == "3"
    assert record.latest([Night("backfill", "done", since_ns=1), heir, broken]) is heir


def test_a_night_that_is_over_is_not_begun_again(played, models):
    base, _ = played
    with pytest.raises(UserError, match="--night n2 is over: n6 has begun since"):
        make_plan(NightlySettings(model=str(models), input=str(base / "in"), out=str(base / "out"), night="n2"))


def test_a_partition_that_is_not_there_is_refused(played, models):
    base, _ = played
    with pytest.raises(UserError, match=r"--date 9: .* has no such folder date="):
        make_plan(NightlySettings(model=str(models), input=str(base / "in"), out=str(base / "out"), date="9"))


def test_a_folder_is_worked_on_by_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "BEAT_S", 0.2)
    monkeypatch.setattr(record, "SILENT_S", 3)
    monkeypatch.setattr(record, "SETTLE_S", 0.1)
    place, claim = str(tmp_path), tmp_path / "_nights" / "_running.json"
    with record.alone(place):
        with pytest.raises(record.AtWork), record.alone(place):
            pass
        assert claim.exists()
    assert not claim.exists()
    for left_behind in ({"host": "elsewhere", "pid": 1}, {"host": os.uname().nodename, "pid": 2**22 + 1}):
        claim.write_text(json.dumps(left_behind | {"run": "x", "beats": 3}))
        started = time.monotonic()
        with record.alone(place):
            assert json.loads(claim.read_text())["run"] != "x"
        waited = time.monotonic() - started
        assert waited > 3 if left_behind["host"] == "elsewhere" else waited < 2


class Webhook(http.server.BaseHTTPRequestHandler):
    got: list[dict] = []  # noqa: RUF012

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.got.append(content)
        self.send_response(503 if len(self.got) == 1 else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_night_that_cannot_begin_is_told_to_the_webhook(tmp_path, models, monkeypatch):
    monkeypatch.setattr("sentiment_core.nightly.alert.RETRY_AFTER_S", (0.1,))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    flags = {"model": str(models), "input": str(tmp_path / "none"), "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match="does not exist"):
        nightly(NightlySettings(**flags, alert_url=url))
    server.shutdown()
    server.server_close()
    assert len(Webhook.got) == 2  # the first was answered with an error
    assert "does not exist" in Webhook.got[1]["text"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"night": "_x"}, "--night is '_x'"),
        ({"date": "1", "since": "1"}, "not both"),
        ({"time_limit": 0.0}, "--time-limit is 0.0"),
        ({"train_config": "t.yaml"}, "without --test-data"),
        ({"train_config": "t.yaml", "test_data": "d", "model": "{models}/first"}, "is not a folder of bundles"),
        ({"train_config": "{here}/t.yaml", "test_data": "d"}, "label_names positive,negative; expected those of the"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(flags, words, models, tmp_path):
    shard(tmp_path / "in", "a.parquet", 5, 0)
    given = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")} | flags
    (tmp_path / "t.yaml").write_text("data: d\nmodel: m\nlabel_names: [positive, negative]\n")
    given = {k: v.format(models=models, here=tmp_path) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(UserError, match=words):
        make_plan(NightlySettings(**given))
    assert not (tmp_path / "out").exists()
