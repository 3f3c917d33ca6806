"""Scoring once more what was scored, to compare: all of it, or a sample."""

import random
from dataclasses import dataclass, fields, replace

from sentiment_core import bundle, cluster, corpus, scored, stages
from sentiment_core.corpus import FailedShard, Unit
from sentiment_core.errors import BadRequest
from sentiment_core.scored import Counts, Output, Run
from sentiment_core.stages import Job
from sentiment_core.stream import TASK_MINUTES, Stream, Tally, number_of_workers

PART_ROWS = 50  # of a sample that lie together, at least


@dataclass(frozen=True)
class Rescoring:
    """The run that made an output folder, and the bundle it was made with."""

    place: str
    run: Run
    files: dict[str, bytes]
    labels: list[str]

    @classmethod
    def of(cls, place: str, model: str | None) -> "Rescoring":
        """By what `_run.json` tells; `model`: where the bundle is now, if elsewhere. Raises `BadRequest`."""
        told = scored.read_run(place) or {}
        if told.get("format_version") != scored.FORMAT_VERSION:
            raise BadRequest(
                f"{place} has no {scored.RUN_FILE} of this version, which tells how it was scored; verify it without "
                "--sample and --full"
            )
        run = Run(**{field.name: told[field.name] for field in fields(Run)})
        model = model or told["model"]
        info, files = bundle.read_files(model)
        if bundle.digest_of(files) != run.bundle:
            raise BadRequest(f"--model {model} is not the bundle that scored {place}; give the one that did")
        return cls(place, run, files, info.labels)

    def differences(
        self, place: str, outputs: dict[str, Output], rows: int | None, workers: int | None
    ) -> tuple[int, list[FailedShard]]:
        """How many rows of the input `place` were scored once more, about `rows` or all, and what differs from these
        `outputs`, or could not be scored. Outputs made otherwise are passed over."""
        keep = None if self.run.keep is None else tuple(self.run.keep)
        planned = corpus.plan(place, self.run.text_column, keep, scored.COLUMNS)
        if self.run.limit:
            planned = corpus.limited(planned, self.run.limit)
        whole = [
            unit
            for unit in planned.units
            if unit.output in outputs and outputs[unit.output].origin == scored.origin(self.run, unit)
        ]
        parts = [(unit, unit) for unit in whole] if rows is None else sample(whole, rows)
        if not parts:
            return 0, []
        cluster.connect()
        workers = number_of_workers(workers, len(parts))
        cluster.check_shared(self.place, "--out", writable=False)
        cluster.check_shared(planned.root, "--input", writable=False)
        job = Job(planned.root, self.place, self.run, self.labels)
        takes = {"outputs": {part.output: unit for part, unit in parts if part != unit}}
        tally = Tally(Counts.none(self.labels))
        stream = Stream(job, self.files, stages.compare, takes, workers, TASK_MINUTES)
        stream.run("verify", [part for part, _ in parts], tally)
        return sum(part.rows for part, _ in parts), tally.failed


def sample(units: list[Unit], rows: int) -> list[tuple[Unit, Unit]]:
    """About so many rows: parts of units chosen at random, each with its unit."""
    units = [unit for unit in units if unit.rows]
    length = max(PART_ROWS, -(-rows // max(1, len(units))))
    parts = []
    for unit in random.sample(units, min(len(units), -(-rows // length))):
        start = random.randint(unit.start, max(unit.start, unit.stop - length))
        parts.append((replace(unit, start=start, stop=min(unit.stop, start + length)), unit))
    return parts
