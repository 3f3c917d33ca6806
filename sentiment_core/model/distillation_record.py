"""The record in a distilled bundle: who taught it, on which texts, and how student and teacher compare."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sentiment_core.model.records import Record

Answers = Literal["probabilities", "labels"]


@dataclass(frozen=True)
class ComparedModel(Record):
    """Figures of a student or its teacher on the evaluation rows."""

    accuracy: float | None = None  # None: the rows have the teacher's labels
    ece: float | None = None  # expected calibration error; None as for the accuracy
    rows_per_second: float = 0.0  # on the machine that made the bundle, of the same rows


@dataclass(frozen=True)
class TaughtTexts(Record):
    """The texts that a teacher answered, and those that were left out."""

    place: str = ""  # path or URI
    rows: int = 0  # that the student learned, distinct
    without_answer: int = 0  # no text, or nothing to score in it
    copies: int = 0  # of other texts
    evaluation_texts: int = 0  # left out: evaluation rows have them
    # not among `rows`: rows of --data have them; learned by both, if the answers are probabilities
    labelled_texts: int = 0
    fingerprint: str = ""  # sha256 of the learned texts with their answers


@dataclass(frozen=True)
class Distillation(Record):
    """A bundle's teacher, the texts, and how student and teacher compare. Empty: nobody taught it."""

    teacher: str = ""  # path of its bundle, name on the hub and revision, or the file of its answers
    teacher_bundle: str | None = None  # digest; None: only its answers were there
    answers: Answers = "probabilities"
    texts: TaughtTexts = field(default_factory=TaughtTexts)
    labelled_rows: int = 0  # of --data, learned with their labels
    evaluated_on: Literal["labels", "teacher"] = "labels"  # teacher: evaluation rows have the teacher's labels
    rows: int = 0  # evaluation rows that were compared
    agreement: float | None = None  # share of these with the same decision; None: the teacher was not at hand
    student: ComparedModel = field(default_factory=ComparedModel)
    teacher_shows: ComparedModel | None = None  # None: as for the agreement

    @property
    def is_by_teacher(self) -> bool:
        """True if the evaluation rows have the teacher's labels, so that metrics are agreement with it."""
        return self.evaluated_on == "teacher"

    @classmethod
    def _fields_in(cls, content: dict[str, Any]) -> dict[str, Any]:
        shown = content.get("teacher_shows")
        return super()._fields_in(content) | {
            "texts": TaughtTexts.from_json(content.get("texts", {})),
            "student": ComparedModel.from_json(content.get("student", {})),
            "teacher_shows": None if shown is None else ComparedModel.from_json(shown),
        }

    def describe(self) -> list[str]:
        """Describe what was learned, and how student and teacher compare, in lines for the terminal."""
        learned = f"taught by {self.teacher}: {self.texts.rows:,} texts of {self.texts.place}"
        both = f" ({self.texts.labelled_texts:,} texts have both)" if self.texts.labelled_texts else ""
        lines = [learned + (f", and {self.labelled_rows:,} rows with labels{both}" if self.labelled_rows else "")]
        if self.is_by_teacher:
            lines.append("the evaluation rows have the teacher's labels: accuracy is agreement with the teacher")
        if self.agreement is not None:
            lines.append(f"agreement of student and teacher: {self.agreement:.4f} of {self.rows:,} evaluation rows")
        models = {"student": self.student} | ({"teacher": self.teacher_shows} if self.teacher_shows else {})
        return lines + [f"{name}: {_describe_model(model)}" for name, model in models.items()]

    def to_json(self) -> dict[str, Any]:
        """Return the record for `json.dumps`."""
        return {name: value for name, value in asdict(self).items() if value is not None} if self.teacher else {}


def _describe_model(model: ComparedModel) -> str:
    parts = [] if model.accuracy is None else [f"accuracy {model.accuracy:.4f}"]
    parts += [] if model.ece is None else [f"calibration error {model.ece:.4f}"]
    return ", ".join([*parts, f"{model.rows_per_second:,.1f} rows/s"])
