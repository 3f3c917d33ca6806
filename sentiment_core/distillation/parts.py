"""Put the training and the evaluation rows of a student together."""

from dataclasses import dataclass, replace

import numpy as np

from sentiment_core.data import labelled, splits
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import LabelScheme, parse_mapping
from sentiment_core.distillation.settings import DistillSettings
from sentiment_core.errors import UserError
from sentiment_core.model.distillation_record import TaughtTexts
from sentiment_core.model.known_texts import hash_text

TEACHER_SHARE = 0.5  # of what a labelled text teaches; the rest is its label


@dataclass(frozen=True)
class LabelledParts:
    """The rows with labels: to learn, and to evaluate on. None: there are none."""

    train: LabelledTexts | None
    evaluation: LabelledTexts | None


@dataclass(frozen=True)
class StudentParts:
    """All rows of a student's training, and what became of the texts."""

    train: LabelledTexts
    evaluation: LabelledTexts
    texts: TaughtTexts
    labelled_rows: int  # learned with their labels
    is_by_teacher: bool  # the evaluation rows have the teacher's labels


def read_labelled(settings: DistillSettings, scheme: LabelScheme) -> LabelledParts:
    """Read `--data` and `--eval-data`, with the teacher's labels; without the latter hold out a part of the former.

    Raises `UserError`, also for a label that the teacher does not have.
    """
    scheme = replace(scheme, mapping=scheme.mapping | parse_mapping(settings.label_map))
    data, evaluation = (
        labelled.read(path, settings.columns, scheme) if path else None for path in (settings.data, settings.eval_data)
    )
    if data and not evaluation:
        return LabelledParts(*splits.hold_out(data, settings.eval_fraction, settings.seed))
    return LabelledParts(data, evaluation)


def make_parts(settings: DistillSettings, answers: LabelledTexts, rows: LabelledParts) -> StudentParts:
    """Divide the texts with their answers, and join them with the rows that have labels.

    Equal texts are learned once. Texts of evaluation rows are left out. A text with a label is learned by the mean of
    the label and the teacher's probabilities; if the teacher gave labels only, by its own label. Raises `UserError`
    where no text is left, or too few to hold some out.
    """
    unknown, labelled_texts = _hash_texts(rows.evaluation), _hash_texts(rows.train)
    chosen: dict[bytes, int] = {}
    with_label: dict[bytes, np.ndarray] = {}  # (labels,) probabilities, of texts that have a label
    evaluation_texts = known_texts = 0
    for number, text in enumerate(answers.texts):
        digest = hash_text(text)
        if digest in unknown:
            evaluation_texts += 1
        elif digest in labelled_texts:
            known_texts += 1
            if answers.soft_labels is not None:
                with_label.setdefault(digest, answers.soft_labels[number])
        else:
            chosen.setdefault(digest, number)
    if not chosen and not with_label:
        raise UserError(
            f"--texts {settings.texts} has no text that is not in --data or --eval-data. Give texts without labels."
        )
    taught = answers.take(np.array(list(chosen.values()), np.int64))
    remark = f"{evaluation_texts:,} rows of --texts have texts of evaluation rows and were left out"
    taught = replace(
        taught,
        origin=replace(
            taught.origin, rows=len(taught), remarks=[*taught.origin.remarks, *[remark] * (evaluation_texts > 0)]
        ),
    )
    evaluation = rows.evaluation
    if evaluation is None:
        taught, evaluation = splits.hold_out(taught, settings.eval_fraction, settings.seed)
    dropped = answers.origin.dropped
    texts = TaughtTexts(
        settings.texts,
        len(taught),
        dropped.without_text + dropped.without_label,
        len(answers) - evaluation_texts - known_texts - len(chosen),
        evaluation_texts,
        known_texts,
        taught.fingerprint(),
    )
    train = _join(rows.train, taught, with_label) if rows.train else taught
    return StudentParts(train, evaluation, texts, len(rows.train or ()), rows.evaluation is None)


def _hash_texts(data: LabelledTexts | None) -> set[bytes]:
    return {hash_text(text) for text in data.texts} if data else set()


def _join(data: LabelledTexts, taught: LabelledTexts, with_label: dict[bytes, np.ndarray]) -> LabelledTexts:
    """Join labelled rows and taught ones. A label is a probability of 1.

    Files and rows are no longer known; the origin is that of the labelled rows, which tells how labels met classes.
    `with_label` has the teacher's probabilities of labelled texts, by the hashes of these.
    """
    labels = np.concatenate([data.labels, taught.labels])
    soft_labels = None
    if taught.soft_labels is not None:
        certain = data.labels if data.several else np.eye(len(data.label_names))[data.labels]
        soft_labels = np.concatenate([certain.astype(np.float32), taught.soft_labels])
        for row, text in enumerate(data.texts):
            answer = with_label.get(hash_text(text))
            if answer is not None:
                soft_labels[row] += TEACHER_SHARE * (answer - soft_labels[row])
    remarks = [*data.origin.remarks, *taught.origin.remarks]
    return LabelledTexts(
        data.texts + taught.texts,
        labels,
        data.label_names,
        replace(data.origin, remarks=remarks),
        samples=data.samples,
        soft_labels=soft_labels,
    )
