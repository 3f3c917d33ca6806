"""Pictures and pages for people: a bundle's model card, the demo's report."""

import base64
import html
import io
import json
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from sentiment_core.model.bundle import BundleInfo

BLUE, GREY, LIGHT, RED = "#2f6db5", "#8a8f98", "#cdd2d9", "#c8553d"
SIZE = (5.2, 3.9)  # inches
PICTURES = ("confusion.png", "reliability.png", "confidence.png", "risk_coverage.png", "loss.png")  # of a bundle


def evidence(info: "BundleInfo", log: list[dict], command: str, mistakes: list[dict]) -> dict[str, bytes]:
    """What a bundle shows people, by file name: the model card README.md, the pictures in it, and a page with these and
    more. `command` is how it was made, `mistakes` are rows of label, predicted, confidence, text."""
    figures = {
        "Confusion matrix": confusion_matrix(info.metrics),
        "Reliability diagram": reliability_diagram(info.metrics),
        "Confidences": confidence_histogram(info.reference["confidence_histogram"]),
        "Accuracy by coverage": risk_coverage_curve(info.metrics),
        "Loss": loss_curve(log),
    }
    images = {name: png(figure) for name, figure in figures.items()}
    files = dict(zip(PICTURES, images.values(), strict=True))
    page = training_page(info, log, command, mistakes, images)
    return files | {"README.md": model_card(info, log).encode(), "report.html": page.encode()}


def model_card(info: "BundleInfo", log: list[dict]) -> str:
    m, c, t, s = info.metrics, info.calibration, info.training, info.training["settings"]
    encoder = t["encoder"]["name"] + (f" at revision {t['encoder']['revision']}" if t["encoder"]["revision"] else "")
    epochs = "\n".join(
        f"| {r['epoch']}{' (kept)' if r['epoch'] == t['best_epoch'] else ''} | {np.mean(r['losses']):.4f} | "
        f"{r['eval']['loss']:.4f} | {r['eval']['accuracy']:.4f} | {r['eval']['macro_f1']:.4f} |"
        for r in log
    )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [sentiment-core]
---

# Text classifier: {", ".join(info.labels)}

Fine-tuned from `{encoder}` (head: {info.head}) with sentiment-core {info.libraries["sentiment-core"]}.
{reading(info)}

| on {m["n"]:,} held-out rows | |
| --- | --- |
| accuracy | {m["accuracy"]:.4f} |
| macro-F1 | {m["macro_f1"]:.4f} |
| expected calibration error | {m["ece"]:.4f} ({c["ece_before"]:.4f} before calibration) |
| the same, each half of the rows with the other half's temperature | {c["ece_cross_fitted"]:.4f} |
| Brier score | {m["brier"]:.4f} |

The best epoch was chosen and the temperature ({c["temperature"]:.3f}) fitted on these same rows, so expect slightly
less on others. The temperature is folded into the last layer: whoever loads the model gets calibrated confidences.

![Confusion matrix](confusion.png) ![Reliability diagram](reliability.png)
![Confidences](confidence.png) ![Accuracy by coverage](risk_coverage.png)
![Loss](loss.png)

## Training

| epoch | training loss | evaluation loss | accuracy | macro-F1 |
| --- | --- | --- | --- | --- |
{epochs}

{t["data"]["train_rows"]:,} rows of `{t["data"]["place"]}` (sha256 of texts and labels `{t["data"]["fingerprint"]}`),
labels {", ".join(f"{name} {100 * share:.1f} %" for name, share in t["label_shares"].items())};
batches of {s["batch_size"]}, peak learning rates {s["lr"]:g} (encoder) and {s["head_lr"]:g} (head),
{t["epochs"]} epochs, {t["dtype"]} on {t["device"]}, {t["seconds"]:.0f} s. All else is in `sentiment.json`.
"""


def reading(info: "BundleInfo") -> str:
    """How the bundle reads a text, in a sentence or two."""
    used = {
        "head": f"Of a longer text the first {info.max_length} tokens are used.",
        "tail": f"Of a longer text the last {info.max_length} tokens are used.",
        "head_tail": f"Of a longer text {info.max_length} tokens are used, a quarter from its beginning, the rest from "
        "its end.",
        "window": f"A longer text is used in overlapping windows of {info.max_length} tokens, with their mean logits.",
    }
    cleaned = {"none": "", "markup": "HTML tags and character references are replaced first. "}
    return cleaned[info.clean] + used[info.truncation]


def training_page(
    info: "BundleInfo", log: list[dict], command: str, mistakes: list[dict], images: dict[str, bytes]
) -> str:
    """The evidence of a training run as a page: figures, pictures, the worst mistakes, and how to repeat it."""
    m, c, t, r = info.metrics, info.calibration, info.training, info.reference
    numbers = html_table(
        ["measure", "value"],
        [
            ["accuracy", m["accuracy"]],
            ["macro-F1", m["macro_f1"]],
            ["expected calibration error", m["ece"]],
            ["the same before calibration", c["ece_before"]],
            ["the same, each half with the other half's temperature", c["ece_cross_fitted"]],
            ["Brier score", m["brier"]],
            *([["mean absolute error, in labels", m["mae"]]] if "mae" in m else []),
            ["evaluation rows", m["n"]],
            ["training rows", t["data"]["train_rows"]],
            ["training rows/s", t["rows_per_second"]],
        ],
    )
    epochs = html_table(
        ["epoch", "rows", "training loss", "evaluation loss", "accuracy", "macro-F1", "seconds"],
        [
            [
                f"{record['epoch']}{', kept' if record['epoch'] == t['best_epoch'] else ''}",
                record["rows"],
                float(np.mean(record["losses"])),
                *(record["eval"][name] for name in ("loss", "accuracy", "macro_f1")),
                record["seconds"],
            ]
            for record in log
        ],
    )
    lengths = html_table(
        ["tokens of a text", *(f"{100 * float(q):.0f} % have at most" for q in r["tokens_quantiles"])],
        [["evaluation rows", *(int(tokens) for tokens in r["tokens_quantiles"].values())]],
    )
    share = html_table(
        ["label", "share of training rows", "share predicted"],
        [[name, t["label_shares"][name], r["predicted_shares"][name]] for name in info.labels],
    )
    worst = html_table(
        ["label", "predicted", "confidence", "text"],
        [[row["label"], row["predicted"], row["confidence"], row["text"]] for row in mistakes],
    )
    cut = t["eval_data"]["truncated_rows"] / m["n"]
    versions = html_table(["library", "version"], [list(pair) for pair in info.libraries.items()])
    told = html.escape(json.dumps(t, indent=2, ensure_ascii=False))
    lead = (
        f"Fine-tuned from {html.escape(t['encoder']['name'])} in {t['seconds']:.0f} s, {t['dtype']} on "
        f"{html.escape(t['device'])}. The best epoch was chosen, and the temperature fitted, on the evaluation rows."
    )
    return page(
        f"Text classifier: {', '.join(info.labels)}",
        lead,
        [
            ("Figures", numbers + epochs),
            ("Pictures", pictures(images)),
            ("Worst mistakes", worst),
            (
                "Texts and labels",
                f"<p>{reading(info)} That leaves out some of {100 * cut:.1f} % of the evaluation rows; "
                f"{100 * r['unknown_token_share']:.2f} % of their tokens are unknown.</p>{lengths}{share}",
            ),
            (
                "How it was made",
                f"<pre>{html.escape(command)}</pre>"
                f"<details><summary>all of it</summary><pre>{told}</pre></details>{versions}",
            ),
        ],
    )


def loss_curve(log: list[dict]) -> Figure:
    figure, axes = axes_for("Loss", "step", "cross entropy (nats)")
    losses = np.concatenate([record["losses"] for record in log])
    width = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    steps = np.cumsum([len(record["losses"]) for record in log])
    axes.plot(np.arange(len(losses)) + 1, losses, color=GREY, alpha=0.25, linewidth=0.5)
    axes.plot(np.arange(len(smooth)) + width, smooth, color=GREY, label=f"training, mean of {width} steps")
    axes.plot(steps, [record["eval"]["loss"] for record in log], "o-", color=BLUE, label="evaluation")
    axes.set_ylim(0, np.quantile(losses, 0.99) * 1.1)
    axes.legend(frameon=False)
    return figure


def confusion_matrix(metrics: dict) -> Figure:
    """Rows true, columns predicted; shade and percentage by row."""
    labels, counts = [*map(verbatim, metrics["labels"])], np.array(metrics["confusion"])
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure, axes = axes_for(f"Confusion matrix, {metrics['n']:,} rows", "predicted", "true")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=30 if len(labels) > 4 else 0)
    axes.set_yticks(range(len(labels)), labels)
    axes.spines[:].set_visible(False)
    if len(labels) <= 12:
        for row, column in np.ndindex(counts.shape):
            share = shares[row, column]
            text = f"{counts[row, column]:,}\n{100 * share:.0f} %"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    return figure


def reliability_diagram(metrics: dict) -> Figure:
    """Accuracy over confidence; the larger a point, the more rows it stands for."""
    points = metrics["reliability"]
    figure, axes = axes_for(f"Reliability, calibration error {metrics['ece']:.3f}", "confidence", "accuracy")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    rows = np.array(points["rows"])
    axes.plot(points["confidence"], points["accuracy"], color=BLUE)
    axes.scatter(points["confidence"], points["accuracy"], s=10 + 190 * rows / rows.max(), color=BLUE)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    return figure


def risk_coverage_curve(metrics: dict) -> Figure:
    """Accuracy on the most confident rows, over their share of all."""
    points = metrics["risk_coverage"]
    figure, axes = axes_for("What abstaining gains", "share of rows labelled", "accuracy on them")
    axes.plot(points["coverage"], points["accuracy"], color=BLUE)
    few = np.linspace(0, len(points["coverage"]) - 1, 6).round().astype(int)[1:]
    for i in few:
        x, y = points["coverage"][i], points["accuracy"][i]
        axes.annotate(f"{points['min_confidence'][i]:.2f}", (x, y), (0, 5), textcoords="offset points", ha="right")
    axes.plot(
        [points["coverage"][i] for i in few],
        [points["accuracy"][i] for i in few],
        "o",
        color=BLUE,
        label="confidence at least",
    )
    axes.set_xlim(0, 1.02)
    axes.legend(frameon=False, loc="lower left")
    return figure


def confidence_histogram(counts: list[int]) -> Figure:
    figure, axes = axes_for("Confidences", "confidence", "rows")
    edges = np.linspace(0, 1, len(counts) + 1)
    axes.bar(edges[:-1], counts, width=1 / len(counts), align="edge", color=BLUE, edgecolor="white")
    axes.set_xlim(0, 1)
    return figure


def search_results(trials: list[dict], score: str) -> Figure:
    """Of a search: the trials' scores by epoch, and the best of each by every setting that was searched for. `trials`:
    `settings` and `scores`, as `tuning` records them."""
    trials = [trial for trial in trials if trial["scores"]]
    names = list(trials[0]["settings"])
    figure = Figure(figsize=(SIZE[0] * 2, SIZE[1] * (1 + len(names) // 3)), layout="constrained")
    panels = figure.subplots(1 + len(names) // 3, 3, sharey=True, squeeze=False).ravel()
    best = [abs(max(trial["scores"])) for trial in trials]
    for trial in trials:
        panels[0].plot(range(1, len(trial["scores"]) + 1), np.abs(trial["scores"]), marker=".")
    panels[0].set(title="Trials", xlabel="epoch", ylabel=score)
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    for panel, name in zip(panels[1:], names, strict=False):
        values = [trial["settings"][name] for trial in trials]
        continuous = len(set(values)) == len(values) > 2 and all(isinstance(value, float) for value in values)
        panel.scatter(values if continuous else list(map(str, values)), best)
        panel.set_title(name)
        if continuous:
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter("")  # would overlap
    for panel in panels[1 + len(names) :]:
        panel.set_axis_off()
    return figure


def label_shares(shares: dict[str, dict[str, float]]) -> Figure:
    """Shares of the labels (inner names) in each group (outer names), as stacked bars."""
    figure, axes = axes_for("Labels by kind of text", "share", "")
    labels = list(next(iter(shares.values())))
    left = np.zeros(len(shares))
    for label, color in zip(labels, (RED, "#d9dce1", BLUE, "#6aa56a", "#b58a2f") * len(labels), strict=False):
        values = np.array([group[label] for group in shares.values()])
        axes.barh([*map(verbatim, shares)], values, left=left, color=color, label=verbatim(label))
        left += values
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=len(labels), loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure


def axes_for(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty picture in this project's style, and its axes."""
    drawn = Figure(figsize=SIZE, layout="constrained")
    axes = drawn.subplots()
    axes.set_title(title, fontsize=11)
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def verbatim(name: str) -> str:
    """A user's word as matplotlib writes it as it is: not as mathematics, for its dollars."""
    return name.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def page(title: str, lead: str, sections: list[tuple[str, str]]) -> str:
    """A self-contained HTML page. `lead` and the sections' bodies are HTML; titles are plain text."""
    body = "\n".join(f"<section><h2>{html.escape(name)}</h2>\n{content}</section>" for name, content in sections)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1d2129; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ margin-bottom: 0.2rem; }} h2 {{ margin-top: 2.2rem; border-bottom: 1px solid #d9dce1; }}
table {{ border-collapse: collapse; margin: 0.6rem 0; }}
td, th {{ padding: 0.25rem 0.8rem; border-bottom: 1px solid #eceef1; text-align: left; vertical-align: top; }}
pre {{ white-space: pre-wrap; background: #f6f7f9; padding: 0.6rem; font-size: 13px; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: 1rem; }} .pictures img {{ width: 500px; max-width: 100%; }}
</style></head>
<body><h1>{html.escape(title)}</h1>
<p>{lead}</p>
{body}
</body></html>
"""


def pictures(images: dict[str, bytes]) -> str:
    """PNG images as HTML, by their alternative text."""
    found = [
        f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        for name, image in images.items()
    ]
    return f'<div class="pictures">{"".join(found)}</div>'


def html_table(head: list[str], rows: list[list]) -> str:
    """Numbers are set right, with thousands separators or three decimals; everything is escaped."""

    def cell(tag: str, value: object) -> str:
        number = isinstance(value, int | float)
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}" if isinstance(value, float) else str(value)
        return f"<{tag}{' class=number' if number else ''}>{html.escape(text)}</{tag}>"

    lines = ["".join(cell("th", name) for name in head), *("".join(cell("td", v) for v in row) for row in rows)]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
