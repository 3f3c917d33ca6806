"""Nights with two models: records and pages show each, promotion goes on, renewal is refused."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sentiment_core.config import parse
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.objective import SingleLabel
from sentiment_core.model.registry import PromoteSettings, promote
from sentiment_core.nightly import record
from sentiment_core.nightly.drift import LABELS, LENGTHS, Comparison
from sentiment_core.nightly.job import describe_drift, describe_night, nightly
from sentiment_core.nightly.plan import make_plan
from sentiment_core.nightly.record import PAST, REFERENCE, WHOLE, ModelNight, Night
from sentiment_core.nightly.settings import NightlySettings
from sentiment_core.scoring.models import PassModel
from sentiment_core.scoring.outputs import ORIGIN_KEY
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.conftest import shard
from tests.scoring.runs import stages_in_process


@pytest.fixture(scope="module")
def played(ray_here, models, multi_label_bundle, tmp_path_factory) -> tuple[Path, dict[str, Night]]:
    """Play three nights: all new; a drifted one; one after a promotion of the model `tone`."""
    base = tmp_path_factory.mktemp("nights")
    config = base / "nightly.yaml"
    config.write_text(
        f"model:\n  tone: {models}\n  emotion: {multi_label_bundle}\ninput: {base}/in\nout: {base}/out\nkeep: []\n"
    )
    records = {}

    def night(name: str) -> None:
        with stages_in_process():
            records[name] = nightly(parse(NightlySettings, None, ["--config", str(config), "--night", name]))

    shard(base / "in", "date=1/a.parquet", 300, 0)
    night("n1")
    shard(base / "in", "date=2/b.parquet", 300, 1, times=8)
    night("n2")
    promote(PromoteSettings(models=str(models), bundle="second"))
    shard(base / "in", "date=3/c.parquet", 250, 2)
    night("n3")
    promote(PromoteSettings(models=str(models), back=True))
    return base, records


def test_a_night_has_a_part_for_each_model(played, models, multi_label_bundle):
    base, records = played
    assert {name: (n.rows, n.state, n.exit_code) for name, n in records.items()} == {
        "n1": (300, "done", 0), "n2": (300, "done", 4), "n3": (250, "done", 0),
    }  # fmt: skip
    content = json.loads((base / "out" / "_nights" / "n1.json").read_text())
    assert {"night", "rows", "runs", "models", "tokens"} <= set(content)
    assert not {"labels", "profile", "bundle", "comparisons"} & set(content)
    assert {name: part["model"] for name, part in content["models"].items()} == {
        "emotion": multi_label_bundle, "tone": f"{models}/first",
    }  # fmt: skip
    assert content["models"]["emotion"]["labels"] == ["anger", "joy", "love"]
    assert sum(content["models"]["tone"]["profile"]["distributions"]["labels"]) == 300
    assert content["tokens"] == sum(part["tokens"] for part in content["models"].values())
    assert set(content["models"]["tone"]["partitions"]) == {"date=1"}
    assert record.read_nights(str(base / "out")) == list(records.values())
    lines = [json.loads(line) for line in (base / "out" / "_nights" / "nights.jsonl").read_text().splitlines()]
    assert "partitions" not in lines[0]["models"]["tone"]
    assert lines[0]["models"]["tone"]["labels"] == ["negative", "positive"]


def test_drift_of_texts_is_told_once_for_models_that_tokenize_alike(played):
    _, records = played
    alarms = describe_night(records["n2"])
    assert alarms.count("text length: this night is unlike past nights") == 1
    assert "alarm: drift: text length: this night is unlike past nights" in alarms
    assert records["n2"].drifted
    assert records["n2"].of_model("emotion").drifted
    assert records["n2"].of_model("tone").drifted
    past = {
        name: [c for c in part.comparisons if c.against == record.PAST] for name, part in records["n3"].models.items()
    }
    assert past["emotion"]  # with n1 only, since n2 drifted
    assert not any(comparison.drifted for comparison in [*past["emotion"], *past["tone"]])


def test_alarms_name_the_first_of_the_models_that_tokenize_alike():
    def drifted(statistic: str, rows: str = WHOLE, against: str = PAST, value: float = 0.3) -> Comparison:
        return Comparison.of_distribution(statistic, rows, against, value, 0.25, 0.1)

    def alarms(**tokenizers: str) -> list[str]:
        models = [PassModel(name, name, SingleLabel(), ["a", "b"], tokens) for name, tokens in tokenizers.items()]
        night = Night("n", models={model.name: parts[model.name] for model in models})
        return [alarm.removeprefix("drift: ").partition(" (")[0] for alarm in describe_drift(models, night)]

    of_model = [drifted(LABELS), drifted(LENGTHS, against=REFERENCE)]
    parts = {
        "x": ModelNight(comparisons=[drifted(LENGTHS, value=0.2), *of_model]),
        "y": ModelNight(comparisons=[drifted(LENGTHS), drifted(LENGTHS, "date=1", "date=1 in past nights")]),
        "z": ModelNight(comparisons=[drifted(LENGTHS, value=0.4), *of_model]),
    }
    of_past = "this night is unlike past nights"
    of_reference = f"text length: this night is unlike {REFERENCE}"
    of_partition = "text length: date=1 is unlike date=1 in past nights"
    own = [f"x: labels: {of_past}", f"x: {of_reference}"], [f"z: labels: {of_past}", f"z: {of_reference}"]
    assert alarms(x="x", y="x", z="x") == [*own[0], f"text length: {of_past}", of_partition, *own[1]]
    assert alarms(x="x", y="x", z="z") == [
        *own[0], f"y: text length: {of_past}", f"y: {of_partition}", f"z: text length: {of_past}", *own[1],
    ]  # fmt: skip
    assert alarms(y="y") == [f"text length: {of_past}", of_partition]


def test_pages_show_each_model(played):
    base, _ = played
    page = (base / "out" / "_nights" / "n2.html").read_text()
    for name in ("emotion", "tone"):
        assert f"<h2>Drift: {name}</h2>" in page
        assert f"<h2>Partitions: {name}</h2>" in page
        assert f"<h2>Beside past nights and the evaluation rows: {name}</h2>" in page
        assert f"<p>{name}: /" in page
    assert all(f"share {label}" in page for label in ("anger", "negative"))
    assert page.count("<img ") == 6
    index = (base / "out" / "_nights" / "index.html").read_text()
    assert "<h2>Trends: emotion</h2>" in index
    assert "<h2>Trends: tone</h2>" in index


def test_a_promotion_of_one_model_goes_on_and_names_its_bundle(played, models, multi_label_bundle):
    base, records = played
    digests = {name: bundle.digest_of(bundle.read_files(str(models / name))[1]) for name in ("first", "second")}
    made = {}
    for path in (base / "out").rglob("*.parquet"):
        origin = json.loads(pq.read_metadata(path).metadata[ORIGIN_KEY])
        made[path.name] = next(k for k, v in digests.items() if v == origin["run"]["models"]["tone"]["bundle"])
    assert made == {"a.parquet": "first", "b.parquet": "first", "c.parquet": "second"}
    labels = [
        c for c in records["n3"].models["emotion"].comparisons if (c.statistic, c.against) == ("labels", record.PAST)
    ]
    assert labels  # of a bundle that stayed; those of the promoted one are not compared with its predecessor's
    assert "labels" not in {c.statistic for c in records["n3"].models["tone"].comparisons if c.against == record.PAST}
    findings = verify(VerifySettings(input=str(base / "in"), out=str(base / "out")))
    assert (findings.exit_code, findings.rows_out) == (0, 850)


def test_models_that_exchange_their_names_are_no_promotion(played, models, multi_label_bundle):
    base, _ = played
    flags = {"input": str(base / "in"), "out": str(base / "out"), "keep": ()}
    with pytest.raises(UserError, match=r"bundle of emotion: .* bundle of tone: "):
        make_plan(NightlySettings(model={"tone": multi_label_bundle, "emotion": str(models)}, **flags))


def test_a_dry_run_names_each_model(played, models, multi_label_bundle):
    base, _ = played
    flags = {"input": str(base / "in"), "out": str(base / "out"), "keep": ()}
    plan = make_plan(NightlySettings(model=f"tone={models},emotion={multi_label_bundle}", night="n4", **flags))
    assert f"night n4, model emotion: {multi_label_bundle}, tone: {models}/first" in plan.describe()


def test_renewal_with_several_models_is_refused(models, multi_label_bundle, tmp_path):
    shard(tmp_path / "in", "a.parquet", 5, 0)
    flags = {"input": str(tmp_path / "in"), "out": str(tmp_path / "out"), "train_config": "t.yaml", "test_data": "d"}
    with pytest.raises(UserError, match="--train-config renews one model, and --model names emotion, tone"):
        make_plan(NightlySettings(model={"tone": str(models), "emotion": multi_label_bundle}, **flags))
    assert not (tmp_path / "out").exists()


def test_the_part_of_a_model_is_a_night_of_its_own():
    part = ModelNight(model="m", bundle="d", labels=["a"], tokens=3)
    night = Night("n", "done", rows=7, tokens=8, models={"x": part, "y": ModelNight()})
    assert night.names == ["x", "y"]
    assert night.of_model("x") == Night("n", "done", rows=7, model="m", bundle="d", labels=["a"], tokens=3)
    single = Night("n", "done", rows=7)
    single.set_model("", part)
    assert single == Night("n", "done", rows=7, model="m", bundle="d", labels=["a"], tokens=3)
    assert single.of_model("") is single
    assert Night.from_json(json.loads(json.dumps(night.to_json()))) == night
