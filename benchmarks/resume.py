"""What planning and resuming cost: of a corpus of very many shards, planned afresh and with all of it scored already;
and of a real run of which 1 % is missing.

    python benchmarks/resume.py --model runs/demo/bundle --text runs/demo/corpus

Every figure is of a `jobs/score.py` of its own. Prints them and writes them as JSON into benchmarks/results/.
"""

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from sentiment_core.cli import run_and_exit
from sentiment_core.config import parse, setting
from sentiment_core.model import bundle
from sentiment_core.runtime import hardware
from sentiment_core.scoring import outputs
from sentiment_core.scoring.job import ScoreSettings, prepare

REPO = Path(__file__).resolve().parents[1]
FOLDER_SHARDS = 1_000  # hard links of one file: of the same content, but each opened and read
REAL_SHARDS = 100


@dataclass(frozen=True)
class ResumeSettings:
    model: str = setting("runs/demo/bundle", "model bundle: a folder", "BUNDLE")
    text: str = setting("runs/demo/corpus", "Parquet with the texts of the real run: a file or folder", "P")
    text_column: str = setting("text", "column with the text")
    shards: int = setting(100_000, "shards that are planned")
    rows: int = setting(60_000, "rows of the real run, in 100 shards; texts are taken more than once if they are fewer")
    results: str = setting(str(REPO / "benchmarks" / "results"), "folder for the JSON file", "DIR")


def main() -> None:
    settings = parse(ResumeSettings, __doc__)
    with tempfile.TemporaryDirectory() as place:
        report = {
            "date": datetime.date.today().isoformat(),
            "device": hardware.device_name(hardware.device()),
            "cpus": os.cpu_count(),
            "planning": time_planning(settings, Path(place, "many")),
            "real run": time_real_run(settings, Path(place, "real")),
            "libraries": bundle.library_versions(),
        }
    for name in ("planning", "real run"):
        print(f"{name}: {', '.join(f'{key} {value:,.2f}' for key, value in report[name].items())}")
    Path(settings.results, "resume.json").write_text(json.dumps(report, indent=2) + "\n")


def time_planning(settings: ResumeSettings, place: Path) -> dict[str, float]:
    table = pa.table({settings.text_column: ["one short text", "another one"]})
    for first in range(0, settings.shards, FOLDER_SHARDS):
        folder = place / "in" / f"part={first // FOLDER_SHARDS:04}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "0.parquet")
        for i in range(1, min(FOLDER_SHARDS, settings.shards - first)):
            os.link(folder / "0.parquet", folder / f"{i}.parquet")
    command = score(settings, place, "--dry-run")
    fresh_seconds, fresh_bytes = measure(command)
    write_outputs(settings, place)
    again_seconds, again_bytes = measure(command)
    return {
        "shards": settings.shards,
        "fresh seconds": fresh_seconds,
        "fresh GB": fresh_bytes / 1e9,
        "all scored seconds": again_seconds,
        "all scored GB": again_bytes / 1e9,
    }


def write_outputs(settings: ResumeSettings, place: Path) -> None:
    """What a run would leave, without its hours."""
    work = prepare(ScoreSettings(settings.model, f"{place}/in", f"{place}/out", settings.text_column, keep=()))
    outputs.pin(work.place, work.run, settings.model, [])
    labels = work.info.labels
    status, probabilities = np.zeros(2, np.int8), np.full((2, len(labels)), 1 / len(labels), np.float32)
    counts = outputs.count(status, probabilities, labels, np.full(len(status), 8), 0, [])
    for unit in work.todo:
        rows = outputs.make_table(unit, pa.table({}), status, probabilities, labels, False)
        outputs.commit(work.place, work.run, unit, rows, counts)


def time_real_run(settings: ResumeSettings, place: Path) -> dict[str, float]:
    texts = pads.dataset(settings.text).to_table(columns=[settings.text_column]).column(0).drop_null().to_pylist()
    for name, shards, rows in (("one/in", 1, 1), ("in", REAL_SHARDS, settings.rows // REAL_SHARDS)):
        (place / name).mkdir(parents=True)
        for shard in range(shards):
            some = [texts[(shard * rows + i) % len(texts)] for i in range(rows)]
            pq.write_table(pa.table({settings.text_column: some}), place / name / f"{shard:03}.parquet")
    start_up, _ = measure(score(settings, place / "one"))
    full, _ = measure(score(settings, place))
    (place / "out" / "050.parquet").unlink()
    again, _ = measure(score(settings, place))
    return {
        "rows": settings.rows,
        "start-up seconds": start_up,  # of a job with one row
        "full seconds": full,
        "99 % done seconds": again,
        "beyond start-up, of the full run": (again - start_up) / full,
    }


def score(settings: ResumeSettings, place: Path, *more: str) -> list[str]:
    command = [sys.executable, REPO / "jobs" / "score.py", "--model", settings.model, "--input", place / "in"]
    command += ["--out", place / "out", "--text-column", settings.text_column, "--keep", "", *more]
    return list(map(str, command))


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds and peak memory in bytes, of the driver alone."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, used.ru_maxrss * 1024


if __name__ == "__main__":
    run_and_exit(main)
