"""Plans of nights; those of nights that were run are in `test_job`."""

from types import SimpleNamespace

import pytest

from sentiment_core.errors import UserError
from sentiment_core.nightly.plan import NightPlan, make_plan
from sentiment_core.nightly.record import Night, NightRun
from sentiment_core.nightly.settings import NightlySettings
from tests.conftest import shard


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"night": "_x"}, "--night is '_x'"),
        ({"date": "1", "since": "1"}, "not both"),
        ({"time_limit": 0.0}, "--time-limit is 0.0"),
        ({"train_config": "t.yaml"}, "--train-config needs --test-data"),
        ({"train_config": "t.yaml", "test_data": "d", "model": "{models}/first"}, "is not a folder of bundles"),
        ({"train_config": "{here}/t.yaml", "test_data": "d"}, "label_names positive,negative; expected those of the"),
        ({"train_config": "{here}/two.yaml", "test_data": "d"}, "text_column title,text, and the nights read text"),
    ],
)
def test_invalid_requests_are_refused(flags, words, models, tmp_path):
    shard(tmp_path / "in", "a.parquet", 5, 0)
    settings = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")} | flags
    (tmp_path / "t.yaml").write_text("data: d\nmodel: m\nlabel_names: [positive, negative]\n")
    (tmp_path / "two.yaml").write_text("data: d\nmodel: m\ntext_column: [title, text]\n")
    settings = {k: v.format(models=models, here=tmp_path) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(UserError, match=words):
        make_plan(NightlySettings(**settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (90_000, "about 15 minutes at past nights' speed, cost 25.00"),
        (12_000, "about 2.0 minutes at past nights' speed, cost 3.33"),
    ],
)
def test_time_and_cost_are_estimated_from_past_nights(rows, line):
    plan = plan_of(rows, [NightRun("", 99.0, "exit code 0", 6_000, 100.0, 60.0), NightRun("", 9.0, "failed")])
    assert plan.describe().splitlines()[-1] == line


def test_runs_of_old_versions_count_by_their_whole_time():
    plan = plan_of(6_000, [NightRun("", 120.0, "exit code 0", 6_000, 50.0)])
    assert plan.describe().splitlines()[-1] == "about 2.0 minutes at past nights' speed, cost 3.33"


def test_the_first_night_has_no_estimate():
    assert plan_of(10, []).describe().splitlines()[-1] == "no estimate of the time before the first night is done"


def plan_of(rows: int, runs: list[NightRun]) -> NightPlan:
    """Return a plan for so many rows, after a night of 6,000 rows with these runs."""
    settings = NightlySettings(model="m", input="i", out="o", cost_per_hour=100.0)
    scoring = SimpleNamespace(paths={"": "m"}, rows_to_score=rows, units_to_score=[], describe=lambda: "")
    before = [Night("1", "done", rows=6_000, runs=runs)] if runs else []
    return NightPlan(settings, "2", scoring, None, 0, False, before, None)


def test_a_night_has_the_date_of_its_time_zone(models, tmp_path):
    shard(tmp_path / "in", "a.parquet", 5, 0)
    settings = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    zones = ("Pacific/Kiritimati", "Etc/GMT+12")  # 26 hours apart: never on the same day
    names = {make_plan(NightlySettings(**settings, timezone=zone)).name for zone in zones}
    assert len(names) == 2
    with pytest.raises(UserError, match="--timezone is 'Mars/Base'; expected a time zone's name"):
        NightlySettings(**settings, timezone="Mars/Base")


def test_partitions_are_chosen_by_what_their_values_mean(models, tmp_path):
    for folder in ("d=2026-11-29", "d=20261130", "d=2026-12-1", "d=__HIVE_DEFAULT_PARTITION__"):
        shard(tmp_path / "in", f"{folder}/a.parquet", 5, 0)
    settings = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out"), "date_key": "d"}

    def chosen(**choice) -> list[str]:
        return [
            unit.source.split("/")[0]
            for unit in make_plan(NightlySettings(**settings, **choice)).scoring.units_to_score
        ]

    assert chosen(date="2026-11-30") == ["d=20261130"]
    assert chosen(since="2026-11-30") == ["d=2026-12-1", "d=20261130"]
    shard(tmp_path / "in", "d=old/a.parquet", 5, 0)
    with pytest.raises(UserError, match=r"d=old/a\.parquet has the value 'old'; expected one to compare"):
        chosen(since="2026-11-30")
