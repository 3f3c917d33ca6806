"""Search for settings: Ray Tune runs trainings with settings taken at random and stops those that fall behind (ASHA: Li
et al. 2020, A System for Massively Parallel Hyperparameter Tuning). The best one's bundle is kept.
"""

import json
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ray import cloudpickle
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

from sentiment_core.config import check, parse_value, setting
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, encoder
from sentiment_core.runtime import cluster, connection, preflight, storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.training.job import TrainSettings, read_parts, train, unfinished, unfinished_place

# in the environment of whoever runs trials: relative paths keep their meaning, Ctrl-C stops the search, no boxes, no
# stack traces besides our line, and trials may end without a word: those that a search which broke off had all but done
os.environ |= {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}

KEEP_ONE_IN = 2  # of the trials that come to each of ASHA's rungs, after 1, 2, 4, ... epochs
TRIAL_BYTES = 2**30  # of memory, for what runs a trial beside its workers
TRIALS = "trials"  # of the search's folder: where their bundles are
PICTURE, LOG = "tuning.png", "tuning.jsonl"  # in the bundle
# what trials could not be compared by, or would overwrite
NO_SEARCH = ("data", "eval_data", "model", "out", "tensorboard", "label_names", "epochs", "select_by", "workers")


@dataclass(frozen=True)
class TuneSettings(TrainSettings):
    search: tuple[str, ...] = setting(
        (
            "lr=1e-5..2e-4",
            "head_lr=1e-4..2e-3",
            "batch_size=16/32/64",
            "dropout=0/0.1",
            "adversarial=0/1",
            "ema_decay=0/0.999",
        ),
        "what to search: NAME=LOW..HIGH (taken evenly on a logarithmic scale) or NAME=A/B/C",
        "S,S",
    )
    trials: int = setting(16, "trainings to begin")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.trials >= 1, "trials", self.trials, "1 or more")
        for name, domain in self.space().items():
            for value in domain:
                replace(self.base(), **{name: value})  # type: ignore[arg-type]  # refuses what a training would

    def base(self) -> TrainSettings:
        """What all trials have in common."""
        return TrainSettings(**{field.name: getattr(self, field.name) for field in fields(TrainSettings)})

    def space(self) -> dict[str, list | tuple[float, float]]:
        """By setting, the values to choose from, or the two ends of a range."""
        return dict(map(_domain, self.search))


def _domain(text: str) -> tuple[str, list | tuple[float, float]]:
    """One part of --search. Raises `UserError`."""
    name, _, values = text.partition("=")
    name = name.strip().replace("-", "_")
    known = {field.name for field in fields(TrainSettings)} - set(NO_SEARCH)
    check(name in known, "search", text, f"NAME=LOW..HIGH or NAME=A/B/C, the name one of {', '.join(sorted(known))}")
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


def tune(settings: TuneSettings) -> str:
    """Search and write the best bundle; returns a few lines for the terminal. Raises `UserError`."""
    preflight.check_lasting(settings.out)
    bundle.check_free(settings.out, _begun(unfinished_place("_tuning-", settings.out)))
    encoder.fetch(settings.model)  # what can be said now no trial need find out
    read_parts(settings)
    connection.connect_for(settings.workers, storage.parent(settings.out))
    with unfinished("_tuning-", settings.out, asdict(settings), _begun) as work:
        results = _search(settings, work)
        trials = [_record(result, settings.space(), storage.join(work, TRIALS)) for result in results]
        done = [trial for trial in trials if trial["finished"]]
        if not done:
            error = next(_cause(error) for result in results if (error := result.error))
            if isinstance(error, UserError):
                storage.delete_folder(work)  # the same would come of it again
            raise error
        best = max(done, key=lambda trial: max(trial["scores"]))
        from sentiment_core.report import figures

        extra = {
            PICTURE: figures.to_png(figures.search_results(trials, settings.select_by)),
            LOG: "".join(json.dumps(trial) + "\n" for trial in trials).encode(),
        }
        bundle.copy(storage.join(work, TRIALS, best["id"]), settings.out, extra)
    return _summary(settings, trials, best)


def _begun(work: str) -> bool:
    return storage.exists(storage.join(work, "run"))


def _search(settings: TuneSettings, work: str) -> Any:
    filesystem, path = storage.locate(work)
    base, places = settings.base(), storage.absolute(storage.join(work, TRIALS))
    at_once = max(1, cluster.max_devices("GPU") // settings.workers) if cluster.device_kind() == "GPU" else 1
    tidies = cluster.has_dashboard()

    def trial(config: dict) -> None:
        if not tidies and at_once == 1:
            cluster.free_reserved_cpus()  # by a trial that was stopped
        id = ray_tune.get_context().get_trial_id()
        place = storage.join(places, id)
        if not storage.exists(storage.join(place, bundle.CARD)):  # else the search broke off before it knew
            curves = base.tensorboard and storage.join(base.tensorboard, id)
            train(replace(base, **config, tensorboard=curves), place, Reported(base.select_by))

    # memory, as Tune insists on something, and CPUs are for the workers that a trial starts; on the head, as jobs are
    trainable = ray_tune.with_resources(trial, {"memory": TRIAL_BYTES, "node:__internal_head__": 0.001})
    space = {
        name: ray_tune.choice(domain) if isinstance(domain, list) else ray_tune.loguniform(*domain)
        for name, domain in settings.space().items()
    }
    where = storage.join(path, "run")
    if ray_tune.Tuner.can_restore(where, storage_filesystem=filesystem):
        tuner = ray_tune.Tuner.restore(
            where, trainable, resume_errored=True, param_space=space, storage_filesystem=filesystem
        )
    else:
        asha = ASHAScheduler(
            time_attr="epoch", max_t=settings.epochs, reduction_factor=KEEP_ONE_IN, stop_last_trials=False
        )
        tuner = ray_tune.Tuner(
            trainable,
            param_space=space,
            tune_config=ray_tune.TuneConfig(
                metric="score",
                mode="max",
                scheduler=asha if tidies or at_once == 1 else None,  # what others reserve cannot be told apart
                search_alg=BasicVariantGenerator(max_concurrent=at_once, random_state=settings.seed),
                num_samples=settings.trials,
            ),
            run_config=ray_tune.RunConfig(
                name="run", storage_path=path, storage_filesystem=filesystem, verbose=0, callbacks=[Told(settings)]
            ),
        )
    return tuner.fit()


class Reported:
    """Tells Ray Tune of each epoch."""

    def __init__(self, select_by: str) -> None:
        self.select_by = select_by

    def log(self, step: int, values: dict[str, float]) -> None:
        if "epoch" in values:
            score = values[f"eval/{self.select_by}"]
            ray_tune.report({"epoch": int(values["epoch"]), "score": -score if self.select_by == "loss" else score})

    def end(self, done: bool) -> None:
        pass


class Told(ray_tune.Callback):
    """A line for each epoch of each trial."""

    def __init__(self, settings: TuneSettings) -> None:
        self.settings = settings

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if "epoch" not in result:
            return
        score = f"{self.settings.select_by} {abs(result['score']):.4f}"
        self._say(trials, trial, f"epoch {result['epoch']}: {score} with {_told(trial.config)}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        reason = ""
        if trial.pickled_error_file:  # on this node; where results are kept it is only later
            with open(trial.pickled_error_file, "rb") as file:
                reason = ": " + describe_error(_cause(cloudpickle.load(file)))
        self._say(trials, trial, "failed" + reason)

    def _say(self, trials: list, trial: Any, what: str) -> None:
        print(f"tune: trial {trials.index(trial) + 1} of {self.settings.trials}, {what}", file=sys.stderr, flush=True)


def _record(result: Any, names: Iterable[str], places: str) -> dict:
    """Of a trial: its id, what it was given by `names`, its score after each epoch, and whether it came to a bundle.
    That knows best: Tune forgets what it was told before it was killed."""
    id = result.metrics["trial_id"]
    place = storage.join(places, id)
    if storage.exists(storage.join(place, bundle.CARD)):
        given = bundle.read_info(place).training["settings"]
        log = map(json.loads, storage.read_file(storage.join(place, bundle.LOG)).splitlines())
        scores = [record["selected_by"] for record in log]
        return {"id": id, "settings": {name: given[name] for name in names}, "scores": scores, "finished": True}
    table = result.metrics_dataframe  # empty where nothing was reported
    scores = [] if table.empty else table.drop_duplicates("epoch", keep="last")["score"].tolist()
    return {"id": id, "settings": result.config or {}, "scores": scores, "finished": False}


def _cause(error: Exception) -> Exception:
    """A user's mistake as it was raised in the trial."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, UserError) else error


def _told(config: dict) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value:.3g}" if isinstance(value, float)
                    else f"--{name.replace('_', '-')} {value}" for name, value in config.items())  # fmt: skip


def _summary(settings: TuneSettings, trials: list[dict], best: dict) -> str:
    lines = [f"{settings.select_by:>9}  epochs  settings"]
    for trial in sorted(trials, key=lambda t: -max(t["scores"], default=-math.inf)):
        score = f"{abs(max(trial['scores'])):9.4f}" if trial["scores"] else f"{'failed':>9}"
        lines.append(f"{score}  {len(trial['scores']):6}  {_told(trial['settings'])}")
    return "\n".join([*lines, f"best: {_told(best['settings'])}", f"bundle: {settings.out}"])
