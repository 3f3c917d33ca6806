"""Records of nights: reading old ones, the baseline, which night is the latest."""

import json
from pathlib import Path

import pytest

from sentiment_core.errors import UserError
from sentiment_core.nightly import drift, record
from sentiment_core.nightly.drift import Comparison, Profile
from sentiment_core.nightly.record import PAST, WHOLE, Night, NightRun, Renewal

OLD = Path(__file__).parents[1] / "data" / "27de93b" / "nightly" / "_nights" / "2026-11-27.json"


def keys_of(content: object) -> object:
    """Return the content with keys in their order, which dictionaries' equality ignores."""
    if isinstance(content, dict):
        return [(key, keys_of(value)) for key, value in content.items()]
    return [keys_of(value) for value in content] if isinstance(content, list) else content


def test_an_old_record_is_written_again_key_for_key():
    old = json.loads(OLD.read_text())
    night = Night.from_json(old)
    assert night.profile.rows == night.rows == old["rows"]
    assert night.runs[0].scoring_seconds == old["runs"][0]["scoring_seconds"]
    assert keys_of(json.loads(json.dumps(night.to_json()))) == keys_of(old)


def test_all_parts_of_a_record_survive_the_file(tmp_path):
    profile = Profile(300, {"labels": [100.0, 200.0]}, {"empty texts": (3, 300, 1.5)})
    compared = drift.compare(profile, profile, WHOLE, PAST, 0.25)
    assert compared
    night = Night(
        "n",
        profile=profile,
        partitions={"date=1": profile},
        comparisons=compared,
        renewal=Renewal("candidate", True, "better", 9, "f"),
        runs=[NightRun("2026-11-28T02:00:00+00:00", 1.5, "failed")],
        not_renewed="another night is renewing the model",
    )
    record.write_night(str(tmp_path), night)
    assert record.read_nights(str(tmp_path)) == [night]
    content = json.loads((tmp_path / "_nights" / "n.json").read_text())
    assert content["reference"] == {}
    assert list(content["runs"][0]) == ["begun", "seconds", "outcome", "rows"]
    assert list(content["comparisons"][0]) == [
        "what", "of", "against", "value", "limit", "chance", "before", "now", "drifted", "told",
    ]  # fmt: skip


def test_keys_of_a_newer_version_are_ignored():
    content = Night("n", runs=[NightRun("b", 1.0, "exit code 0")]).to_json()
    content |= {"weather": "rain", "runs": [content["runs"][0] | {"moon": 1}], "renewal": {"candidate": "c"}}
    content["renewal"] |= {"promoted": False, "reason": "r", "mood": "good"}
    night = Night.from_json(content)
    assert night.renewal == Renewal("c", False, "r")
    assert night.runs == [NightRun("b", 1.0, "exit code 0")]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"night": "n", "runs": 3}', '{"night": "n", "profile": 3}'])
def test_a_damaged_record_is_refused_by_its_path(tmp_path, content):
    (tmp_path / "_nights").mkdir()
    (tmp_path / "_nights" / "n.json").write_text(content)
    with pytest.raises(UserError, match=r"_nights/n\.json is not the record of a night"):
        record.read_nights(str(tmp_path))


def test_a_drift_that_stays_becomes_the_baseline():
    def baseline(*drifted: bool | None) -> list[str]:
        """Return the baseline after nights that drifted or not; None: too few rows to be judged."""
        nights = [
            Night(
                f"{i:02}",
                "done",
                rows=10 if d is None else 1000,
                comparisons=[Comparison("labels", WHOLE, PAST, 0.3, 0.25, 0.1, drifted=bool(d))],
            )
            for i, d in enumerate(drifted)
        ]
        return [night.night for night in record.baseline_nights(nights)]

    assert baseline(False, True, False, True) == ["00", "02"]
    assert baseline(*[False] * 20) == [f"{i:02}" for i in range(6, 20)]
    assert baseline(False, *[True] * 6) == ["00"]
    assert baseline(False, *[True] * 7) == [f"{i:02}" for i in range(1, 8)]
    assert baseline(False, *[True] * 7, False, True) == [f"{i:02}" for i in range(1, 9)]
    assert baseline(False, *[True] * 6, None) == ["00", "07"]
    assert baseline(False, *[True] * 6, None, True) == [*(f"{i:02}" for i in range(1, 7)), "08"]


def test_nights_of_another_bundle_count_by_what_does_not_depend_on_it():
    profile = Profile(
        9, {drift.LENGTHS: [1.0], drift.LABELS: [2.0]}, {drift.UNKNOWN: (1, 2, 1), "empty texts": (3, 4, 1)}
    )
    past = Night("1", bundle="x", tokens_by="t", profile=profile)

    def compared(**now: str) -> set[str]:
        baseline = record.baseline_profile([past], Night("2", **now))
        return {*baseline.distributions, *baseline.shares}

    assert compared(bundle="x", tokens_by="t") == {drift.LENGTHS, drift.LABELS, drift.UNKNOWN, "empty texts"}
    assert compared(bundle="y", tokens_by="t") == {drift.LENGTHS, drift.UNKNOWN, "empty texts"}
    assert compared(bundle="y", tokens_by="u") == {"empty texts"}


def test_the_rows_of_a_broken_off_night_are_inherited_once():
    done, broken, heir = Night("1", "done", since_ns=5), Night("2", since_ns=7), Night("3", "done", since_ns=7)
    assert record.latest_night([]) is None
    assert record.latest_night([done, broken]) is broken
    assert record.latest_night([done, broken, heir]) is heir
    assert record.latest_night([done, broken, Night("3", since_ns=7)]).night == "3"
    assert record.latest_night([Night("backfill", "done", since_ns=1), heir, broken]) is heir
