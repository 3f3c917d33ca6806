"""Which searches for settings are refused, and what becomes of trials that fail; `chaos/test_tuning.py` kills one."""

import json

import pytest

from sentiment_core import bundle
from sentiment_core.errors import BadRequest
from sentiment_core.tuning import TuneSettings, tune


@pytest.mark.parametrize(
    "part",
    ["lr", "lr=1e-4..1e-5", "lr=0..1e-4", "size=1/2", "out=a/b", "dropout=0/1", "head=standard/odd", "epochs=2/3"],
)
def test_a_search_that_cannot_be_is_refused(part):
    with pytest.raises(BadRequest):
        TuneSettings(data="d", model="m", out="o", search=(part,))


def test_a_trial_that_fails_does_not_cost_the_others(ray_here, tiny_encoder, labelled, tmp_path, capsys):
    settings = TuneSettings(
        data=labelled, model=tiny_encoder, out=str(tmp_path / "best"), epochs=1, trials=2,
        search=("max_length=16/1000",), seed=1, tensorboard=str(tmp_path / "curves"),
    )  # fmt: skip
    said = tune(settings)
    finished, failed = sorted(
        map(json.loads, (tmp_path / "best" / "tuning.jsonl").read_text().splitlines()),
        key=lambda trial: trial["settings"]["max_length"],
    )
    assert (finished["settings"]["max_length"], finished["finished"], len(finished["scores"])) == (16, True, 1)
    assert (failed["settings"]["max_length"], failed["finished"], failed["scores"]) == (1000, False, [])
    assert bundle.read_info(settings.out).max_length == 16
    assert "   failed       0  --max-length 1000" in said
    told = capsys.readouterr().err
    assert "trial 2 of 2, failed: --max-length is 1000; " in told
    assert "Traceback" not in told
    assert [folder.name for folder in (tmp_path / "curves").iterdir()] == [finished["id"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "curves"]
