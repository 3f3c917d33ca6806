"""Find the errors that a model made on its evaluation rows, and correct counted labels by them."""

from dataclasses import dataclass

import numpy as np

from sentiment_core.analysis.population import GroupSums
from sentiment_core.analysis.quantification import correct_binary, correct_counts
from sentiment_core.analysis.scored_rows import OpenedOutput
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.multi_label_records import MultiLabelMetrics


@dataclass(frozen=True)
class ModelErrors:
    """The record of the model that scored an output, or the reason why its errors are not known."""

    info: BundleInfo | None
    reason: str = ""  # why counts cannot be corrected; empty if they can

    def correct(self, labels: list[str], sums: GroupSums) -> tuple[list[float | None], list[str]]:
        """Correct the counted shares of a group.

        Args:
            labels: Of the output, in the order of the sums.
            sums: Of the group.

        Returns:
            The share of each label, None where it cannot be corrected; and for each label what to know about it.
        """
        reason = self.reason
        if not reason and np.isnan(sums.decided).any():
            reason = "rows abstained; label a sample, or score with --probabilities"
        if reason or self.info is None:
            return [None] * len(labels), [reason] * len(labels)
        decided, metrics = sums.decided / sums.rows, self.info.metrics
        if isinstance(metrics, MultiLabelMetrics):
            shares = [
                _correct_label(metrics, name, share) for name, share in zip(labels, decided.tolist(), strict=True)
            ]
            unknown = [share is None for share in shares]
        else:
            order = [self.info.labels.index(name) for name in labels]
            confusion = np.array(metrics.confusion)[np.ix_(order, order)]
            shares = [*correct_counts(decided, confusion.tolist()).tolist()]
            unknown = (confusion.sum(axis=1) == 0).tolist()
        note = "the evaluation rows do not tell how the model errs on this label"
        return shares, [note if is_unknown else "" for is_unknown in unknown]


def _correct_label(metrics: MultiLabelMetrics, name: str, counted: float) -> float | None:
    """Correct the share of one label of a multi-label model."""
    label = metrics.by_label[name]
    if not label.rows:
        return None
    false_rate = (label.predicted - label.recall * label.rows) / max(1, metrics.n - label.rows)
    return correct_binary(counted, label.recall, false_rate)


def find_model_errors(opened: OpenedOutput) -> ModelErrors:
    """Read the record of the bundle that scored an output."""
    path = opened.run_file.paths.get(opened.model.model)
    if not path:
        return ModelErrors(None, "the output does not note where its model was")
    try:
        info = bundle.read_info(path)
    except UserError:
        return ModelErrors(None, f"{path} is not a bundle; label a sample, or adopt the model with --data")
    if set(info.labels) != set(opened.labels):
        return ModelErrors(None, f"the bundle at {path} has other labels than the output; label a sample")
    if not info.metrics.n:
        return ModelErrors(
            info, f"the bundle at {path} has no evaluation rows; label a sample, or make it again with labelled rows"
        )
    if info.distillation.is_by_teacher:
        return ModelErrors(
            info,
            f"the evaluation rows of the bundle at {path} have the labels of its teacher; label a sample",
        )
    if _digest_at(path) != opened.run_file.run.bundles[opened.model.model]:
        return ModelErrors(info, f"the bundle at {path} is not the one that scored the output; label a sample")
    return ModelErrors(info)


def _digest_at(path: str) -> str:
    try:
        return bundle.digest_of(bundle.read_files(path)[1])
    except (OSError, UserError):
        return ""
