"""Kill a search, and go on.

make chaos MINUTES=10
"""

import json
import sys
import time
from pathlib import Path

import psutil

from sentiment_core.model import bundle
from sentiment_core.training.tuning import TuneSettings, tune

REPO = Path(__file__).resolve().parents[2]


def test_a_search_that_was_killed_goes_on_and_keeps_the_best_trial(ray_here, tiny_encoder, labelled, tmp_path):
    out = tmp_path / "best"
    flags = {"data": labelled, "model": tiny_encoder, "out": str(out), "trials": 2, "epochs": 1, "select_by": "loss"}
    search = ("lr=1e-4..1e-2", "batch_size=16/32")
    command = [sys.executable, str(REPO / "jobs" / "tune.py"), "--search", ",".join(search)]
    command += [word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), str(value))]
    with open(tmp_path / "said", "w") as said:
        job = psutil.Popen(command, stdout=said, stderr=said)
        stop = time.monotonic() + 120
        while not (first := list(tmp_path.glob("_tuning-best/trials/*/" + bundle.CARD))):
            assert time.monotonic() < stop
            assert job.poll() is None
            time.sleep(0.05)
        for process in (*job.children(recursive=True), job):
            process.kill()
        job.wait()
    (tmp_path / "said").unlink()
    said_at_last = tune(TuneSettings(**flags, search=search))
    trials = [json.loads(line) for line in (out / "tuning.jsonl").read_text().splitlines()]
    assert len(trials) == 2
    assert first[0].parent.name in {trial["id"] for trial in trials}
    assert len({trial["settings"]["lr"] for trial in trials}) == 2
    assert all(1e-4 <= trial["settings"]["lr"] <= 1e-2 for trial in trials)
    assert {trial["settings"]["batch_size"] for trial in trials} <= {16, 32}
    best = max(trials, key=lambda trial: max(trial["scores"]))
    info = bundle.read_info(str(out))
    assert {name: info.training.settings[name] for name in best["settings"]} == best["settings"]
    assert info.training.settings["out"] == str(out)
    assert f"{-max(best['scores']):.4f}" in said_at_last
    assert (out / "tuning.png").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]


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


def test_what_trials_that_were_stopped_had_reserved_is_free_for_the_next(ray_here, tiny_encoder, labelled, tmp_path):
    search = ("lr=1e-6..1e-5", "head_lr=1e-6..1e-2")
    tune(
        TuneSettings(
            data=labelled,
            model=tiny_encoder,
            out=str(tmp_path / "best"),
            epochs=2,
            trials=5,
            search=search,
            select_by="loss",
        )
    )
    trials = [json.loads(line) for line in (tmp_path / "best" / "tuning.jsonl").read_text().splitlines()]
    assert len(trials) == 5
    assert any(len(trial["scores"]) == 1 and not trial["finished"] for trial in trials[:-1])
