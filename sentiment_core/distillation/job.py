"""Distill: a teacher scores texts, a student learns its answers, and both are compared."""

import json
from dataclasses import asdict, dataclass, replace

from sentiment_core.distillation import comparison, teachers
from sentiment_core.distillation.parts import StudentParts, make_parts, read_labelled
from sentiment_core.distillation.settings import DistillSettings
from sentiment_core.distillation.teachers import Teacher
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, encoder, layer_cut, source
from sentiment_core.model.distillation_record import Distillation
from sentiment_core.model.records import EpochRecord, GuaranteeGrid
from sentiment_core.runtime import preflight, storage
from sentiment_core.training.job import TrainResult, train
from sentiment_core.training.resume import SCORED, STUDENT, ResumableRun


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
    start_from = encoder.fetch(settings.model)
    if settings.layers is not None:
        layer_cut.read_config(start_from, settings.layers)
    teacher = teachers.open_teacher(settings)
    settings = _take_over(settings, teacher)
    rows = read_labelled(settings, teacher.scheme)
    with run.open(asdict(settings) | {"teacher_sha256": teacher.digest}, {}) as folder:
        scored = storage.join(folder, SCORED)
        plan = teachers.plan_answers(settings, teacher, scored)
        remarks = teachers.score_texts(plan) if plan else []
        try:
            parts = make_parts(settings, teachers.collect_answers(settings, teacher, scored, remarks), rows)
        except UserError:
            storage.delete_folder(folder)  # a resumed run would end the same
            raise
        student = _train(settings, storage.join(folder, STUDENT), parts)
        return _publish(settings, teacher, parts, student)


def _take_over(settings: DistillSettings, teacher: Teacher) -> DistillSettings:
    """Return the settings with what they leave to the teacher."""
    info = teacher.model.info if teacher.model else None
    return replace(
        settings,
        text_column=teacher.text_columns,
        ordinal=settings.ordinal or bool(info and info.ordinal),
        label_separator=settings.label_separator or (info.label_separator if info else None),
    )


def _train(settings: DistillSettings, path: str, parts: StudentParts) -> TrainResult:
    """Train the student, or return the one that a run left which was stopped afterwards."""
    if storage.exists(storage.join(path, bundle.CARD)):
        info = bundle.read_info(path)
        trained_on = (info.training.data.fingerprint, info.training.eval_data.fingerprint)
        if trained_on == (parts.train.fingerprint(), parts.evaluation.fingerprint()):
            lines = storage.read_file(storage.join(path, bundle.LOG)).splitlines()
            return TrainResult(path, info, [EpochRecord.from_json(json.loads(line)) for line in lines])
        storage.delete_folder(path)  # the texts have changed since
    return train(settings, path, parts=(parts.train, parts.evaluation))


def _publish(settings: DistillSettings, teacher: Teacher, parts: StudentParts, student: TrainResult) -> DistillResult:
    """Compare student and teacher, and write the bundle."""
    compared = comparison.compare(
        source.open_model(student.place), teacher.model, parts.evaluation, parts.is_by_teacher
    )
    record = Distillation(
        teacher=teacher.name,
        teacher_bundle=teacher.digest,
        answers=teacher.kind_of_answers,
        texts=parts.texts,
        labelled_rows=parts.labelled_rows,
        evaluated_on="teacher" if parts.is_by_teacher else "labels",
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
