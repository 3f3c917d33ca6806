"""Distill: a teacher scores texts, a student learns its answers, and both are compared."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from sentiment_core.config import defaults_of
from sentiment_core.distillation import comparison, teachers
from sentiment_core.distillation.parts import LabelledParts, StudentParts, make_parts, read_labelled
from sentiment_core.distillation.settings import DistillSettings, NothingToLearn
from sentiment_core.distillation.teachers import Teacher
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, source
from sentiment_core.model.distillation_record import Distillation
from sentiment_core.model.objective import MultiLabel, SingleLabel
from sentiment_core.model.records import EpochRecord, GuaranteeGrid
from sentiment_core.runtime import preflight, storage
from sentiment_core.training import encoder_check
from sentiment_core.training.job import TrainResult, train
from sentiment_core.training.resume import SCORED, STUDENT, STUDENT_REQUEST, ResumableRun, find_differences


@dataclass(frozen=True)
class DistillResult(TrainResult):
    """A finished distillation: the student's training, and the comparison with the teacher."""

    def summary(self) -> str:
        """Return a few lines for the terminal."""
        return "\n".join([*self.info.distillation.describe(), super().summary()])


def distill(settings: DistillSettings) -> DistillResult:
    """Train a student on a teacher's answers, and write its bundle. The same call resumes.

    Raises `UserError` if the request cannot be carried out.
    """
    preflight.check_lasting(settings.out)
    run = ResumableRun.of_distillation(settings.out)
    bundle.check_free(settings.out, run.has_checkpoint)
    teacher = teachers.open_teacher(settings)
    settings = _take_over(settings, teacher)
    rows = read_labelled(settings, teacher.scheme)
    objective = MultiLabel() if teacher.scheme.several else SingleLabel(settings.ordinal)
    encoder_check.check_settings(settings, teacher.label_names, objective)
    with run.open(_describe_scoring(settings, teacher), defaults_of(settings)) as folder:
        parts = _make_parts(settings, teacher, rows, folder)
        student = _train(settings, teacher, folder, parts)
        return _publish(settings, teacher, parts, student)


def _describe_scoring(settings: DistillSettings, teacher: Teacher) -> dict[str, Any]:
    """Return what decides the scored texts. The student's settings may change: the texts need no scoring again."""
    return {"teacher_sha256": teacher.digest, "texts": settings.texts, "text_column": settings.text_column}


def _make_parts(settings: DistillSettings, teacher: Teacher, rows: LabelledParts, folder: str) -> StudentParts:
    """Let the teacher answer the texts, and divide them. Raises `UserError`."""
    plan = teachers.plan_answers(settings, teacher, storage.join(folder, SCORED))
    encoder_check.check_cluster(settings, folder)
    remarks = teachers.score_texts(plan) if plan else []
    with _delete_after(NothingToLearn, folder):
        answers = teachers.collect_answers(settings, teacher, plan, remarks)
    with _delete_after(UserError, folder):
        return make_parts(settings, answers, rows)


@contextlib.contextmanager
def _delete_after(refusal: type[UserError], folder: str) -> Iterator[None]:
    """Delete a run's folder after a refusal with which a resumed run would end, too."""
    try:
        yield
    except refusal:
        storage.delete_folder(folder)
        raise


def _take_over(settings: DistillSettings, teacher: Teacher) -> DistillSettings:
    """Return the settings with what they leave to the teacher."""
    info = teacher.model.info if teacher.model else None
    return replace(
        settings,
        text_column=teacher.text_columns,
        ordinal=settings.ordinal or bool(info and info.ordinal),
        label_separator=settings.label_separator or (info.label_separator if info else None),
    )


def _describe_teacher(teacher: Teacher, parts: StudentParts) -> Distillation:
    """Return the record of a student that is not compared with its teacher yet."""
    return Distillation(
        teacher=teacher.name,
        teacher_bundle=teacher.digest,
        answers=teacher.kind_of_answers,
        texts=parts.texts,
        labelled_rows=parts.labelled_rows,
        evaluated_on="teacher" if parts.is_by_teacher else "labels",
    )


def _train(settings: DistillSettings, teacher: Teacher, folder: str, parts: StudentParts) -> TrainResult:
    """Train the student, or return the one that a run left which was stopped afterwards.

    A student of other settings or rows is deleted.
    """
    path, noted = storage.join(folder, STUDENT), storage.join(folder, STUDENT_REQUEST)
    rows = {"data_sha256": parts.train.fingerprint(), "eval_data_sha256": parts.evaluation.fingerprint()}
    request, defaults = json.loads(json.dumps([asdict(settings) | rows, defaults_of(settings)]))  # as read again
    if find_differences(defaults | _read_noted(noted), request):
        storage.delete_folder(path)
        storage.delete_folder(ResumableRun.of_training(path).folder)
        storage.write_file(noted, json.dumps(request, indent=2).encode())
    if storage.exists(storage.join(path, bundle.CARD)):
        lines = storage.read_file(storage.join(path, bundle.LOG)).splitlines()
        return TrainResult(path, bundle.read_info(path), [EpochRecord.from_json(json.loads(line)) for line in lines])
    taught = _describe_teacher(teacher, parts)
    return train(settings, path, parts=(parts.train, parts.evaluation), distillation=taught)


def _read_noted(path: str) -> dict[str, Any]:
    """Read what was noted of an unfinished student; nothing if there is none."""
    try:
        return json.loads(storage.read_file(path))
    except (OSError, ValueError):
        return {}


def _publish(settings: DistillSettings, teacher: Teacher, parts: StudentParts, student: TrainResult) -> DistillResult:
    """Compare student and teacher, and write the bundle."""
    compared = comparison.compare(
        source.open_model(student.place),
        teacher.model,
        parts.evaluation,
        parts.is_by_teacher,
        on_cpu=settings.device == "cpu",
    )
    record = replace(
        _describe_teacher(teacher, parts),
        rows=compared.rows,
        agreement=compared.agreement,
        student=compared.student,
        teacher_shows=compared.teacher,
    )
    promised = GuaranteeGrid() if parts.is_by_teacher else student.info.guarantee
    info = replace(student.info, distillation=record, guarantee=promised)
    from sentiment_core.report import training_report  # matplotlib: a second that refusals do not need

    card = training_report.make_card(info, student.log)[training_report.CARD]
    content = json.dumps(info.to_json(), indent=2, ensure_ascii=False) + "\n"
    bundle.copy(student.place, settings.out, {bundle.CARD: content.encode(), training_report.CARD: card})
    return DistillResult(settings.out, info, student.log)
