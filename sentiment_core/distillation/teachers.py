"""Find the teacher, and its answers to the texts: it scores them, or they are there already."""

from dataclasses import dataclass, replace

import numpy as np

from sentiment_core.analysis import scored_rows
from sentiment_core.analysis.scored_rows import OpenedOutput
from sentiment_core.data.column_search import is_folder
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import LabelScheme
from sentiment_core.data.origin import DataOrigin
from sentiment_core.distillation.answer_file import read_answers
from sentiment_core.distillation.settings import DistillSettings, NothingToLearn
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, registry, source
from sentiment_core.model.distillation_record import Answers
from sentiment_core.model.source import OpenedModel
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import UNREADABLE, describe_error
from sentiment_core.scoring import job, outputs
from sentiment_core.scoring.outputs import Output
from sentiment_core.scoring.plan import ScorePlan, plan_scoring
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.text.arrow import join_texts

PREFIX = "teacher_answers_"  # of the scored columns, so that texts may have columns of any name


class ScoringStopped(Exception):
    """The teacher's scoring broke off. `exit_code` is that of `sentiment-core score`."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Teacher:
    """A teacher: a model, or someone who left answers."""

    name: str  # path of its bundle, name on the hub and revision, or the file of its answers
    scheme: LabelScheme  # by which labelled data meets its labels
    text_columns: tuple[str, ...]
    digest: str | None = None  # of its bundle
    model: OpenedModel | None = None  # None: only its answers are there
    answers: LabelledTexts | None = None  # that were read already
    scored: OpenedOutput | None = None  # or that stand in an output of score
    remarks: tuple[str, ...] = ()  # what to know about that output

    @property
    def label_names(self) -> list[str]:
        """The labels of its answers, in their order."""
        return self.scheme.names or []

    @property
    def kind_of_answers(self) -> Answers:
        """Labels, or how probable labels are."""
        return "labels" if self.answers is not None and self.answers.soft_labels is None else "probabilities"


def open_teacher(settings: DistillSettings) -> Teacher:
    """Open the teacher: a model that is to score, one that has scored, or the file of someone's answers.

    Raises `UserError`.
    """
    if settings.teacher:
        try:
            model = source.open_model(registry.resolve(settings.teacher))
        except UserError as error:
            raise UserError(str(error).replace("--model", "--teacher")) from None
        columns = settings.text_column or model.info.text_columns
        return Teacher(model.path, model.info.label_scheme, columns, bundle.digest_of(model.files), model)
    if is_folder(settings.texts) and outputs.read_run_file(settings.texts) is not None:
        return _open_scored(settings)
    columns = settings.text_column or ("text",)
    answers = read_answers(replace(settings, text_column=columns))
    return Teacher(answers.origin.place, answers.scheme, columns, answers=answers)


def _open_scored(settings: DistillSettings) -> Teacher:
    """Open an output of score, and the model that made it, if that is where it was. Raises `UserError`."""
    run_file = outputs.read_run_file(settings.texts)
    names = [model.model for model in run_file.run.columns_of_models] if run_file else []
    if len(names) > 1:
        raise UserError(
            f"--texts {settings.texts} was scored by several models ({', '.join(names)}); expected one teacher. Score "
            "the texts with that model alone, or give it as --teacher."
        )
    try:
        opened = scored_rows.open_output(settings.texts, names[0] or None)
    except UserError as error:
        raise UserError(str(error).replace("--scored", "--texts")) from None
    name, run = opened.run_file.paths.get(names[0], settings.texts), opened.run_file.run
    digest = run.bundles[names[0]]
    if not run.probabilities:
        raise UserError(
            f"--texts {settings.texts} was scored without probabilities. Score again with --probabilities, or give "
            "--teacher and the texts."
        )
    try:
        model = source.open_model(name)
    except UserError:
        model = None
    model = model if model and bundle.digest_of(model.files) == digest else None
    opened, remarks = _keep_outputs_of(settings, opened, digest)
    columns = settings.text_column or tuple(run.text_columns)
    scheme = model.info.label_scheme if model else LabelScheme(opened.labels, several=opened.several)
    return Teacher(name, scheme, columns, digest, model, scored=opened, remarks=remarks)


def _keep_outputs_of(
    settings: DistillSettings, opened: OpenedOutput, digest: str
) -> tuple[OpenedOutput, tuple[str, ...]]:
    """Leave out what other bundles scored, and return remarks about that and about missing rows. Raises `UserError`."""
    name, remarks = opened.model.model, []
    own = [output for output in opened.outputs if output.origin and output.origin.run.bundles.get(name) == digest]
    if not own:
        raise UserError(
            f"--texts {settings.texts} has only outputs of earlier bundles of its model. Run sentiment-core score "
            "again."
        )
    if left_out := opened.rows - sum(output.rows for output in own):
        remarks.append(f"{left_out:,} rows of --texts were scored by earlier bundles and were left out")
    if opened.missing_rows:
        remarks.append(
            f"{opened.missing_rows:,} rows are missing in --texts {settings.texts}. Run sentiment-core score again to "
            "learn them, too."
        )
    elif not storage.exists(storage.join(opened.folder, outputs.SUCCESS_FILE)):
        remarks.append(
            f"--texts {settings.texts} is not complete. Run sentiment-core score again to learn all of its input."
        )
    labels = {label: None for output in own if output.counts for label in output.counts.models[name].labels.value}
    return replace(opened, outputs=own, labels=list(labels)), tuple(remarks)


def plan_answers(settings: DistillSettings, teacher: Teacher, folder: str) -> ScorePlan | None:
    """Plan the scoring of the texts into a folder; None if there are answers already. Raises `UserError`."""
    if teacher.answers is not None or teacher.scored is not None or settings.teacher is None:
        return None
    try:
        return plan_scoring(
            ScoreSettings(
                model=registry.resolve(settings.teacher),
                input=settings.texts,
                out=folder,
                text_column=teacher.text_columns,
                keep=teacher.text_columns,
                probabilities=True,
                prefix=PREFIX,
                prune=True,
                device=settings.device,
            )
        )
    except UserError as error:
        raise UserError(str(error).replace("--input", "--texts").replace("--model", "--teacher")) from None


def score_texts(plan: ScorePlan) -> list[str]:
    """Score what is not scored yet, and return what to know about it.

    Raises `UserError` as scoring does, and `ScoringStopped`.
    """
    result = job.score(plan)
    record = result.record
    if record.stopped:
        raise ScoringStopped(
            f"the teacher's scoring of --texts stopped: {record.stopped}; finished files are kept; rerun the same "
            "command to resume",
            result.exit_code,
        )
    return [f"{shard.source} of --texts could not be scored: {shard.reason}" for shard in record.failed_shards]


def collect_answers(
    settings: DistillSettings, teacher: Teacher, plan: ScorePlan | None, remarks: list[str]
) -> LabelledTexts:
    """Return the texts with the teacher's answers; rows without text or answer are left out and counted.

    Args:
        settings: The request.
        teacher: The teacher.
        plan: The plan by which it has scored for this run, if it has.
        remarks: What to know about that scoring.

    Raises:
        NothingToLearn: There is no text with an answer.
        UserError: An output cannot be read.
    """
    if teacher.answers is not None:
        return teacher.answers
    if teacher.scored is not None:
        return _read_scored(settings, teacher, teacher.scored, list(teacher.remarks))
    assert plan is not None, "a teacher without answers scores"
    try:
        opened = scored_rows.open_output(plan.output_folder)
    except scored_rows.NothingScored:
        raise NothingToLearn(settings, remarks[0] if remarks else "") from None
    # where shards failed, outputs of deleted and changed ones are still there
    current = [output for output in opened.outputs if output.path not in plan.outputs_to_delete]
    return _read_scored(settings, teacher, replace(opened, outputs=current), remarks)


def _read_scored(
    settings: DistillSettings, teacher: Teacher, opened: OpenedOutput, remarks: list[str]
) -> LabelledTexts:
    """Read texts and probabilities from an output of score.

    Where rows have several labels, those that abstained are left out: nothing says which labels they get.
    """

    def read(output: Output) -> tuple[list[str], np.ndarray, np.ndarray, int]:
        try:
            table = outputs.read_output(opened.folder, output.path, list(teacher.text_columns))
        except UNREADABLE as error:
            raise UserError(f"{output.path} of {opened.folder} cannot be read: {describe_error(error)}") from None
        missing = [name for name in teacher.text_columns if name not in table.column_names]
        if missing:
            raise UserError(
                f"--texts {opened.folder} has no column {missing[0]!r}: score keeps no texts unless asked to. Score "
                f"with --keep {','.join(teacher.text_columns)}, or choose with --text-column."
            )
        texts = join_texts([table[name].combine_chunks() for name in teacher.text_columns])
        batch = scored_rows.read_batch(opened, output, with_probabilities=True)
        assert batch.probabilities is not None, "it was scored with probabilities"
        has_answer = batch.has_label if opened.several else batch.has_text
        rows = np.flatnonzero(has_answer)
        probabilities = batch.probabilities[rows]
        return [texts[i] or "" for i in rows.tolist()], probabilities, batch.labels[rows], len(texts) - len(rows)

    parts = list(scored_rows.map_outputs(read, opened.outputs))
    texts = [text for own_texts, *_ in parts for text in own_texts]
    if not texts:
        raise NothingToLearn(settings)
    order = [opened.labels.index(name) for name in teacher.label_names]
    probabilities = np.concatenate([part[1] for part in parts])[:, order]
    labels = np.concatenate([part[2] for part in parts])[:, order] if opened.several else probabilities.argmax(axis=1)
    scheme, without_answer = teacher.scheme, sum(part[3] for part in parts)
    origin = DataOrigin(settings.texts, files=len(parts), rows=len(texts), remarks=remarks)
    origin = replace(origin, numbered=scheme.numbered, label_map=scheme.mapping)
    origin = replace(origin, dropped=replace(origin.dropped, without_text=without_answer))
    return LabelledTexts(texts, labels, teacher.label_names, origin, soft_labels=probabilities)
