"""Plans of nights; those of nights that were run are in `test_job`."""

import pytest

from sentiment_core.errors import UserError
from sentiment_core.nightly.plan import make_plan
from sentiment_core.nightly.settings import NightlySettings
from tests.conftest import shard


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"night": "_x"}, "--night is '_x'"),
        ({"date": "1", "since": "1"}, "not both"),
        ({"time_limit": 0.0}, "--time-limit is 0.0"),
        ({"train_config": "t.yaml"}, "--train-config needs --test-data"),
        ({"train_config": "t.yaml", "test_data": "d", "model": "{models}/first"}, "is not a folder of bundles"),
        ({"train_config": "{here}/t.yaml", "test_data": "d"}, "label_names positive,negative; expected those of the"),
    ],
)
def test_invalid_requests_are_refused(flags, words, models, tmp_path):
    shard(tmp_path / "in", "a.parquet", 5, 0)
    settings = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")} | flags
    (tmp_path / "t.yaml").write_text("data: d\nmodel: m\nlabel_names: [positive, negative]\n")
    settings = {k: v.format(models=models, here=tmp_path) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(UserError, match=words):
        make_plan(NightlySettings(**settings))
    assert not (tmp_path / "out").exists()
