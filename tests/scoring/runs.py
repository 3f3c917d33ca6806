"""Write corpora, score them and read the result, for tests."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from sentiment_core.scoring.job import ScoreResult, score
from sentiment_core.scoring.plan import ScorePlan, plan_scoring
from sentiment_core.scoring.settings import ScoreSettings


def write_shard(root: Path, name: str, columns: dict[str, Any] | pa.Table, **options: Any) -> None:
    """Write a Parquet file below `root`."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), root / name, **options)


def plan_folder(model: object, root: object, out: object, **settings: Any) -> ScorePlan:
    """Plan the scoring of the folder `root` into `out`."""
    return plan_scoring(ScoreSettings(model=str(model), input=str(root), out=str(out), **settings))


def score_folder(model: object, root: object, out: object, **settings: Any) -> ScoreResult:
    """Score the folder `root` into `out`."""
    return score(plan_folder(model, root, out, **settings))


def read_scored(out: object) -> pa.Table:
    """Read all outputs, ordered by source and row."""
    table = pads.dataset(str(out), partitioning="hive").to_table()
    return table.sort_by([("source", "ascending"), ("row", "ascending")])
