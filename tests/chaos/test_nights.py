"""Twelve nights on a cluster of two nodes, through submitted jobs, with the mishaps that nights have.

make chaos MINUTES=10
"""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sentiment_core.model import bundle
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.conftest import make_bundle, sentences, shard
from tests.nodes import submit, two_nodes


def write_labelled(path: Path, rows: int, seed: int, correct: bool = True) -> None:
    """Write labelled sentences, which differ from seed to seed, with correct or shuffled labels."""
    table = sentences(rows, seed)
    texts = [f"{text}, said {seed * 10_000 + i}" for i, text in enumerate(table["text"].to_pylist())]
    table = table.set_column(0, "text", pa.array(texts))
    if not correct:
        shuffled = np.random.default_rng(seed).permutation(table["label"].to_pylist())
        table = table.set_column(1, "label", pa.array(shuffled))
    pq.write_table(table, path)


def test_twelve_nights(packaged_encoder, tmp_path):
    base, models, out = tmp_path, tmp_path / "models", tmp_path / "out"
    make_bundle(packaged_encoder, models / "first")
    write_labelled(base / "test.parquet", 400, 100)
    training = {
        "data": str(base / "labelled.parquet"), "model": packaged_encoder, "epochs": 2, "lr": 1e-4, "head_lr": 1e-3,
    }  # fmt: skip
    (base / "train.yaml").write_text(yaml.safe_dump(training))
    config = {"model": str(models), "input": str(base / "in"), "out": str(out), "drift_limit": 0.25, "keep": []}
    renewing = {"train_config": str(base / "train.yaml"), "test_data": str(base / "test.parquet")}
    (base / "nightly.yaml").write_text(yaml.safe_dump(config))
    (base / "renewing.yaml").write_text(yaml.safe_dump(config | renewing))
    arrived = 0  # rows of the corpus

    with two_nodes() as cluster:

        def night(name: str, file: str = "nightly.yaml") -> dict:
            code, output = submit(cluster, "python", "jobs/nightly.py", "--config", base / file, "--night", name)
            record = json.loads((out / "_nights" / f"{name}.json").read_text())
            assert code == record["exit_code"], output
            assert record["state"] == "done"
            findings = verify(VerifySettings(input=str(base / "in"), out=str(out)))
            assert (findings.exit_code, findings.rows_out) == (0, arrived), findings.report()
            assert not any(record["verified"].values())
            return record

        def promoting(*flags: str) -> str:
            code, output = submit(cluster, "python", "jobs/promote.py", "--models", models, *flags)
            assert code == 0, output
            return output

        def made_by() -> dict[str, str]:
            """Return the name of the bundle that made each output."""
            names = {
                bundle.digest_of(bundle.read_files(str(folder))[1]): folder.name
                for folder in models.iterdir()
                if folder.is_dir()
            }
            origins = {
                path.stem: json.loads(pq.read_metadata(path).metadata[b"sentiment_core.origin"])
                for path in out.rglob("*.parquet")
            }
            return {name: names[origin["run"]["bundle"]] for name, origin in origins.items()}

        promoting("--bundle", "first")
        shard(base / "in", "1.parquet", 500, 1)
        shard(base / "in", "changing.parquet", 300, 2)
        arrived = 800
        first = night("n01")
        assert (first["rows"], first["left"], first["exit_code"]) == (800, 0, 0)

        shard(base / "in", "2.parquet", 400, 3)  # growth
        arrived += 400
        assert night("n02")["rows"] == 400

        shard(base / "in", "changing.parquet", 350, 4)
        arrived += 50
        changed = night("n03")  # the old shard had some of its texts
        assert changed["rows"] + changed.get("reused_rows", 0) == 350

        shard(base / "in", "4.parquet", 300, 5)  # n04 is missed
        shard(base / "in", "5.parquet", 300, 6)
        arrived += 600
        assert night("n05")["rows"] == 600

        shard(base / "in", "6.parquet", 6000, 7)
        arrived += 6000
        submitted = threading.Thread(
            target=submit,
            args=(cluster, "python", "jobs/nightly.py", "--config", base / "nightly.yaml", "--night", "n06"),
        )
        submitted.start()
        kill_when_running(out, "n06")
        submitted.join()
        assert json.loads((out / "_nights" / "n06.json").read_text())["state"] == "running"
        shard(base / "in", "7.parquet", 300, 8)
        arrived += 300
        assert night("n07")["rows"] == 6300  # of both nights, whatever the killed one had scored

        shard(base / "in", "8.parquet", 400, 9, times=6)
        arrived += 400
        drifted = night("n08")
        assert drifted["exit_code"] == 4
        assert any(alarm.startswith("drift: text length") for alarm in drifted["alarms"])

        write_labelled(base / "labelled.parquet", 100, 101, correct=False)
        shard(base / "in", "9.parquet", 400, 10)
        arrived += 400
        refused = night("n09", "renewing.yaml")
        assert (refused["exit_code"], refused["renewal"]["promoted"]) == (0, False), refused["renewal"]
        assert "current: first" in promoting()

        write_labelled(base / "labelled.parquet", 640, 102)
        shard(base / "in", "10.parquet", 400, 11)
        arrived += 400
        promoted = night("n10", "renewing.yaml")
        assert promoted["renewal"]["promoted"], promoted["renewal"]
        assert f"current: {promoted['renewal']['candidate']}" in promoting()

        shard(base / "in", "11.parquet", 400, 12)
        arrived += 400
        renewed = night("n11", "renewing.yaml")
        assert renewed["rows"] == 400
        assert not renewed["renewal"]  # nothing new to learn
        assert "the labelled rows are those of before" in renewed["not_renewed"]

        assert "current: first" in promoting("--back", "--reason", "a test")
        shard(base / "in", "12.parquet", 400, 13)
        arrived += 400
        night("n12")
        assert made_by() == {
            **dict.fromkeys(["1", "changing", "2", *map(str, range(4, 11))], "first"),
            "11": promoted["renewal"]["candidate"],
            "12": "first",
        }
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
        assert night("n13")["rows"] == 0
        assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    lines = (out / "_nights" / "nights.jsonl").read_text().splitlines()
    assert [json.loads(line)["night"] for line in lines] == [f"n{i:02}" for i in range(1, 14) if i != 4]
    nights = [json.loads(line) for line in lines]
    rows = sum(line["rows"] + line.get("reused_rows", 0) for line in nights)
    assert rows == arrived + 300  # the changed shard's rows, twice
    if "KEEP" in os.environ:  # for docs/pictures.sh
        shutil.copytree(out / "_nights", os.environ["KEEP"])


def kill_when_running(out: Path, night: str) -> None:
    """Kill the job's driver as soon as it scores."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            running = json.loads((out / "_nights" / f"{night}.json").read_text())["state"] == "running"
            pid = json.loads((out / "_nights" / "_running.json").read_text())["pid"]
        except (OSError, ValueError):
            running = False
        if running:
            time.sleep(2)
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.1)
    raise AssertionError("the night did not start")
