"""Time a training and a scoring job beside other jobs on the same cores, as shares of what each makes alone.

    python benchmarks/neighbors.py --data labelled.parquet --encoder ENCODER --model runs/demo/bundle --text corpus

While a job is timed, its neighbor is started again whenever it ends. Prints a table and writes it as JSON into
benchmarks/results/. Takes about 15 minutes on two cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from timing import RESULTS, today

from sentiment_core.cli import run_and_exit
from sentiment_core.config import REQUIRED, parse, setting
from sentiment_core.model import bundle
from sentiment_core.runtime import hardware

JOBS = Path(__file__).parent.parent / "jobs"
KINDS = ("train", "score")
START_S = 30.0  # until a neighbor computes


@dataclass(frozen=True)
class NeighborSettings:
    """Settings of `neighbors.py`."""

    data: str = setting(REQUIRED, "labelled text, as for jobs/train.py", "D")
    encoder: str = setting(REQUIRED, "encoder to train: a Hugging Face model folder", "DIR")
    model: str = setting("runs/demo/bundle", "bundle to score with", "BUNDLE")
    text: str = setting("runs/demo/corpus", "Parquet with the texts: a file or folder", "P")
    text_column: str = setting("text", "column with the text")
    epochs: int = setting(2, "passes over the labelled rows")
    name: str = setting("demo", "name of the file in benchmarks/results/: neighbors_NAME.json")
    results: str = setting(str(RESULTS), "folder for the JSON file", "DIR")


class JobRunner:
    """Starts the jobs, each into a folder of its own, and reads their rates."""

    def __init__(self, settings: NeighborSettings, folder: str) -> None:
        self.settings, self.folder, self.started = settings, folder, 0

    def start(self, kind: str) -> tuple[subprocess.Popen, str]:
        """Start a job; return its process and the folder it writes."""
        self.started += 1
        out = os.path.join(self.folder, str(self.started))
        settings = self.settings
        if kind == "train":
            flags = ["--data", settings.data, "--model", settings.encoder, "--epochs", str(settings.epochs)]
        else:
            flags = ["--input", settings.text, "--model", settings.model, "--text-column", settings.text_column]
            flags += ["--keep", ""]
        command = [sys.executable, str(JOBS / f"{kind}.py"), *flags, "--out", out]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), out

    def time(self, kind: str) -> float:
        """Run a job; return its rows per second without its start."""
        process, out = self.start(kind)
        if code := process.wait():
            raise RuntimeError(f"jobs/{kind}.py ended with exit code {code}")
        if kind == "train":
            return bundle.read_info(out).training.rows_per_second
        return json.loads(Path(out, "_summary.json").read_text())["run"]["rows_per_second_after"]

    @contextmanager
    def neighbor(self, kind: str | None) -> Iterator[None]:
        """Keep a job of this kind running inside the block; None runs none."""
        if kind is None:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self.repeat, args=(kind, ended))
        thread.start()
        try:
            time.sleep(START_S)
            yield
        finally:
            ended.set()
            thread.join()

    def repeat(self, kind: str, ended: threading.Event) -> None:
        """Run jobs of this kind, one after another, until the event is set."""
        while not ended.is_set():
            process, _ = self.start(kind)
            while process.poll() is None and not ended.wait(1):
                pass
            process.terminate()
            process.wait()


def main() -> None:
    """Time each kind of job alone and beside each kind."""
    settings = parse(NeighborSettings, __doc__)
    rates: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        runner = JobRunner(settings, folder)
        for neighbor in (None, *KINDS):
            for kind in KINDS:
                with runner.neighbor(neighbor):
                    rate = runner.time(kind)
                rates[kind][neighbor or "alone"] = rate
                share = rate / rates[kind]["alone"]
                print(f"{kind} beside {neighbor or 'nothing'}: {rate:.1f} rows/s, {share:.2f} of alone", flush=True)
    report = {
        "date": today(),
        "device": hardware.device_name(torch.device("cpu")),
        "cpus": os.cpu_count(),
        "settings": {"epochs": settings.epochs, "data": Path(settings.data).name, "text": Path(settings.text).name},
        "rows_per_second": rates,
        "libraries": bundle.library_versions(),
    }
    Path(settings.results, f"neighbors_{settings.name}.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_and_exit(main)
