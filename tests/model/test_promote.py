"""`sentiment-core promote` as a command: history, a decision, a rollback, refusals."""

import json
import shutil
from pathlib import Path

import pytest

from sentiment_core import cli
from tests.conftest import make_bundle


@pytest.fixture(scope="module")
def bundles(tiny_encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_bundle(tiny_encoder, folder / "first")
    shutil.copytree(folder / "first", folder / "second")
    make_bundle(tiny_encoder, folder / "topics", labels=("sports", "weather"))
    return folder


@pytest.fixture
def models(bundles, tmp_path) -> Path:
    """Return a folder of three bundles without decisions."""
    return Path(shutil.copytree(bundles, tmp_path / "models"))


@pytest.fixture
def promote(models, capsys):
    """Run the command on `models`; return its exit code, and its lines on stdout or, in a refusal, on stderr."""

    def run(*flags: str) -> tuple[int, list[str]]:
        with pytest.raises(SystemExit) as end:
            cli.main(["promote", "--models", str(models), *flags])
        out, err = capsys.readouterr()
        assert not (out and err)
        return end.value.code, (out or err).splitlines()

    return run


def current(lines: list[str]) -> str:
    return lines[-1].removeprefix("current: ")


def test_the_history_lists_each_decision_with_its_reason(promote, models):
    promote("--bundle", "first")
    promote("--bundle", "second", "--reason", "better on the test set")
    before = (models / "current.json").read_bytes()
    code, lines = promote()
    assert code == 0
    assert [line.split()[1:3] for line in lines[:-1]] == [["promoted", "first"], ["promoted", "second"]]
    assert lines[1].endswith("better on the test set")
    assert current(lines) == "second"
    assert (models / "current.json").read_bytes() == before  # asking decides nothing


def test_back_makes_the_bundle_before_current_and_is_a_decision_of_its_own(promote, models):
    promote("--bundle", "first")
    promote("--bundle", "second")
    code, lines = promote("--back", "--reason", "too many alarms")
    assert code == 0
    assert current(lines) == "first"
    kinds = [decision["kind"] for decision in json.loads((models / "current.json").read_text())["decisions"]]
    assert kinds == ["promoted", "promoted", "back"]


@pytest.mark.parametrize(
    ("earlier", "flags", "words"),
    [
        ([], [], ["--models", "--bundle"]),
        ([], ["--back"], ["--back", "--bundle"]),
        (["first"], ["--back"], ["--back", "--bundle"]),
        (["first"], ["--bundle", "second", "--back"], ["--bundle", "--back"]),
        (["first"], ["--bundle", "third"], ["third"]),
        (["first"], ["--bundle", "topics"], ["topics", "sports, weather", "negative, positive"]),
    ],
)
def test_a_refusal_is_one_sentence_and_decides_nothing(promote, models, earlier, flags, words):
    for name in earlier:
        promote("--bundle", name)
    code, lines = promote(*flags)
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert all(word in lines[0] for word in words), lines
    code, lines = promote()
    assert current(lines) == "first" if earlier else code == 2


def test_a_damaged_history_is_refused(promote, models):
    (models / "current.json").write_text("{")
    code, lines = promote()
    assert code == 2
    assert "current.json is damaged" in lines[0]
