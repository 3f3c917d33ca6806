"""Estimate the shares of labels in the whole corpus after a night, and say when a new sample is due."""

from sentiment_core.analysis.sample_file import read_sample
from sentiment_core.analysis.scored_rows import check_keys, open_output
from sentiment_core.analysis.shares import estimate_shares
from sentiment_core.errors import UserError
from sentiment_core.model.naming import read_models
from sentiment_core.nightly.record import SharesReport
from sentiment_core.nightly.settings import NightlySettings

LEAST_COVERED = 0.8  # share of the rows that a sample was drawn from, below which a new one is due


def are_wanted(settings: NightlySettings) -> bool:
    """Return whether the settings ask for shares."""
    return bool(settings.shares_by or settings.shares_sample)


def check_request(settings: NightlySettings) -> None:
    """Refuse a sample that cannot be read, and a model that does not score. Raises `UserError`."""
    if not are_wanted(settings):
        return
    names = list(read_models(settings.model))
    if (settings.shares_model or "") not in names:
        chosen = f"is {settings.shares_model}" if settings.shares_model else "is not given"
        expected = "leave it out" if names == [""] else f"expected one of {', '.join(names)}"
        raise UserError(f"--shares-model {chosen}; {expected}")
    if settings.shares_sample:
        read_sample(settings.shares_sample)


def report_shares(settings: NightlySettings, folder: str, has_drifted: bool) -> SharesReport:
    """Estimate the shares in an output folder.

    Args:
        settings: Those of the night.
        folder: The output folder.
        has_drifted: Whether the night differs from those before it.

    Raises:
        UserError: The sample or the keys do not fit the output.
    """
    opened = open_output(folder, settings.shares_model)
    check_keys(opened, settings.shares_by)
    result = estimate_shares(opened, settings.shares_by, settings.shares_sample)
    rows = next((share.rows for share in result.shares if not share.by), 0)
    return SharesReport(result.shares, result.certainty, result.remarks, _find_due(settings, rows, has_drifted))


def _find_due(settings: NightlySettings, rows: int, has_drifted: bool) -> str:
    """Say why a new sample is due; return nothing if it is not. `rows`: of the corpus, with text."""
    if not settings.shares_sample:
        return "shares have no intervals without a labelled sample"
    drawn_from = round(float(read_sample(settings.shares_sample).stratum_rows.sum()))
    if drawn_from < LEAST_COVERED * rows:
        return f"the sample was drawn from {drawn_from:,} rows, and the corpus has {rows:,} rows with text now"
    return "this night has drifted, and the sample may be from before" if has_drifted else ""
