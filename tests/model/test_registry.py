"""Which bundle of a registry is current, by the decisions on it."""

import json
from pathlib import Path

import pytest

from sentiment_core.errors import UserError
from sentiment_core.model import registry
from sentiment_core.model.objective import MultiLabel
from sentiment_core.model.registry import Decision, PromoteSettings, promote, promotion_stack
from tests.conftest import make_bundle


def decision(name: str, kind: str) -> Decision:
    return Decision(name, "0" * 64, "2026-01-01T00:00:00+00:00", kind, "")  # type: ignore[arg-type]


@pytest.fixture
def models(tiny_bundle, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).symlink_to(tiny_bundle, target_is_directory=True)
    return str(tmp_path)


def test_a_rollback_makes_the_bundle_before_current_again_and_refused_ones_never_are():
    decisions = [decision("a", "promoted"), decision("b", "promoted"), decision("c", "refused")]
    assert promotion_stack(decisions) == ["a", "b"]
    assert promotion_stack([*decisions, decision("a", "rolled_back")]) == ["a"]
    assert promotion_stack([*decisions, *[decision("a", "rolled_back")] * 3]) == ["a"]


def test_a_rollback_is_stored_under_the_name_that_older_versions_read(models):
    for name in ("first", "second"):
        registry.record_decision(models, name, "promoted", "")
    registry.record_decision(models, "first", registry.ROLLED_BACK, "worse")
    with open(f"{models}/{registry.CURRENT}") as file:
        stored = json.load(file)["decisions"]
    assert [record["kind"] for record in stored] == ["promoted", "promoted", "back"]
    assert list(stored[0]) == ["bundle", "digest", "when", "kind", "reason"]
    assert [decision.kind for decision in registry.history(models)] == ["promoted", "promoted", "rolled_back"]
    assert registry.resolve(models) == f"{models}/first"


def test_a_folder_without_decisions_is_a_bundle_itself(tmp_path):
    assert registry.resolve(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"decisions": [{"bundle": "a"}]}'])
def test_a_damaged_registry_is_refused(tmp_path, content):
    (tmp_path / registry.CURRENT).write_text(content)
    with pytest.raises(UserError, match=r"current.json is damaged. Delete it"):
        registry.resolve(str(tmp_path))


def test_a_promotion_and_its_rollback_decide_what_is_current(models):
    promote(PromoteSettings(models=models, bundle="first"))
    assert registry.resolve(models) == f"{models}/first"
    assert registry.resolve(f"{models}/second") == f"{models}/second"
    assert promote(PromoteSettings(models=models, bundle="second", reason="better")).endswith("current: second")
    assert registry.resolve(models) == f"{models}/second"
    history = promote(PromoteSettings(models=models, back=True))
    assert history.endswith("current: first")
    assert [line.split()[1:3] for line in history.splitlines()[:-1]] == [
        ["promoted", "first"],
        ["promoted", "second"],
        ["rolled_back", "first"],
    ]
    with pytest.raises(UserError, match="no bundle before the current one"):
        promote(PromoteSettings(models=models, back=True))
    with pytest.raises(UserError, match="first has become the current bundle meanwhile"):
        registry.record_decision(models, "first", registry.ROLLED_BACK, "asked for twice at once")
    with pytest.raises(UserError, match="first has become the current bundle meanwhile"):
        registry.record_decision(
            models, "second", "promoted", "better than what was current", current=f"{models}/second"
        )
    assert registry.resolve(models) == f"{models}/first"


def test_a_missing_bundle_and_one_with_other_labels_cannot_be_promoted(models, tiny_encoder):
    promote(PromoteSettings(models=models, bundle="first"))
    with pytest.raises(UserError, match="is not a bundle"):
        promote(PromoteSettings(models=models, bundle="third"))
    make_bundle(tiny_encoder, Path(models) / "topics", labels=("a", "b", "c"))
    with pytest.raises(UserError, match="has the labels a, b, c; expected those of the current one"):
        promote(PromoteSettings(models=models, bundle="topics"))
    make_bundle(tiny_encoder, Path(models) / "several", objective=MultiLabel())
    with pytest.raises(UserError, match="gives several labels a row; expected one label a row"):
        promote(PromoteSettings(models=models, bundle="several"))
    assert registry.resolve(models) == f"{models}/first"


def test_a_decision_that_came_while_bundles_were_read_is_not_lost(models, monkeypatch):
    registry.record_decision(models, "first", "promoted", "")
    registry.record_decision(models, "second", "promoted", "")
    digest_of = registry.bundle.digest_of

    def roll_back_first(files):
        monkeypatch.undo()
        registry.record_decision(models, "first", registry.ROLLED_BACK, "worse")
        return digest_of(files)

    monkeypatch.setattr(registry.bundle, "digest_of", roll_back_first)
    with pytest.raises(UserError, match="another decision came meanwhile"):
        registry.record_decision(models, "second", "refused", "")
    assert [decision.kind for decision in registry.history(models)] == ["promoted", "promoted", "rolled_back"]
