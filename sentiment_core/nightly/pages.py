"""The pages of nights, for people and for other tools, beside their records: `NIGHT.html`, `index.html` over all nights
and `nights.jsonl` with a line for each. Static files, made anew from the records, that open from a disk or a bucket."""

import html
import json
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sentiment_core.nightly.drift import CONFIDENCES, LABELS, LENGTHS
from sentiment_core.nightly.record import FOLDER, PAST, REFERENCE, WHOLE, Night, compared_with, past_profile
from sentiment_core.report import figures as report
from sentiment_core.runtime import storage

SHOWN_NIGHTS = 90  # in the trends
SHOWN_PARTITIONS = 30
COLOURS = {REFERENCE: report.LIGHT, PAST: report.GREY, WHOLE: report.BLUE}


def write(place: str, nights: Sequence[Night], night: str) -> None:
    """The page of one night, and those over all, by their names."""
    index = next(i for i, each in enumerate(nights) if each.night == night)
    files = {
        f"{night}.html": night_page(nights[index], nights[:index]),
        "index.html": index_page(nights),
        "nights.jsonl": "".join(json.dumps(each.line, ensure_ascii=False) + "\n" for each in nights),
    }
    for name, content in files.items():
        storage.write_file(storage.join(place, FOLDER, name), content.encode())


def outcome(night: Night) -> str:
    """A word or two."""
    if night.state != "done":
        return {"running": "running, or killed"}.get(night.state, night.state)
    return {0: "well", 1: "wrong", 3: "shards failed", 4: "needs a look"}.get(night.exit_code or 0, "failed")


def night_page(night: Night, before: Sequence[Night]) -> str:
    alarms = "".join(f"<li>{html.escape(alarm)}</li>" for alarm in night.alarms)
    lead = (
        f"{outcome(night).capitalize()}. {night.rows:,} rows scored, {night.left:,} left, of {night.corpus_rows:,}. "
        f"<a href='index.html'>All nights</a>"
    )
    numbers = report.html_table(
        ["measure", "value"],
        [
            ["rows scored", night.rows],
            ["rows left for later", night.left],
            ["rows of the corpus", night.corpus_rows],
            ["tokens", night.tokens],
            ["rows/s of the last run that scored any, start-up included", _speed(night) or ""],
            ["outputs removed", night.removed],
            ["exit code", "" if night.exit_code is None else str(night.exit_code)],
            ["model", night.model],
            ["bundle", night.bundle],
        ],
    )
    runs = report.html_table(
        ["begun (UTC)", "seconds", "rows", "outcome", "computed by"],
        [
            [run["begun"], float(run["seconds"]), run["rows"], run["outcome"], ", ".join(run.get("computed_by", []))]
            for run in night.runs
        ],
    )
    sections = [("Alarms", f"<ul>{alarms}</ul>")] if alarms else []
    sections += [("Figures", numbers)]
    if night.rows:
        sections.append(
            ("Beside past nights and the evaluation rows", report.pictures(_images(figures(night, before))))
        )
    if night.comparisons:
        sections.append(("Drift", _comparisons(night)))
    if night.partitions:
        sections.append(("Partitions", _partitions(night)))
    if night.failed_shards:
        failed = [[shard["source"], shard["reason"]] for shard in night.failed_shards]
        sections.append(("Failed shards", report.html_table(["shard", "reason"], failed)))
    sections.append(("Verified", report.html_table(["finding", "number"], [list(p) for p in night.verified.items()])))
    if night.renewal:
        sections.append(("Model", f"<p>{html.escape(renewed(night))}</p>"))
    sections.append(("Runs", runs))
    return report.page(f"Night {night.night}", lead, sections)


def renewed(night: Night) -> str:
    kind = "promoted" if night.renewal["promoted"] else "refused"
    return f"{night.renewal['candidate']} {kind}: {night.renewal['reason']}"


def index_page(nights: Sequence[Night]) -> str:
    """All nights, the newest first, and how they compare."""
    done = [night for night in nights if night.profile and night.rows][-SHOWN_NIGHTS:]
    head = (
        "<tr>"
        + "".join(f"<th>{name}</th>" for name in ("night", "outcome", "alarms", "bundle", "model"))
        + "".join(f"<th class=number>{name}</th>" for name in ("rows", "left", "rows/s"))
    )
    rows = [
        f"<tr><td class=number><a href='{html.escape(n.night)}.html'>{html.escape(n.night)}</a></td>"
        f"<td>{outcome(n)}</td>"
        f"<td>{'<br>'.join(map(html.escape, n.alarms))}</td><td>{n.bundle[:12]}</td>"
        f"<td>{html.escape(renewed(n)) if n.renewal else ''}</td><td class=number>{n.rows:,}</td>"
        f"<td class=number>{n.left:,}</td>"
        f"<td class=number>{f'{_speed(n):,.0f}' if _speed(n) else ''}</td></tr>"
        for n in reversed(nights)
    ]
    well = sum(outcome(night) == "well" for night in nights)
    lead = f"{len(nights):,} nights, {well:,} of them well. {sum(night.rows for night in nights):,} rows scored."
    sections = [("Trends", report.pictures(_images(_trends(done))))] if done else []
    sections.append(("Nights", f"<table>{head}</tr>{''.join(rows)}</table>"))
    return report.page("Nights", lead, sections)


def _speed(night: Night) -> float:
    """Rows a second of the last run that scored any; 0 without one."""
    return next((float(run["rows_per_second"]) for run in reversed(night.runs) if run.get("rows")), 0.0)


def figures(night: Night, before: Sequence[Night]) -> dict[str, Figure]:
    """What a night's rows are like, beside what they are compared with."""
    of_each = {
        REFERENCE: night.reference.get("distributions", {}),
        PAST: past_profile(compared_with(before), night).distributions,
        WHOLE: night.profile["distributions"],
    }
    drawn = {}
    for what in (LABELS, CONFIDENCES, LENGTHS):
        known = {name: np.array(distributions.get(what, ()), float) for name, distributions in of_each.items()}
        known = {name: rows / rows.sum() for name, rows in known.items() if rows.sum()}
        drawn[what] = _beside(what, night.labels, known)
    return drawn


def _images(drawn: dict[str, Figure]) -> dict[str, bytes]:
    return {name: report.png(figure) for name, figure in drawn.items()}


def _beside(what: str, labels: list[str], shares: dict[str, np.ndarray]) -> Figure:
    """Shares of a night's rows by bin, beside those of others."""
    number = len(labels) if what == LABELS else len(next(iter(shares.values()), ()))
    names = {
        LABELS: labels,
        CONFIDENCES: [f"{i / number:.2f}" for i in range(number)],
        LENGTHS: [f"{2**i:,}" for i in range(number)],
    }[what]
    used = np.flatnonzero(np.sum(list(shares.values()), axis=0) > 0)
    bins = np.arange(used[0], used[-1] + 1) if len(used) and what != LABELS else np.arange(number)
    title = {LABELS: "Labels", CONFIDENCES: "Confidence", LENGTHS: "Text length"}[what]
    unit = {LABELS: "label", CONFIDENCES: "confidence, from", LENGTHS: "tokens, from"}[what]
    figure, axes = report.axes_for(title, unit, "share of rows")
    at = np.arange(len(bins))
    width = 0.8 / max(1, len(shares))
    for i, (name, share) in enumerate(shares.items()):
        place = at + width * (i - (len(shares) - 1) / 2)
        axes.bar(place, share[bins], width=width, color=COLOURS[name], label=name)
    step = max(1, len(bins) // 8)
    axes.set_xticks(at[::step], [report.verbatim(names[i]) for i in bins][::step])
    if shares:
        axes.set_ylim(0, 1.4 * max(share.max() for share in shares.values()))  # room for the legend
        axes.legend(frameon=False, loc="upper center")
    return figure


def _trends(nights: Sequence[Night]) -> dict[str, Figure]:
    names = [night.night for night in nights]
    at = np.arange(len(names))
    drawn = {}
    drawn["Rows"], axes = report.axes_for("Rows scored", "", "rows")
    axes.bar(at, [night.rows for night in nights], color=report.BLUE)
    drawn["Labels"], axes = report.axes_for("Labels", "", "share of rows")
    for label in dict.fromkeys(label for night in nights for label in night.labels):
        shares = [_share(night, label) for night in nights]
        axes.plot(at, shares, marker=".", label=report.verbatim(label))
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    drawn["Confidence"], axes = report.axes_for("Mean confidence", "", "confidence")
    axes.plot(at, [_mean_confidence(night) for night in nights], marker=".", color=report.BLUE)
    drawn["Drift"], axes = report.axes_for("Stability index, from past nights", "", "index")
    for what in (LABELS, CONFIDENCES, LENGTHS):
        axes.plot(at, [_index(night, what) for night in nights], marker=".", label=what)
    limits = [one["limit"] for night in nights for one in night.comparisons if one["now"] is None]
    if limits:
        axes.axhline(limits[-1], color=report.RED, linestyle="--", linewidth=1, label="limit")
    axes.legend(frameon=False)
    for figure in drawn.values():
        step = max(1, len(names) // 6)
        figure.axes[0].set_xticks(at[::step], names[::step], rotation=30, ha="right")
    return drawn


def _share(night: Night, label: str) -> float:
    shares = dict(zip(night.labels, night.profile["distributions"][LABELS], strict=True))
    return shares.get(label, np.nan) / max(1, sum(shares.values()))


def _mean_confidence(night: Night) -> float:
    """From the middles of the histogram's bins."""
    rows = np.array(night.profile["distributions"][CONFIDENCES], float)
    return float((rows * (np.arange(len(rows)) + 0.5) / len(rows)).sum() / max(1, rows.sum()))


def _index(night: Night, what: str) -> float:
    found = (
        one["value"]
        for one in night.comparisons
        if one["what"] == what and (one["of"], one["against"]) == (WHOLE, PAST)
    )
    return next(found, np.nan)


def _comparisons(night: Night) -> str:
    told = (
        "<p>Distributions are compared by the population stability index, shares by how much they have risen. Drift is "
        "what passes both the limit and what chance alone seldom reaches on so many rows.</p>"
    )
    return told + report.html_table(
        ["what", "of", "against", "value", "limit", "by chance", "drift"],
        [
            [
                *(one[name] for name in ("what", "of", "against", "value", "limit", "chance")),
                "yes" if one["drifted"] else "",
            ]
            for one in night.comparisons
        ],
    )


def _partitions(night: Night) -> str:
    rows = []
    for name, profile in list(night.partitions.items())[:SHOWN_PARTITIONS]:
        labels = np.array(profile["distributions"][LABELS], float)
        rows.append([name, profile["rows"], *(labels / max(1, labels.sum())).tolist()])
    return report.html_table(["partition", "rows", *(f"share {label}" for label in night.labels)], rows)
