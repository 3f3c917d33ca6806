"""Scoring once more what was scored, to compare: all of it, or a sample."""

import bisect
import itertools
import random
from dataclasses import dataclass, fields, replace

from sentiment_core.data import shards
from sentiment_core.data.shards import Unit
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, registry
from sentiment_core.runtime import cluster, connection, preflight
from sentiment_core.scoring import outputs as scored
from sentiment_core.scoring import stages
from sentiment_core.scoring.outputs import Counts, Output, Run
from sentiment_core.scoring.stages import Job
from sentiment_core.scoring.stream import TASK_MINUTES, Stream, Tally

PART_ROWS = 50  # of a sample that lie together


@dataclass(frozen=True)
class Rescoring:
    """The run that made an output folder, and the bundle it was made with."""

    place: str
    run: Run
    files: dict[str, bytes]
    labels: list[str]

    @classmethod
    def of(cls, place: str, model: str | None) -> "Rescoring":
        """By what `_run.json` tells; `model`: where the bundle is now, if elsewhere. Raises `UserError`."""
        told = scored.read_run(place) or {}
        if told.get("format_version") != scored.FORMAT_VERSION:
            raise UserError(
                f"{place} has no {scored.RUN_FILE} of this version, which tells how it was scored; verify it without "
                "--sample and --full"
            )
        run = Run(**{field.name: told[field.name] for field in fields(Run)})
        model = registry.resolve(model) if model else told["model"]
        info, files = bundle.read_files(model)
        if bundle.digest_of(files) != run.bundle:
            raise UserError(f"--model {model} is not the bundle that scored {place}; give the one that did")
        return cls(place, run, files, info.labels)

    def passes_over(self, output: Output) -> bool:
        """Whether another bundle has made it, as after a nightly job's promotion."""
        return bool(output.origin) and output.origin["run"].get("bundle") != self.run.bundle

    def compare(self, source: str, outputs: dict[str, Output], rows: int | None, workers: int | None) -> Tally:
        """Score about `rows` of the input at `source` once more, or all; what differs from these `outputs`, or cannot
        be scored, has failed. Outputs made otherwise are passed over."""
        keep = None if self.run.keep is None else tuple(self.run.keep)
        planned = shards.plan(source, self.run.text_column, keep, scored.COLUMNS)
        if self.run.limit:
            planned = shards.limit_rows(planned, self.run.limit)
        whole = [
            unit
            for unit in planned.units
            if unit.output in outputs and outputs[unit.output].origin == scored.origin(self.run, unit)
        ]
        parts = {unit: unit for unit in whole} if rows is None else sample(whole, rows, random.Random())
        tally = Tally(Counts.none(self.labels))
        if not parts:
            return tally
        connection.connect()
        workers = cluster.number_of_workers(workers, len(parts))
        preflight.check_workers(workers)
        preflight.check_shared(self.place, "--out", writable=False)
        preflight.check_shared(planned.root, "--input", writable=False)
        job = Job(planned.root, self.place, self.run, self.labels)
        takes = {"outputs": {part.output: unit for part, unit in parts.items() if part != unit}}
        stream = Stream(job, self.files, stages.compare, takes, workers, TASK_MINUTES)
        stream.run("verify", list(parts), tally)
        return tally


def sample(units: list[Unit], rows: int, rng: random.Random) -> dict[Unit, Unit]:
    """At least so many rows, or all: parts of up to `PART_ROWS`, chosen at random, each with its unit."""
    ends = list(itertools.accumulate(-(-unit.rows // PART_ROWS) for unit in units))
    parts: dict[Unit, Unit] = {}
    gathered = 0
    for number in rng.sample(range(ends[-1] if ends else 0), min(rows, ends[-1] if ends else 0)):
        if gathered >= rows:
            break
        unit = units[i := bisect.bisect_right(ends, number)]
        start = unit.start + PART_ROWS * (number - (ends[i - 1] if i else 0))
        stop = min(unit.stop, start + PART_ROWS)
        parts[replace(unit, start=start, stop=stop, text_bytes=unit.text_bytes * (stop - start) // unit.rows)] = unit
        gathered += stop - start
    return parts
