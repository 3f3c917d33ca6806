"""The context that all tasks of a run share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from sentiment_core.data.snapshot import TableColumns
from sentiment_core.scoring.candidates import Candidates
from sentiment_core.scoring.models import PassModel
from sentiment_core.scoring.records import Run
from sentiment_core.scoring.statistics import PassCounts


@dataclass(frozen=True)
class ScoringContext:
    """The settings, models and places of a run, which do not depend on its units."""

    input_root: str
    output_folder: str
    run: Run
    models: tuple[PassModel, ...]
    column_types: dict[str, pa.DataType]  # of columns that some shards have only nulls in
    table: TableColumns | None = None  # the columns of the table that the input is
    hash_texts: bool = True  # outputs get the texts' hashes, by which later runs find their scores
    # outputs whose path a new one takes, and where they are kept until all rows that were in them are scored
    aside: Mapping[str, str] = field(default_factory=dict)
    candidates: Candidates | None = None  # earlier outputs whose scores may be reused

    @property
    def no_counts(self) -> PassCounts:
        """The statistics of no rows."""
        return PassCounts.zero({model.name: model.labels for model in self.models})
