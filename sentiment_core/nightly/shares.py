"""Estimate the shares of labels in the whole corpus after a night, and say when a new sample is due."""

import contextlib

from sentiment_core.analysis.sample_file import read_sample
from sentiment_core.analysis.scored_rows import NothingScored, check_keys, open_output
from sentiment_core.analysis.shares import Shares, estimate_shares
from sentiment_core.errors import UserError
from sentiment_core.model.naming import read_models
from sentiment_core.nightly.record import SharesReport
from sentiment_core.nightly.settings import NightlySettings
from sentiment_core.scoring.outputs import read_run_file

LEAST_COVERED = 0.8  # share of the rows that a sample was drawn from, below which a new one is due


def are_wanted(settings: NightlySettings) -> bool:
    """Return whether the settings ask for shares."""
    return bool(settings.shares_by or settings.shares_sample)


def check_request(settings: NightlySettings, folder: str) -> None:
    """Refuse a sample that cannot be read or has no labels, a model that does not score, and unknown keys.

    Keys are looked up in the output `folder`, if that holds rows already. Raises `UserError`.
    """
    if not are_wanted(settings):
        return
    names = list(read_models(settings.model))
    if (settings.shares_model or "") not in names:
        chosen = f"is {settings.shares_model}" if settings.shares_model else "is not given"
        expected = "leave it out" if names == [""] else f"expected one of {', '.join(names)}"
        raise UserError(f"--shares-model {chosen}; {expected}")
    if settings.shares_sample and not read_sample(settings.shares_sample).is_labelled.any():
        raise UserError(f"--shares-sample {settings.shares_sample} has no label yet; fill in the column label")
    if settings.shares_by and read_run_file(folder) is not None:
        with contextlib.suppress(NothingScored):
            check_keys(open_output(folder, settings.shares_model), settings.shares_by)


def report_shares(settings: NightlySettings, folder: str, has_drifted: bool) -> SharesReport:
    """Estimate the shares in an output folder. A sample that no longer fits the output is reported as due.

    Args:
        settings: Those of the night.
        folder: The output folder.
        has_drifted: Whether the night differs from those before it.

    Raises:
        UserError: The keys do not fit the output.
    """
    opened, sample, due = open_output(folder, settings.shares_model), settings.shares_sample, ""
    try:
        result = estimate_shares(opened, settings.shares_by, sample, settings.certainty)
    except UserError as error:
        if not sample:
            raise
        result, due = estimate_shares(opened, settings.shares_by, None, settings.certainty), str(error)
    return SharesReport(result.shares, result.certainty, result.remarks, due or _find_due(result, has_drifted))


def _find_due(result: Shares, has_drifted: bool) -> str:
    """Say why a new sample is due; return nothing if it is not."""
    if result.sampled_rows is None:
        return "shares have no intervals without a labelled sample"
    rows = next((share.rows for share in result.shares if not share.by), 0)
    if result.sampled_rows < LEAST_COVERED * rows:
        return f"the sample covers {result.sampled_rows:,} rows, and the corpus has {rows:,} rows with text now"
    return "this night has drifted, and the sample may be from before" if has_drifted else ""
