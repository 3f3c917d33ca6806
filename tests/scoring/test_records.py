"""Records of an output folder: what an output depends on, and files of older versions."""

import json
from dataclasses import replace

import pytest

from sentiment_core.data.shards import Unit
from sentiment_core.scoring.records import (
    FORMAT_VERSION,
    ModelRun,
    Origin,
    Run,
    RunFile,
    UnitOrigin,
    may_stand_beside,
    was_made_by,
)

RUN = Run("/in", "digest")
UNIT = Unit("k=1/a.parquet", 0, 5, 10, 100, 7, 12)
ORIGIN = Origin(RUN, UnitOrigin.of(UNIT))

NAMED = Run("/in", "both", models={"a": ModelRun("digest a"), "b": ModelRun("digest b", multi_label=True)})

# what 27de93b wrote
OLD_RUN = {
    "input": "/in", "bundle": "digest", "text_column": "text", "keep": None, "probabilities": False, "limit": None,
    "int8": False, "min_confidence": 0.0, "format_version": 5,
}  # fmt: skip
OLD_UNIT = {"source": "k=1/a.parquet", "start": 0, "stop": 5, "shard_rows": 10, "size": 100, "mtime_ns": 7}


def test_records_are_written_as_they_always_were():
    assert json.dumps(ORIGIN.to_json()) == json.dumps({"run": OLD_RUN, "unit": OLD_UNIT})
    run_file = RunFile(RUN, "/models/a", ["older"])
    assert run_file.to_json() == OLD_RUN | {"model": "/models/a", "earlier_bundles": ["older"]}
    for file in (run_file, replace(run_file, computed_by={"chip": "torch float32"})):
        assert RunFile.from_json(file.to_json()) == file
    assert Origin.from_json(ORIGIN.to_json()) == ORIGIN


def test_an_output_is_of_the_run_the_unit_and_the_shard_that_made_it():
    assert was_made_by(ORIGIN, RUN, UNIT)
    for other_run in (replace(RUN, min_confidence=0.5), replace(RUN, keep=["id"]), replace(RUN, bundle="other")):
        assert not was_made_by(ORIGIN, other_run, UNIT)
    for other_unit in (replace(UNIT, mtime_ns=8), replace(UNIT, stop=6), replace(UNIT, source="b.parquet")):
        assert not was_made_by(ORIGIN, RUN, other_unit)
    assert was_made_by(ORIGIN, RUN, replace(UNIT, text_bytes=13))  # an estimate, which decides nothing


def test_outputs_of_an_earlier_bundle_count_where_it_is_named():
    now = replace(RUN, bundle="new")
    assert was_made_by(ORIGIN, now, UNIT, ["digest"])
    assert not was_made_by(ORIGIN, now, UNIT, ["another"])
    assert may_stand_beside(ORIGIN, RunFile(now, earlier_bundles=["digest"]))
    assert not may_stand_beside(ORIGIN, RunFile(now))


@pytest.mark.parametrize("missing", ["text_column", "keep", "probabilities", "limit", "int8", "min_confidence"])
def test_a_setting_that_an_old_footer_does_not_have_has_its_default(missing):
    run = {name: value for name, value in OLD_RUN.items() if name != missing}
    origin = Origin.from_json({"run": run, "unit": OLD_UNIT})
    assert was_made_by(origin, RUN, UNIT)
    assert may_stand_beside(origin, RunFile(RUN))


def test_a_higher_format_version_alone_makes_no_difference():
    origin = Origin.from_json({"run": OLD_RUN | {"format_version": FORMAT_VERSION + 1}, "unit": OLD_UNIT})
    assert was_made_by(origin, RUN, UNIT)
    assert may_stand_beside(origin, RunFile(RUN))


def test_a_setting_that_only_a_newer_version_knows_makes_another_output():
    origin = Origin.from_json({"run": OLD_RUN | {"prefix": "pred_"}, "unit": OLD_UNIT})
    assert not was_made_by(origin, RUN, UNIT)
    assert not may_stand_beside(origin, RunFile(RUN))


@pytest.mark.parametrize(
    "content",
    [
        {"run": OLD_RUN},
        {"run": OLD_RUN, "unit": OLD_UNIT | {"start": "0"}},
        {"run": OLD_RUN, "unit": OLD_UNIT | {"source": 1}},
        {"run": {}, "unit": OLD_UNIT},
        {"run": OLD_RUN | {"bundle": None}, "unit": OLD_UNIT},
        [1],
    ],
)
def test_other_content_is_no_origin(content):
    with pytest.raises((KeyError, TypeError)):
        Origin.from_json(content)


def test_named_models_stand_in_the_records_by_name():
    content = json.loads(json.dumps(NAMED.to_json()))
    assert content["models"] == {
        "a": {"bundle": "digest a", "multi_label": False},
        "b": {"bundle": "digest b", "multi_label": True},
    }
    assert Run.from_json(content) == NAMED
    choices = {"a": {"chip": "torch float32"}, "b": {}}
    run_file = RunFile(NAMED, {"a": "/models/a", "b": "/models/b"}, computed_by=choices)
    assert RunFile.from_json(json.loads(json.dumps(run_file.to_json()))) == run_file
    assert (run_file.paths, run_file.choices) == ({"a": "/models/a", "b": "/models/b"}, choices)
    single = RunFile(RUN, "/models/a", computed_by={"chip": "torch float32"})
    assert (single.paths, single.choices) == ({"": "/models/a"}, {"": {"chip": "torch float32"}})


def test_records_of_named_models_may_lack_what_older_and_have_what_newer_versions_note():
    content = NAMED.to_json()
    content["models"]["a"]["setting_of_tomorrow"] = 1
    assert Run.from_json(content) == NAMED
    origin = Origin.from_json({"run": content, "unit": UnitOrigin.of(UNIT).to_json()})
    assert origin.unknown_settings == ("setting_of_tomorrow",)
    assert not may_stand_beside(origin, RunFile(NAMED))
    bare = RunFile.from_json(NAMED.to_json())
    assert (bare.paths, bare.choices) == ({}, {})


def test_columns_of_named_models_begin_with_their_names():
    assert replace(NAMED, prefix="p_").scored_columns == (
        *("p_a_label", "p_a_confidence", "p_a_probabilities", "p_a_status"),
        *("p_b_labels", "p_b_confidence", "p_b_probabilities", "p_b_status"),
        *("p_source", "p_row"),
    )


def test_an_earlier_set_of_bundles_counts_where_it_is_named():
    origin = Origin(NAMED, UnitOrigin.of(UNIT))
    now = replace(NAMED, bundle="new", models=NAMED.models | {"a": ModelRun("new a")})
    assert was_made_by(origin, NAMED, UNIT)
    assert not was_made_by(origin, now, UNIT)
    assert was_made_by(origin, now, UNIT, ["both"])
    assert not was_made_by(origin, replace(now, min_confidence=0.5), UNIT, ["both"])
    assert may_stand_beside(origin, RunFile(now, earlier_bundles=["both"]))
    assert NAMED.differences(now) == {"bundle of a": ("digest a", "new a")}
    assert NAMED.differences(RUN) == {"models": ("a, b", "one without a name")}
