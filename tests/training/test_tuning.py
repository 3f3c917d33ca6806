"""Which searches for settings are refused; `chaos/test_tuning.py` runs some."""

import pytest

from sentiment_core.errors import UserError
from sentiment_core.training.tuning import TuneSettings


@pytest.mark.parametrize(
    "part",
    ["lr", "lr=1e-4..1e-5", "lr=0..1e-4", "size=1/2", "out=a/b", "dropout=0/1", "head=standard/odd", "epochs=2/3"],
)
def test_a_search_that_cannot_be_is_refused(part):
    with pytest.raises(UserError):
        TuneSettings(data="d", model="m", out="o", search=(part,))
