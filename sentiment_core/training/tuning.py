"""Search for good settings: run trainings with random settings, stop those that fall behind, keep the best bundle.

Ray Tune runs the trials; ASHA stops them (Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning).
"""

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ray import cloudpickle
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

from sentiment_core.config import check, defaults_of, flag_of, parse_value, setting
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, classifier, encoder
from sentiment_core.runtime import cluster, connection, preflight, storage
from sentiment_core.runtime.environment import variables_set
from sentiment_core.runtime.failures import describe_error
from sentiment_core.training.data import hold_out_always, read_parts
from sentiment_core.training.job import train
from sentiment_core.training.recipe import choose_recipe
from sentiment_core.training.resume import ResumableRun
from sentiment_core.training.settings import TrainSettings

# Read by Ray Tune in the driver: relative paths keep their meaning, Ctrl-C stops the search, there are no boxes and no
# stack traces besides our line, and a trial may end without a report, as one that a stopped search had all but finished.
VARIABLES = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}

KEEP_ONE_IN = 2  # of the trials that come to each of ASHA's rungs, after 1, 2, 4, ... epochs
TRIAL_BYTES = 2**30  # of memory, for what runs a trial beside its workers
TRIALS = "trials"  # folder of the trials' bundles, in the search's folder
PICTURE, LOG = "tuning.png", "tuning.jsonl"  # in the bundle
# settings by which trials could not be compared, or that they would overwrite
NOT_SEARCHED = (
    "data",
    "eval_data",
    "model",
    "out",
    "tensorboard",
    "text_column",
    "label_column",
    "label_names",
    "label_map",
    "label_separator",
    "min_label_rows",
    "eval_fraction",
    "seed",
    "csv_separator",
    "csv_encoding",
    "device",
    "epochs",
    "select_by",
    "workers",
)

Domain = list | tuple[float, float]  # values to choose from, or the two ends of a range


@dataclass(frozen=True)
class TuneSettings(TrainSettings):
    """Settings of a search, besides those that all trials share."""

    search: tuple[str, ...] = setting(
        (
            "lr=1e-5..2e-4",
            "head_lr=1e-4..2e-3",
            "batch_size=16/32/64",
            "dropout=0/0.1",
            "adversarial=0/1",
            "ema_decay=0/0.999",
        ),
        "what to search: NAME=LOW..HIGH (sampled on a logarithmic scale) or NAME=A/B/C",
        "S,S",
        group="optimization",
    )
    trials: int = setting(16, "trials to start", group="optimization")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.trials >= 1, "trials", self.trials, "1 or more")
        metrics = "accuracy, macro_f1 or loss, by which trials are compared"
        check(self.select_by != "last", "select_by", self.select_by, metrics)
        for name, domain in self.space().items():
            for value in domain:
                replace(self.base(), **{name: value})  # type: ignore[arg-type]  # refuses what a training would

    def base(self) -> TrainSettings:
        """Return the settings that all trials share."""
        return TrainSettings(**{field.name: getattr(self, field.name) for field in fields(TrainSettings)})

    def space(self) -> dict[str, Domain]:
        """Return the domain of each setting to search."""
        return dict(map(_parse_domain, self.search))


@dataclass(frozen=True)
class TrialRecord:
    """A line of `tuning.jsonl`."""

    id: str
    settings: dict[str, Any]  # those that were searched
    scores: list[float]  # after each epoch; more is better
    finished: bool  # it has a bundle


def tune(settings: TuneSettings) -> str:
    """Search, and write the best bundle.

    Returns a few lines for the terminal. Raises `UserError` if the request cannot be carried out.
    """
    preflight.check_lasting(settings.out)
    run = ResumableRun.of_search(settings.out)
    bundle.check_free(settings.out, run.has_checkpoint)
    start_from = encoder.fetch(settings.model)  # what can be refused now no trial need find out
    settings = hold_out_always(settings)
    train_part, eval_part = read_parts(settings)
    labels = train_part.label_names
    try:
        config = classifier.make_config(start_from.folder, labels)
    except (OSError, ValueError) as problem:
        raise UserError(f"--model {settings.model} cannot be loaded: {' '.join(str(problem).split())[:300]}") from None
    assert eval_part is not None  # since it is held out always
    epochs = choose_recipe(settings.base(), config, len(train_part), len(labels), len(eval_part)).epochs
    settings = replace(settings, epochs=epochs)  # the same for all trials, so that they can be compared
    score = _score_name(settings, train_part.several)
    connection.connect_for(settings.workers, storage.parent(settings.out), settings.device)
    rows = {"data_sha256": train_part.fingerprint(), "eval_data_sha256": eval_part.fingerprint()}
    with run.open(asdict(settings) | rows, defaults_of(settings)) as folder:
        with variables_set(VARIABLES):
            results = _search(settings, epochs, score, folder)
        trials = [_read_trial(result, settings.space(), storage.join(folder, TRIALS)) for result in results]
        finished = [trial for trial in trials if trial.finished]
        if not finished:
            error = next(_cause(error) for result in results if (error := result.error))
            if isinstance(error, UserError):
                storage.delete_folder(folder)  # a resumed search would end the same
            raise error
        best = max(finished, key=lambda trial: max(trial.scores))
        from sentiment_core.report import figures

        records = [asdict(trial) for trial in trials]
        extra = {
            PICTURE: figures.to_png(figures.draw_search_results(records, score)),
            LOG: "".join(json.dumps(record) + "\n" for record in records).encode(),
        }
        bundle.copy(storage.join(folder, TRIALS, best.id), settings.out, extra)
    return _summarize(settings, score, trials, best)


def _parse_domain(text: str) -> tuple[str, Domain]:
    """Parse one part of --search. Raises `UserError`."""
    name, _, values = text.partition("=")
    name = name.strip().replace("-", "_")
    names = {field.name for field in fields(TrainSettings)} - set(NOT_SEARCHED)
    check(
        name in names and values != "",
        "search",
        text,
        f"NAME=LOW..HIGH or NAME=A/B/C, with NAME one of {', '.join(sorted(names))}",
    )
    low, dots, high = values.partition("..")
    if not dots:
        return name, [parse_value(TrainSettings, name, value) for value in values.split("/")]
    ends = tuple(parse_value(TrainSettings, name, value) for value in (low, high))
    check(
        all(isinstance(end, float) for end in ends) and 0 < ends[0] < ends[1],
        "search",
        text,
        "two numbers above 0, the smaller first, of a setting that is not a whole number",
    )
    return name, ends


def _score_name(settings: TrainSettings, several: bool) -> str:
    """Name what trials are compared by: of several labels a row, micro-F1 stands for accuracy."""
    return "micro_f1" if several and settings.select_by == "accuracy" else str(settings.select_by)


def _search(settings: TuneSettings, epochs: int, score: str, folder: str) -> Any:
    """Run the trials, or resume a search; return Ray Tune's results. `score`: what they are compared by."""
    filesystem, path = storage.locate(folder)
    base, trials_path = settings.base(), storage.absolute(storage.join(folder, TRIALS))
    on_gpus = cluster.device_kind(settings.device) == "GPU"
    at_once = max(1, cluster.max_devices("GPU") // settings.workers) if on_gpus else 1
    ray_frees_reserved = cluster.has_dashboard()

    def trial(config: dict) -> None:
        if not ray_frees_reserved and at_once == 1:
            cluster.free_reserved_cpus()  # by a trial that was stopped
        trial_id = ray_tune.get_context().get_trial_id()
        trial_path = storage.join(trials_path, trial_id)
        if not storage.exists(storage.join(trial_path, bundle.CARD)):  # else a stopped search had not noticed it
            curves = base.tensorboard and storage.join(base.tensorboard, trial_id)
            train(replace(base, **config, tensorboard=curves), trial_path, EpochReporter(score), trials=settings.trials)

    # memory, as Tune insists on something, and CPUs are for the workers that a trial starts; on the head, as jobs are
    trainable = ray_tune.with_resources(trial, {"memory": TRIAL_BYTES, "node:__internal_head__": 0.001})
    space = {
        name: ray_tune.choice(domain) if isinstance(domain, list) else ray_tune.loguniform(*domain)
        for name, domain in settings.space().items()
    }
    run_path = storage.join(path, "run")
    if ray_tune.Tuner.can_restore(run_path, storage_filesystem=filesystem):
        tuner = ray_tune.Tuner.restore(
            run_path, trainable, resume_errored=True, param_space=space, storage_filesystem=filesystem
        )
    else:
        asha = ASHAScheduler(time_attr="epoch", max_t=epochs, reduction_factor=KEEP_ONE_IN, stop_last_trials=False)
        tuner = ray_tune.Tuner(
            trainable,
            param_space=space,
            tune_config=ray_tune.TuneConfig(
                metric="score",
                mode="max",
                # what several trials at once reserve cannot be told apart
                scheduler=asha if ray_frees_reserved or at_once == 1 else None,
                search_alg=BasicVariantGenerator(max_concurrent=at_once, random_state=settings.seed),
                num_samples=settings.trials,
            ),
            run_config=ray_tune.RunConfig(
                name="run",
                storage_path=path,
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[TrialPrinter(settings.trials, score)],
            ),
        )
    return tuner.fit()


class EpochReporter:
    """A tracker that reports each epoch's score to Ray Tune."""

    def __init__(self, score: str) -> None:
        self.score = score

    def log(self, step: int, values: dict[str, float]) -> None:
        """Report the score, where an epoch ends."""
        if "epoch" in values:
            value = values[f"eval/{self.score}"]
            ray_tune.report({"epoch": int(values["epoch"]), "score": -value if self.score == "loss" else value})

    def end(self, done: bool) -> None:
        """Do nothing: Tune sees a trial end."""


class TrialPrinter(ray_tune.Callback):
    """A callback that prints a line for each epoch of each trial."""

    def __init__(self, number_of_trials: int, score: str) -> None:
        self.number_of_trials, self.score = number_of_trials, score

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """Print an epoch's score."""
        if "epoch" not in result:
            return
        score = f"{self.score} {abs(result['score']):.4f}"
        self._print(trials, trial, f"epoch {result['epoch']}: {score} with {_as_flags(trial.config)}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Print why a trial failed."""
        reason = ""
        if trial.pickled_error_file:  # on this node; where results are stored it appears only later
            with open(trial.pickled_error_file, "rb") as file:
                reason = ": " + describe_error(_cause(cloudpickle.load(file)))
        self._print(trials, trial, "failed" + reason)

    def _print(self, trials: list, trial: Any, event: str) -> None:
        number = trials.index(trial) + 1
        print(f"tune: trial {number} of {self.number_of_trials}, {event}", file=sys.stderr, flush=True)


def _read_trial(result: Any, names: Iterable[str], trials_path: str) -> TrialRecord:
    """Read a trial's record: from its bundle, for Tune forgets what it heard before it was killed, or else from Tune."""
    trial_id = result.metrics["trial_id"]
    trial_path = storage.join(trials_path, trial_id)
    if storage.exists(storage.join(trial_path, bundle.CARD)):
        settings = bundle.read_info(trial_path).training.settings
        log = map(json.loads, storage.read_file(storage.join(trial_path, bundle.LOG)).splitlines())
        scores = [record["selected_by"] for record in log]
        return TrialRecord(trial_id, {name: settings[name] for name in names}, scores, finished=True)
    table = result.metrics_dataframe  # empty where nothing was reported
    scores = [] if table.empty else table.drop_duplicates("epoch", keep="last")["score"].tolist()
    return TrialRecord(trial_id, result.config or {}, scores, finished=False)


def _cause(error: Exception) -> Exception:
    """Return a user's mistake as it was raised in the trial; any other error as it is."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, UserError) else error


def _as_flags(config: dict[str, Any]) -> str:
    words = []
    for name, value in config.items():
        words += [flag_of(name), f"{value:.3g}" if isinstance(value, float) else str(value)]
    return " ".join(words)


def _summarize(settings: TuneSettings, score_name: str, trials: list[TrialRecord], best: TrialRecord) -> str:
    """Return a table of all trials, the best first, for the terminal."""
    lines = [f"{score_name:>9}  epochs  settings"]
    for trial in sorted(trials, key=lambda trial: -max(trial.scores, default=-math.inf)):
        score = f"{abs(max(trial.scores)):9.4f}" if trial.scores else f"{'failed':>9}"
        lines.append(f"{score}  {len(trial.scores):6}  {_as_flags(trial.settings)}")
    return "\n".join([*lines, f"best: {_as_flags(best.settings)}", f"bundle: {settings.out}"])
