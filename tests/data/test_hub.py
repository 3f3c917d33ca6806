"""Hub data sets, without the hub."""

import datasets
import pytest

from sentiment_core.data import hub


@pytest.mark.parametrize("name", ["imdb", "stanfordnlp/imdb", "stanfordnlp/sst2:default:validation", "a/b.c:test"])
def test_names_of_hub_data_sets_are_recognized(name):
    assert hub.is_hub_name(name)


@pytest.mark.parametrize("name", ["a/b/c", "./a", "/a", "a b", "a:b:c:d"])
def test_other_names_are_not_hub_data_sets(name):
    assert not hub.is_hub_name(name)


def test_columns_and_class_names_of_a_data_set_are_read():
    features = datasets.Features({
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "id": datasets.Value("int64"),
    })  # fmt: skip
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0], "id": [7, 8]}, features)
    data = hub.HubDataset(rows, "abc")
    assert data.column_names == ["text", "label", "id"]
    assert data.read(["text", "label"]).to_pydict() == {"text": ["a", "b"], "label": [1, 0]}
    assert (data.class_names("label"), data.class_names("id")) == (["no", "yes"], None)
