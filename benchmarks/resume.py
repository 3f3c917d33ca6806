"""Time planning and resuming.

It measures planning very many shards, and a real run with 1 % missing. The many shards are planned
before and after all of them are scored, and as a Delta table.

    python benchmarks/resume.py --model runs/demo/bundle --text runs/demo/corpus

Each figure comes from one run of `jobs/score.py`. Prints them and writes them as JSON into benchmarks/results/.
"""

import json
import os
import shutil
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
from timing import RESULTS, today

from sentiment_core.cli import run_and_exit
from sentiment_core.config import parse, setting
from sentiment_core.model import bundle
from sentiment_core.runtime import hardware
from sentiment_core.scoring import outputs
from sentiment_core.scoring.plan import plan_scoring
from sentiment_core.scoring.records import RunFile
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.settings import ScoreSettings

REPO = Path(__file__).resolve().parents[1]
FOLDER_SHARDS = 1_000  # hard links of one file; each is opened and read like a file of its own
REAL_SHARDS = 100


@dataclass(frozen=True)
class ResumeSettings:
    """Settings of `resume.py`."""

    model: str = setting("runs/demo/bundle", "model bundle: a folder", "BUNDLE")
    text: str = setting("runs/demo/corpus", "Parquet with the texts of the real run: a file or folder", "P")
    text_column: str = setting("text", "column with the text")
    shards: int = setting(100_000, "shards to plan")
    rows: int = setting(60_000, "rows of the real run, in 100 shards; fewer texts are repeated")
    results: str = setting(str(RESULTS), "folder for the JSON file", "DIR")


def main() -> None:
    """Run the benchmark, print its figures and write its report."""
    settings = parse(ResumeSettings, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "date": today(),
            "device": hardware.device_name(hardware.device()),
            "cpus": os.cpu_count(),
            "planning": time_planning(settings, Path(folder, "many")),
            "real run": time_real_run(settings, Path(folder, "real")),
            "libraries": bundle.library_versions(),
        }
    for name in ("planning", "real run"):
        print(f"{name}: {', '.join(f'{key} {value:,.2f}' for key, value in report[name].items())}")
    Path(settings.results, "resume.json").write_text(json.dumps(report, indent=2) + "\n")


def time_planning(settings: ResumeSettings, folder: Path) -> dict[str, float]:
    """Time a dry run over many shards without outputs, and one with all outputs there."""
    table = pa.table({settings.text_column: ["one short text", "another one"]})
    for first in range(0, settings.shards, FOLDER_SHARDS):
        partition = folder / "in" / f"part={first // FOLDER_SHARDS:04}"
        partition.mkdir(parents=True)
        pq.write_table(table, partition / "0.parquet")
        for i in range(1, min(FOLDER_SHARDS, settings.shards - first)):
            os.link(partition / "0.parquet", partition / f"{i}.parquet")
    command = score_command(settings, folder, "--dry-run")
    fresh_seconds, fresh_bytes = measure(command)
    write_delta_log(folder / "in", settings.text_column)
    table_seconds, table_bytes = measure(command)
    shutil.rmtree(folder / "in" / "_delta_log")
    write_outputs(settings, folder)
    again_seconds, again_bytes = measure(command)
    return {
        "shards": settings.shards,
        "fresh seconds": fresh_seconds,
        "fresh GB": fresh_bytes / 1e9,
        "as a Delta table, seconds": table_seconds,
        "as a Delta table, GB": table_bytes / 1e9,
        "all scored seconds": again_seconds,
        "all scored GB": again_bytes / 1e9,
    }


def write_delta_log(folder: Path, text_column: str) -> None:
    """Make a Delta table of a folder's Parquet files."""
    text = {"name": text_column, "type": "string", "nullable": True, "metadata": {}}
    actions = [
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        {
            "metaData": {
                "id": "0189c3d2-1d5a-7a7e-8d5c-0123456789ab",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": [text]}),
                "partitionColumns": [],
                "configuration": {},
            }
        },
    ]
    for path in folder.rglob("*.parquet"):
        status = path.stat()
        add = {"path": str(path.relative_to(folder)).replace("=", "%3D"), "partitionValues": {}, "dataChange": True}
        actions.append({"add": add | {"size": status.st_size, "modificationTime": status.st_mtime_ns // 10**6}})
    (folder / "_delta_log").mkdir()
    log = folder / "_delta_log" / f"{0:020}.json"
    log.write_text("".join(json.dumps(action) + "\n" for action in actions))


def write_outputs(settings: ResumeSettings, folder: Path) -> None:
    """Write the outputs of a full run without computing anything."""
    plan = plan_scoring(
        ScoreSettings(
            input=f"{folder}/in",
            text_column=(settings.text_column,),
            keep=(),
            model=settings.model,
            out=f"{folder}/out",
        )
    )
    outputs.write_run_file(plan.output_folder, RunFile(plan.run, settings.model))
    (model,) = plan.models
    probabilities = np.full((2, len(model.labels)), 1 / len(model.labels), np.float32)
    rows = {"": ScoredRows(model.objective, model.labels, np.zeros(2, np.int8), probabilities, np.full(2, 8))}
    counts = plan.context.no_counts.add_unit(rows)
    for unit in plan.units_to_score:
        table = outputs.scored_table(unit, pa.table({}), rows, plan.run)
        outputs.commit(plan.output_folder, plan.run, unit, table, counts)


def time_real_run(settings: ResumeSettings, folder: Path) -> dict[str, float]:
    """Time a run over one row, a full run, and a rerun without one of its outputs."""
    texts = pads.dataset(settings.text).to_table(columns=[settings.text_column]).column(0).drop_null().to_pylist()
    for name, shards, rows in (("one/in", 1, 1), ("in", REAL_SHARDS, settings.rows // REAL_SHARDS)):
        (folder / name).mkdir(parents=True)
        for shard in range(shards):
            shard_texts = [texts[(shard * rows + i) % len(texts)] for i in range(rows)]
            pq.write_table(pa.table({settings.text_column: shard_texts}), folder / name / f"{shard:03}.parquet")
    start_up, _ = measure(score_command(settings, folder / "one"))
    full, _ = measure(score_command(settings, folder))
    (folder / "out" / "050.parquet").unlink()
    again, _ = measure(score_command(settings, folder))
    return {
        "rows": settings.rows,
        "start-up seconds": start_up,  # of a job with one row
        "full seconds": full,
        "99 % done seconds": again,
        "beyond start-up, of the full run": (again - start_up) / full,
    }


def score_command(settings: ResumeSettings, folder: Path, *flags: str) -> list[str]:
    """Return the command that scores `in` of this folder into `out`."""
    command = [sys.executable, REPO / "jobs" / "score.py", "--model", settings.model, "--input", folder / "in"]
    command += ["--out", folder / "out", "--text-column", settings.text_column, "--keep", "", *flags]
    return list(map(str, command))


def measure(command: list[str]) -> tuple[float, int]:
    """Run a command; return its seconds and the driver's peak memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


if __name__ == "__main__":
    run_and_exit(main)
