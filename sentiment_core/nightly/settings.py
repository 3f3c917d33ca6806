"""Settings of `sentiment-core nightly`."""

import datetime
import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sentiment_core.config import check, setting
from sentiment_core.scoring.settings import ScoreSettings


def find_zone(name: str) -> datetime.tzinfo:
    """Return the time zone of this name; UTC needs no data base of zones."""
    return datetime.UTC if name == "UTC" else ZoneInfo(name)


@dataclass(frozen=True, kw_only=True)
class NightlySettings(ScoreSettings):
    """Flags of `sentiment-core nightly`: those of `score`, and these."""

    night: str | None = setting(
        None, "name of the night's record; default: today's date in --timezone", "NAME", group="output"
    )
    timezone: str = setting("UTC", "time zone by which a night has its date", "Europe/Berlin", group="output")
    date_key: str = setting("date", "partition key of the input that --date and --since look at", group="data")
    date: str | None = setting(None, "score only this partition of --date-key", "2026-11-30", group="data")
    since: str | None = setting(
        None, "score only partitions of --date-key from this one on", "2026-11-01", group="data"
    )
    time_limit: float | None = setting(
        None, "stop scoring after so many minutes; the next night continues", "MINUTES", group="run"
    )
    cost_per_hour: float | None = setting(
        None, "cost of the cluster for an hour; --dry-run then estimates the night's cost", group="run"
    )
    drift_limit: float = setting(
        0.25, "alarm above this population stability index between this night and the last 14", group="run"
    )
    reference_limit: float = setting(
        0.25, "the same between this night and the bundle's evaluation rows; raise it if these differ", group="run"
    )
    shares_by: tuple[str, ...] = setting(
        (),
        "also estimate the shares of labels in the whole corpus, by these partition keys or kept columns",
        "KEY,...",
        group="run",
    )
    shares_sample: str | None = setting(
        None, "labelled sample for shares, from which they get intervals", "FILE.csv", group="data"
    )
    shares_model: str | None = setting(
        None, "name of the model whose shares are estimated, where several score", "MODEL", group="model"
    )
    alert_url: str | None = setting(
        None, "webhook that gets the night as JSON if its exit code is not 0", "URL", group="output"
    )
    alert_command: str | None = setting(
        None, "shell command that gets the same on standard input", "COMMAND", group="output"
    )
    train_config: str | None = setting(
        None,
        "renew the model when there are new labels: a --config file of train, without out",
        "FILE.yaml",
        group="model",
    )
    test_data: str | None = setting(
        None, "labelled text on which a candidate must beat the current bundle", "D", group="model"
    )
    renew_rows: int = setting(
        1, "labelled rows that must be new for a renewal; after drift any change is enough", group="model"
    )
    margin: float = setting(
        0.005, "accuracy by which a candidate must beat the current bundle, significantly", group="model"
    )

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        super().__post_init__()
        try:
            find_zone(self.timezone)
        except (ValueError, OSError, ZoneInfoNotFoundError):
            check(False, "timezone", self.timezone, "a time zone's name, such as Europe/Berlin")
        for name in ("time_limit", "cost_per_hour", "drift_limit", "reference_limit"):
            value = getattr(self, name)
            check(value is None or value > 0, name, value, "more than 0")
        check(self.renew_rows >= 1, "renew_rows", self.renew_rows, "1 or more")
        check(0 <= self.margin < 1, "margin", self.margin, "a share from 0 to below 1")
        is_name = self.night is None or (re.fullmatch(r"\w[\w.-]*", self.night) and self.night[0] != "_")
        check(bool(is_name), "night", self.night, "a name of letters, digits, '.', '-' and '_', such as 2026-11-30")
        check(not (self.date and self.since), "date", self.date, "--date or --since, not both")
