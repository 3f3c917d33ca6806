"""Write the pages of nights beside their records.

`NIGHT.html` and `index.html`, over all nights, are for people, `nights.jsonl` (one line a night) for other tools. All
are static files, rebuilt from the records, and open from a disk or a bucket. A night's figures are those of
`drift.DISTRIBUTIONS`. To add one over all nights, draw it in `draw_trends`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sentiment_core.analysis.records import Share
from sentiment_core.nightly.drift import CONFIDENCES, DISTRIBUTIONS, LABELS, Distribution, Profile
from sentiment_core.nightly.record import (
    FOLDER,
    PAST,
    REFERENCE,
    WHOLE,
    Night,
    Renewal,
    SharesReport,
    baseline_nights,
    baseline_profile,
)
from sentiment_core.report import html
from sentiment_core.report.figures import BLUE, GREY, LIGHT, RED, escape_dollars, new_figure, to_png
from sentiment_core.runtime import storage

SHOWN_NIGHTS = 90  # in the trends
SHOWN_PARTITIONS = 30
SHOWN_LABELS = 12  # in the trends, those with most rows in the last night
COLORS = {REFERENCE: LIGHT, PAST: GREY, WHOLE: BLUE}
BADGES = {"ok": "good", "attention": "warning", "shards failed": "warning", "running or killed": "plain"}  # else "bad"


def write_pages(path: str, nights: Sequence[Night], name: str) -> None:
    """Write the page of a night and the files over all nights.

    Args:
        path: The output folder.
        nights: All nights, in order.
        name: The night whose page is written.
    """
    position = next(i for i, night in enumerate(nights) if night.night == name)
    files = {
        f"{name}.html": make_night_page(nights[position], nights[:position]),
        "index.html": make_index_page(nights),
        "nights.jsonl": "".join(json.dumps(night.line, ensure_ascii=False) + "\n" for night in nights),
    }
    for file_name, content in files.items():
        storage.write_file(storage.join(path, FOLDER, file_name), content.encode())


def name_outcome(night: Night) -> str:
    """Name the outcome of a night in a word or two."""
    if night.state != "done":
        return "running or killed" if night.state == "running" else night.state
    if night.exit_code == 1 and not any(alarm.startswith("verification") for alarm in night.alarms):
        return "failed"
    return {0: "ok", 1: "verification failed", 3: "shards failed", 4: "attention"}.get(night.exit_code or 0, "failed")


def make_night_page(night: Night, before: Sequence[Night]) -> str:
    """Make the page of a night. `before` are the nights before it."""
    return html.render(
        "night.html",
        title=f"Night {night.night}",
        night=night,
        outcome=name_outcome(night),
        badges=BADGES,
        rate=_rows_per_second(night),
        renewal=describe_renewal(night.renewal) if night.renewal else _describe_no_renewal(night),
        shares=_show_shares(night.shares) if night.shares else None,
        models=[_show_model(name, night, before) for name in night.names],
    )


def _show_shares(report: SharesReport) -> dict[str, Any]:
    """Return what a night's page shows of the shares: of all rows, and of the last groups by their names."""
    groups: dict[str, list[Share]] = {}
    for share in report.shares:
        groups.setdefault(share.group, []).append(share)
    names = list(groups)[:1] + list(groups)[1:][-SHOWN_PARTITIONS:]
    shown = [(name, share) for name in names for share in groups[name]]
    rows = {name: groups[name][0].rows for name in groups}
    return {
        "report": report,
        "all_rows": rows.get("all rows", 0),
        "open_rows": sum(rows[name] for name in (list(groups)[1:] or list(groups)) if groups[name][0].low is None),
        "rows": [
            (
                name,
                share.label,
                share.rows,
                _format_share(share.counted),
                _format_share(share.estimate),
                _format_interval(share),
                share.method,
            )
            for name, share in shown
        ],
        "notes": list(dict.fromkeys(f"{name}: {share.note}" for name, share in shown if share.note)),
        "accuracy": next((share.accuracy for share in report.shares if not share.by and share.accuracy), None),
    }


def _format_share(share: float | None) -> str:
    """Return a share in per cent for people."""
    return "" if share is None else f"{100 * share:.1f}\u00a0%"


def _format_interval(share: Share) -> str:
    if share.low is None or share.high is None:
        return ""
    return f"{100 * share.low:.1f}\u2013{100 * share.high:.1f}\u00a0%"


def _show_model(name: str, night: Night, before: Sequence[Night]) -> dict[str, Any]:
    """Return what a night's page shows of one of its models."""
    part = night.of_model(name)
    partitions = list(part.partitions.items())[:SHOWN_PARTITIONS]
    return {
        "suffix": f": {name}" if name else "",  # of headings
        "name": name,
        "night": part,
        "images": _images(draw_night(part, [past.of_model(name) for past in before])) if night.rows else {},
        "partitions": [(key, profile.rows, profile.bin_shares(LABELS).tolist()) for key, profile in partitions],
    }


def make_index_page(nights: Sequence[Night]) -> str:
    """Make the page over all nights: trends, then a line a night, the newest first."""
    lines = [
        {
            "night": night,
            "outcome": name_outcome(night),
            "renewal": describe_renewal(night.renewal) if night.renewal else "",
            "rate": _rows_per_second(night),
            "bundles": [(name, night.of_model(name).bundle[:12]) for name in night.names],
        }
        for night in reversed(nights)
    ]
    return html.render(
        "nights.html",
        title="Nights",
        lines=lines,
        badges=BADGES,
        ok_nights=sum(line["outcome"] == "ok" for line in lines),
        rows=sum(night.rows for night in nights),
        trends=_draw_trends_of_models(nights),
    )


def _draw_trends_of_models(nights: Sequence[Night]) -> list[tuple[str, dict[str, bytes]]]:
    """Draw the trends of each model that the latest night has: the end of a heading, and figures by title."""
    trends = []
    for name in nights[-1].names if nights else []:
        of_model = [night.of_model(name) for night in nights]
        with_rows = [night for night in of_model if night.profile and night.rows][-SHOWN_NIGHTS:]
        if with_rows:
            trends.append((f": {name}" if name else "", _images(draw_trends(with_rows))))
    return trends


def _describe_no_renewal(night: Night) -> str:
    return f"not renewed: {night.not_renewed}" if night.not_renewed else ""


def describe_renewal(renewal: Renewal) -> str:
    """Describe what became of the candidate that a night trained."""
    decision = "promoted" if renewal.promoted else "refused"
    return f"{renewal.candidate} {decision}: {renewal.reason}"


def draw_night(night: Night, before: Sequence[Night]) -> dict[str, Figure]:
    """Draw a night's distributions beside those that it is compared with, by title."""
    profiles = {
        REFERENCE: night.reference or Profile(),
        PAST: baseline_profile(baseline_nights(before), night),
        WHOLE: night.profile or Profile(),
    }
    drawn = {}
    for distribution in DISTRIBUTIONS:
        shares = {name: profile.bin_shares(distribution.name) for name, profile in profiles.items()}
        shares = {name: share for name, share in shares.items() if share.sum()}
        title = distribution.name.capitalize()
        drawn[title] = _draw_distribution(distribution, title, night.labels, shares)
    return drawn


def draw_trends(nights: Sequence[Night]) -> dict[str, Figure]:
    """Draw rows, labels, confidence and drift from night to night, by title."""
    positions = np.arange(len(nights))
    drawn = {}
    drawn["Rows"], axes = new_figure("Rows scored", "", "rows")
    axes.bar(positions, [night.rows for night in nights], color=BLUE)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    drawn["Labels"], axes = new_figure("Labels", "", "share of rows")
    shares = [_shares_by_label(night) for night in nights]
    labels = dict.fromkeys(label for night in nights for label in night.labels)
    for label in sorted(labels, key=lambda label: -shares[-1].get(label, 0))[:SHOWN_LABELS]:
        axes.plot(positions, [share.get(label, np.nan) for share in shares], marker=".", label=escape_dollars(label))
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    drawn["Confidence"], axes = new_figure("Mean confidence", "", "confidence")
    axes.plot(positions, [_mean_confidence(night) for night in nights], marker=".", color=BLUE)
    axes.ticklabel_format(axis="y", useOffset=False)
    drawn["Drift"], axes = new_figure("Drift from past nights", "", "population stability index")
    for distribution in DISTRIBUTIONS:
        values = [_drift(night, distribution.name) for night in nights]
        axes.plot(positions, values, marker=".", label=distribution.name)
    limits = [comparison.limit for night in nights for comparison in night.comparisons if comparison.now is None]
    if limits:
        axes.axhline(limits[-1], color=RED, linestyle="--", linewidth=1, label="limit")
    axes.legend(frameon=False)
    for figure in drawn.values():
        step = max(1, len(nights) // 6)
        names = [night.night for night in nights][::step]
        figure.axes[0].set_xticks(positions[::step], names, rotation=30, ha="right")
    return drawn


def _draw_distribution(
    distribution: Distribution, title: str, labels: list[str], shares: Mapping[str, np.ndarray]
) -> Figure:
    """Draw the shares of rows by bin, side by side for each name in `shares`."""
    bin_names = distribution.bin_names(labels, len(next(iter(shares.values()), ())))
    filled = np.flatnonzero(np.sum(list(shares.values()), axis=0) > 0)
    shown = np.arange(len(bin_names))
    if len(filled) and not distribution.draw_empty_ends:
        shown = np.arange(filled[0], filled[-1] + 1)
    figure, axes = new_figure(title, distribution.x_label, "share of rows")
    positions = np.arange(len(shown))
    width = 0.8 / max(1, len(shares))
    for i, (name, share) in enumerate(shares.items()):
        axes.bar(
            positions + width * (i - (len(shares) - 1) / 2), share[shown], width=width, color=COLORS[name], label=name
        )
    step = max(1, -(-len(shown) // 8))  # more names would overlap
    axes.set_xticks(positions[::step], [escape_dollars(bin_names[i]) for i in shown.tolist()][::step])
    if shares:
        axes.set_ylim(0, 1.4 * max(share.max() for share in shares.values()))  # room for the legend
        axes.legend(frameon=False, loc="upper center")
    return figure


def _images(drawn: Mapping[str, Figure]) -> dict[str, bytes]:
    return {title: to_png(figure) for title, figure in drawn.items()}


def _rows_per_second(night: Night) -> float:
    """Return the rate of the last run that scored any rows; 0 if there is none."""
    return next((run.rows_per_second or 0.0 for run in reversed(night.runs) if run.rows), 0.0)


def _shares_by_label(night: Night) -> dict[str, float]:
    """Return the share of a night's rows that got each label; none if nothing was counted."""
    return dict(zip(night.labels, (night.profile or Profile()).bin_shares(LABELS).tolist(), strict=False))


def _mean_confidence(night: Night) -> float:
    """Compute the mean confidence from the middles of the histogram's bins."""
    rows = np.array((night.profile or Profile()).distributions.get(CONFIDENCES, ()), float)
    return float((rows * (np.arange(len(rows)) + 0.5) / len(rows)).sum() / max(1, rows.sum()))


def _drift(night: Night, distribution: str) -> float:
    """Return the stability index of a distribution from past nights, NaN without one."""
    values = (
        comparison.value
        for comparison in night.comparisons
        if (comparison.statistic, comparison.rows, comparison.against) == (distribution, WHOLE, PAST)
    )
    return next(values, np.nan)
