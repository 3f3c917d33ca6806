"""Describe a confusion matrix for the terminal."""

from collections.abc import Sequence

SHOWN_LABELS = 20  # for which the matrix is printed
SHOWN_PAIRS = 10  # of labels that are confused, printed where there are more
CORNER = "true \\ predicted"


def describe_confusion(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[str]:
    """Return the lines of the matrix; of many labels, those that are confused most often.

    Args:
        labels: Names of the labels.
        confusion: (labels, labels) rows of the data, by true and by predicted label.
    """
    if len(labels) > SHOWN_LABELS:
        return _list_most_confused(labels, confusion)
    width = max(map(len, [*labels, CORNER]))
    widths = [max(9, len(name)) for name in labels]

    def line(head: str, cells: Sequence[str]) -> str:
        return " ".join([f"{head:>{width}}", *(f"{cell:>{own}}" for cell, own in zip(cells, widths, strict=True))])

    rows = [line(name, [f"{count:,}" for count in counts]) for name, counts in zip(labels, confusion, strict=True)]
    return [line(CORNER, labels), *rows]


def _list_most_confused(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[str]:
    """Return a line for each of the pairs of labels that are confused most often."""
    pairs = [
        (count, labels[true], labels[predicted])
        for true, counts in enumerate(confusion)
        for predicted, count in enumerate(counts)
        if count and true != predicted
    ]
    most = sorted(pairs, key=lambda pair: -pair[0])[:SHOWN_PAIRS]
    lines = [f"{count:,} rows of {true} are taken for {predicted}" for count, true, predicted in most]
    return [*lines, f"of {len(labels):,} labels; the confusion matrix is among the metrics as JSON"]
