"""Fine-tune a BERT-family classifier on labelled text and score large Parquet corpora with it.

The files follow the data. Training: `dataset` -> `tokens` -> `classifier` -> `training` -> `calibration` -> `bundle`.
Scoring: `corpus` -> `tokens` -> `engine` -> `scored`, put together by `scoring` and checked by `verify`; both run the
`stages` on Ray by a `stream`.
"""

import os

__version__ = "0.1.0"

# Set before any of these libraries is imported; whoever wants otherwise sets the variable.
for _name, _value in {
    # What they say while they work would bury the job's own words.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",  # autoscaler notices
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # notices about retried tasks, on stdout
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # a warning about actor restarts for each pool of Ray Data
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # A Ray that a job starts for itself listens on 127.0.0.1 alone (no other node could join it).
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}.items():
    os.environ.setdefault(_name, _value)
