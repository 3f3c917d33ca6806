"""Make the files of a bundle that are for people: report, model card and figures."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.figure import Figure

from sentiment_core.report import figures, html
from sentiment_core.report.model_card import describe_preprocessing, make_model_card, make_title

if TYPE_CHECKING:
    from sentiment_core.model.bundle import BundleInfo
    from sentiment_core.model.records import EpochRecord, ProblemType

PAGE, CARD = "report.html", "README.md"


class BundleFigure(NamedTuple):
    """A figure in a bundle's report and model card."""

    title: str
    file_name: str
    # of a `BundleInfo` with the metrics of its kind, and its records of epochs
    draw: Callable[[Any, Sequence["EpochRecord"]], Figure]
    of_training: bool = False  # it shows the epochs


# To add a figure, draw it in figures.py and add a line here.
COMMON_FIGURES = (
    BundleFigure(
        "Confidence histogram",
        "confidence.png",
        lambda info, log: figures.draw_confidence_histogram(info.reference.confidence_histogram),
    ),
    BundleFigure(
        "Accuracy by coverage", "risk_coverage.png", lambda info, log: figures.draw_risk_coverage_curve(info.metrics)
    ),
    BundleFigure("Loss", "loss.png", lambda info, log: figures.draw_loss_curve(log), of_training=True),
)
FIGURES: dict["ProblemType", tuple[BundleFigure, ...]] = {
    "single_label_classification": (
        BundleFigure(
            "Confusion matrix", "confusion.png", lambda info, log: figures.draw_confusion_matrix(info.metrics)
        ),
        BundleFigure(
            "Reliability diagram", "reliability.png", lambda info, log: figures.draw_reliability_diagram(info.metrics)
        ),
        *COMMON_FIGURES,
    ),
    "multi_label_classification": (
        BundleFigure("F1 by label", "labels.png", lambda info, log: figures.draw_label_scores(info.metrics)),
        BundleFigure(
            "Reliability by label", "reliability.png", lambda info, log: figures.draw_label_reliability(info.metrics)
        ),
        *COMMON_FIGURES,
    ),
}


def make_files(
    info: "BundleInfo", log: Sequence["EpochRecord"], command: str, mistakes: Sequence[dict]
) -> dict[str, bytes]:
    """Make a bundle's report, model card and figures, by file name.

    Args:
        info: What the bundle says of itself.
        log: One record an epoch.
        command: The command that made the bundle.
        mistakes: The worst mistakes, each with label, predicted, confidence and text.
    """
    files = make_card(info, log)
    images = {figure.title: files[figure.file_name] for figure in FIGURES[info.problem_type]}
    page = html.render(
        "training.html",
        title=make_title(info),
        preprocessing=describe_preprocessing(info),
        info=info,
        log=log,
        command=command,
        mistakes=mistakes,
        images=images,
        details=json.dumps(info.training.to_json(), indent=2, ensure_ascii=False),
    )
    return files | {PAGE: page.encode()}


def make_card(info: "BundleInfo", log: Sequence["EpochRecord"]) -> dict[str, bytes]:
    """Make the model card and its figures, by file name.

    A model that was not trained here has no records of epochs; one that was not evaluated has no figures.
    """
    shown = [figure for figure in FIGURES[info.problem_type] if info.metrics.n and (log or not figure.of_training)]
    card = make_model_card(info, log, {figure.title: figure.file_name for figure in shown})
    images = {figure.file_name: figures.to_png(figure.draw(info, log)) for figure in shown}
    return images | {CARD: card.encode()}
