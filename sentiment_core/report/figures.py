"""Draw the figures of a bundle, a search for settings and a scored corpus.

A function takes plain records and returns a matplotlib `Figure`. `new_figure` gives an empty one in this project's
style, `to_png` turns it into an image.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sentiment_core.model.multi_label_records import MultiLabelMetrics
from sentiment_core.model.records import EpochRecord, LabelledRowsMetrics, Metrics

BLUE, GREY, LIGHT, RED = "#2f6db5", "#8a8f98", "#cdd2d9", "#c8553d"
STACK_COLORS = (RED, "#d9dce1", BLUE, "#6aa56a", "#b58a2f")
SIZE_INCHES = (5.2, 3.9)
DOTS_PER_INCH = 140
SHOWN_COUNTS_LABELS = 12  # of more labels the confusion matrix is shaded only
ANNOTATED_POINTS = 5  # of the risk-coverage curve
LABEL_INCHES = 0.22  # of height, for each label in a figure by label
NAMED_CURVES = 8  # of the most frequent labels; the others are grey


def draw_loss_curve(log: Sequence[EpochRecord]) -> Figure:
    """Draw the training loss of every step and the evaluation loss of every epoch."""
    figure, axes = new_figure("Loss", "step", "cross entropy (nats)")
    losses = np.concatenate([record.losses for record in log])
    width = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    steps = np.cumsum([len(record.losses) for record in log])
    axes.plot(np.arange(len(losses)) + 1, losses, color=GREY, alpha=0.25, linewidth=0.5)
    axes.plot(np.arange(len(smooth)) + width, smooth, color=GREY, label=f"training, mean of {width} steps")
    axes.plot(steps, [record.eval.loss for record in log], "o-", color=BLUE, label="evaluation")
    axes.set_ylim(0, np.quantile(losses, 0.99) * 1.1)
    axes.legend(frameon=False)
    return figure


def draw_confusion_matrix(metrics: Metrics) -> Figure:
    """Draw the confusion matrix: rows true, columns predicted, shaded by row."""
    labels, counts = [*map(escape_dollars, metrics.labels)], np.array(metrics.confusion)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure, axes = new_figure(f"Confusion matrix, {metrics.n:,} rows", "predicted", "true")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=30 if len(labels) > 4 else 0)
    axes.set_yticks(range(len(labels)), labels)
    axes.spines[:].set_visible(False)
    if len(labels) <= SHOWN_COUNTS_LABELS:
        for row, column in np.ndindex(counts.shape):
            share = shares[row, column]
            text = f"{counts[row, column]:,}\n{100 * share:.0f} %"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    return figure


def draw_reliability_diagram(metrics: Metrics) -> Figure:
    """Draw accuracy over confidence; the larger a point, the more rows it stands for."""
    points = metrics.reliability
    figure, axes = new_figure(f"Reliability, calibration error {metrics.ece:.3f}", "confidence", "accuracy")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    rows = np.array(points.rows)
    axes.plot(points.confidence, points.accuracy, color=BLUE)
    axes.scatter(points.confidence, points.accuracy, s=10 + 190 * rows / rows.max(), color=BLUE)
    axes.set(xlim=(0, 1.05), ylim=(0, 1.05))
    return figure


def draw_label_scores(metrics: MultiLabelMetrics) -> Figure:
    """Draw F1 of each label as a bar, with precision and recall on it, the most frequent label on top."""
    labels = sorted(metrics.by_label.items(), key=lambda item: item[1].rows)
    figure, axes = new_figure(f"F1 by label, micro-F1 {metrics.micro_f1:.3f}", "", "")
    figure.set_figheight(max(SIZE_INCHES[1], 1 + LABEL_INCHES * len(labels)))
    positions = range(len(labels))
    axes.barh(positions, [label.f1 for _, label in labels], color=LIGHT, label="F1")
    axes.plot([label.precision for _, label in labels], positions, "o", color=BLUE, label="precision")
    axes.plot([label.recall for _, label in labels], positions, "o", color=RED, label="recall")
    axes.set_yticks(positions, [f"{escape_dollars(name)} ({label.rows:,})" for name, label in labels])
    axes.set_xlim(0, 1.02)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.06))
    return figure


def draw_label_reliability(metrics: MultiLabelMetrics) -> Figure:
    """Draw the share of rows that have a label over the label's probability, a curve for each label."""
    figure, axes = new_figure(
        f"Reliability by label, mean calibration error {metrics.ece:.3f}", "probability of the label", "share with it"
    )
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    most_rows = sorted(metrics.by_label, key=lambda name: -metrics.by_label[name].rows)
    for name in most_rows:
        points = metrics.by_label[name].reliability
        named = {"label": escape_dollars(name)} if name in most_rows[:NAMED_CURVES] else {"color": LIGHT, "zorder": 1}
        axes.plot(points.confidence, points.accuracy, marker=".", linewidth=1, **named)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_risk_coverage_curve(metrics: LabelledRowsMetrics) -> Figure:
    """Draw the accuracy on the most confident rows over their share of all rows."""
    points = metrics.risk_coverage
    figure, axes = new_figure("Accuracy by coverage", "coverage: share of rows that get a label", "accuracy on them")
    axes.plot(points.coverage, points.accuracy, color=BLUE)
    annotated = np.linspace(0, len(points.coverage) - 1, ANNOTATED_POINTS + 1).round().astype(int)[1:]
    coverage, accuracy = np.array(points.coverage)[annotated], np.array(points.accuracy)[annotated]
    axes.plot(coverage, accuracy, "o", color=BLUE, label="minimum confidence")
    for i, x, y in zip(annotated, coverage, accuracy, strict=True):
        axes.annotate(f"{points.min_confidence[i]:.2f}", (x, y), (0, 5), textcoords="offset points", ha="right")
    axes.set_xlim(0, 1.02)
    axes.legend(frameon=False, loc="lower left")
    return figure


def draw_confidence_histogram(counts: Sequence[int]) -> Figure:
    """Draw how many rows have a confidence in each of the bins of equal width."""
    figure, axes = new_figure("Confidence histogram", "confidence", "rows")
    edges = np.linspace(0, 1, len(counts) + 1)
    axes.bar(edges[:-1], counts, width=1 / len(counts), align="edge", color=BLUE, edgecolor="white")
    axes.set_xlim(0, 1)
    return figure


def draw_search_results(trials: Sequence[dict], score: str) -> Figure:
    """Draw the trials of a search for settings.

    The first panel has the scores of each trial by epoch, the others its best score by each searched setting.

    Args:
        trials: Records with `settings` and `scores`, one score an epoch.
        score: Name of the score.
    """
    trials = [trial for trial in trials if trial["scores"]]
    names = list(trials[0]["settings"])
    rows = 1 + len(names) // 3
    figure = Figure(figsize=(SIZE_INCHES[0] * 2, SIZE_INCHES[1] * rows), layout="constrained")
    panels = figure.subplots(rows, 3, sharey=True, squeeze=False).ravel()
    best_scores = [abs(max(trial["scores"])) for trial in trials]  # losses are recorded as negative scores
    for trial in trials:
        panels[0].plot(range(1, len(trial["scores"]) + 1), np.abs(trial["scores"]), marker=".")
    panels[0].set(title="Trials", xlabel="epoch", ylabel=score)
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    for panel, name in zip(panels[1:], names, strict=False):
        values = [trial["settings"][name] for trial in trials]
        is_continuous = len(set(values)) == len(values) > 2 and all(isinstance(value, float) for value in values)
        panel.scatter(values if is_continuous else list(map(str, values)), best_scores)
        panel.set_title(name)
        if is_continuous:
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter("")  # its labels would overlap
    for panel in panels[1 + len(names) :]:
        panel.set_axis_off()
    return figure


def draw_label_shares(shares: dict[str, dict[str, float]]) -> Figure:
    """Draw the shares of the labels in each group as stacked bars.

    Args:
        shares: For each group, the share of each label.
    """
    figure, axes = new_figure("Label shares by kind of text", "share", "")
    labels = list(next(iter(shares.values())))
    left = np.zeros(len(shares))
    for label, color in zip(labels, STACK_COLORS * len(labels), strict=False):
        values = np.array([group[label] for group in shares.values()])
        axes.barh([*map(escape_dollars, shares)], values, left=left, color=color, label=escape_dollars(label))
        left += values
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=len(labels), loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure


def new_figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Make an empty figure in this project's style, and its axes."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def escape_dollars(name: str) -> str:
    """Escape a user's name for matplotlib.

    Text between dollars would be read as mathematics.
    """
    return name.replace("$", r"\$")


def to_png(figure: Figure) -> bytes:
    """Render a figure as a PNG image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()
