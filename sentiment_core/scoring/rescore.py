"""Score again what was scored, all of it or a sample, and compare."""

import bisect
import itertools
import random
from dataclasses import dataclass, replace

from sentiment_core.data import shards
from sentiment_core.data.shards import Corpus, Unit
from sentiment_core.errors import UserError
from sentiment_core.inference.tolerances import RESCORED_BF16_TOLERANCE
from sentiment_core.model import registry, source
from sentiment_core.model.naming import Models, read_models
from sentiment_core.runtime import cluster, connection, preflight
from sentiment_core.runtime.cluster import DeviceChoice
from sentiment_core.scoring import outputs, stages
from sentiment_core.scoring.context import ScoringContext
from sentiment_core.scoring.models import PassModel, describe_models
from sentiment_core.scoring.outputs import Output
from sentiment_core.scoring.records import Choices, Run, was_made_by
from sentiment_core.scoring.settings import TASK_MINUTES
from sentiment_core.scoring.stream import Stream
from sentiment_core.scoring.tally import Tally

PART_ROWS = 50  # of a sample that lie together


@dataclass(frozen=True)
class Rescoring:
    """The run that made an output folder, and the bundles it used."""

    output_folder: str
    run: Run
    bundle_files: dict[str, dict[str, bytes]]  # by the model's name, then by the file's
    models: tuple[PassModel, ...]
    choices: Choices  # of backend and number type
    input_version: int | None  # of the table that was scored

    @classmethod
    def load(cls, folder: str, model: Models | None) -> "Rescoring":
        """Load what `_run.json` names; `model` is where the bundles are now, if elsewhere. Raises UserError."""
        run_file = outputs.read_run_file(folder)
        if run_file is None or not (model or run_file.paths):
            raise UserError(
                f"{folder} has no readable {outputs.RUN_FILE}, which says how it was scored; verify it without "
                "--sample and --full"
            )
        paths = read_models(model) if model else run_file.paths
        if set(paths) != set(run_file.run.bundles):
            raise UserError(
                f"--model gives the models {', '.join(paths) or 'one without a name'}; {folder} was scored by "
                f"{', '.join(run_file.run.models) or 'one without a name'}; give those"
            )
        opened = {name: source.open_model(registry.resolve(path) if model else path) for name, path in paths.items()}
        models = describe_models(opened)
        for described in models:
            if described.bundle != run_file.run.bundles[described.name]:
                raise UserError(
                    f"--model {paths[described.name]} is not the bundle that scored {folder}; give that one"
                )
        files = {name: opened_model.files for name, opened_model in opened.items()}
        return cls(folder, run_file.run, files, models, run_file.choices, run_file.input_version)

    def was_scored_by_another_bundle(self, output: Output) -> bool:
        """Return whether another bundle made the output, as before a nightly job's promotion."""
        return output.origin is not None and output.origin.run.bundle != self.run.bundle

    def compare(
        self,
        input_path: str,
        existing: dict[str, Output],
        sample_rows: int | None,
        workers: int | None,
        device: DeviceChoice,
    ) -> Tally:
        """Score about `sample_rows` rows of the input again, or all, and compare them with the `existing` outputs.

        Units that differ, or cannot be scored, are the tally's failures. Outputs made by another run are skipped.
        Raises UserError.
        """
        corpus = self._plan(input_path)
        units = [
            unit
            for unit in corpus.units
            if (output := existing.get(unit.output)) and output.origin and was_made_by(output.origin, self.run, unit)
        ]
        parts = (
            {unit: unit for unit in units} if sample_rows is None else draw_sample(units, sample_rows, random.Random())
        )
        context = ScoringContext(
            corpus.root, self.output_folder, self.run, self.models, corpus.column_types, corpus.columns
        )
        tally = Tally(context.no_counts)
        if not parts:
            return tally
        connection.connect()
        kind = cluster.device_kind(device)
        workers = cluster.number_of_workers(workers, len(parts), kind)
        preflight.check_workers(workers, kind)
        preflight.check_shared(self.output_folder, "--out", writable=False)
        preflight.check_shared(corpus.root, "--input", writable=False)
        arguments = {"units_of_parts": {part.output: unit for part, unit in parts.items() if part != unit}}
        stream = Stream(
            context,
            self.bundle_files,
            stages.compare_outputs,
            arguments,
            workers,
            kind,
            TASK_MINUTES,
            choices=self.choices,
            tolerance=RESCORED_BF16_TOLERANCE,
        )
        stream.run("verify", list(parts), tally)
        return tally

    def _plan(self, input_path: str) -> Corpus:
        """Cut the input into the units that scoring makes of it."""
        keep = None if self.run.keep is None else tuple(self.run.keep)
        corpus = shards.plan(input_path, self.run.text_columns, keep, self.run.scored_columns, self.input_version)
        return shards.limit_rows(corpus, self.run.limit) if self.run.limit else corpus


def draw_sample(units: list[Unit], rows: int, rng: random.Random) -> dict[Unit, Unit]:
    """Draw at least `rows` rows, or all that there are: parts of up to `PART_ROWS`, each with its unit."""
    ends = list(itertools.accumulate(-(-unit.rows // PART_ROWS) for unit in units))  # number of the last part, plus 1
    parts_in_all = ends[-1] if ends else 0
    sample: dict[Unit, Unit] = {}
    drawn_rows = 0
    for number in rng.sample(range(parts_in_all), min(rows, parts_in_all)):
        if drawn_rows >= rows:
            break
        unit = units[i := bisect.bisect_right(ends, number)]
        start = unit.start + PART_ROWS * (number - (ends[i - 1] if i else 0))
        stop = min(unit.stop, start + PART_ROWS)
        text_bytes = unit.text_bytes * (stop - start) // unit.rows
        sample[replace(unit, start=start, stop=stop, text_bytes=text_bytes)] = unit
        drawn_rows += stop - start
    return sample
