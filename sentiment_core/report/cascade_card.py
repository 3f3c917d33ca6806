"""Make the model card of a cascade, `README.md`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentiment_core.model.bundle import BundleInfo


def make_cascade_card(info: "BundleInfo", small: str, large: str) -> str:
    """Make the card; `small` and `large` name the models that the cascade was made of."""
    record = info.cascade
    rows = [
        ("small", small, record.small_accuracy, record.small_rows_per_second, record.small_computed_by),
        ("large", large, record.large_accuracy, record.large_rows_per_second, record.large_computed_by),
        ("cascade", "", record.accuracy, record.rows_per_second, "estimated"),
    ]
    table = [
        f"| {name} | {path and f'`{path}`'} | {'' if accuracy is None else f'{accuracy:.4f}'} | {speed:,.1f} | {by} |"
        for name, path, accuracy, speed, by in rows
    ]
    kind = "labelled rows" if record.labelled else "rows without labels"
    lost = "that only the large model gets right" if record.labelled else "that the large model labels otherwise"
    return "\n".join(
        [
            f"# Cascade: {', '.join(info.labels)}",
            "",
            "Two bundles, in the folders `small` and `large`. The small model computes all rows. Rows with less "
            f"confidence than {record.threshold:.6g} are computed by the large one. Only sentiment-core loads the two "
            "together; each folder is a Hugging Face model of its own.",
            "",
            f"| on {record.rows:,} {kind} of `{info.training.eval_data.place}` | made of | accuracy | rows/s | "
            "computed by |",
            "| --- | --- | --- | --- | --- |",
            *table,
            "",
            f"{100 * record.escalated_share:.1f} % of these rows went to the large model. Of rows drawn like these the "
            f"small model keeps at most {100 * record.max_loss:g} % {lost}, with certainty {record.certainty:g}. "
            "Drift ends that.",
            "",
            f"Speeds are those of the engines on {record.chip}. `score --int8` is refused.",
            "",
        ]
    )
