"""Kill a search, and go on.

make chaos MINUTES=10
"""

import json
import sys
import time
from pathlib import Path

import psutil

from sentiment_core import bundle
from sentiment_core.tuning import TuneSettings, tune
from tests.chaos import needs_minutes

REPO = Path(__file__).resolve().parents[2]


@needs_minutes
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
    assert {name: info.training["settings"][name] for name in best["settings"]} == best["settings"]
    assert info.training["settings"]["out"] == str(out)
    assert f"{-max(best['scores']):.4f}" in said_at_last
    assert (out / "tuning.png").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]
