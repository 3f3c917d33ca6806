"""Labels meet classes by their names, in whatever way files write them."""

import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.data import labelled, splits
from sentiment_core.data.labels import LabelScheme, parse_mapping
from sentiment_core.errors import UserError

MODEL = ["negative", "positive"]


def write(path, labels, names=None):
    """Write rows with these labels; `names` are those that the file declares for the numbers 0, 1, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": [f"{path.name} {i}" for i in range(len(labels))], "label": labels})
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    metadata = {"huggingface": json.dumps(features)} if names else None
    pq.write_table(table.replace_schema_metadata(metadata), path)


def read(path, *scheme, **options):
    data = labelled.read(str(path), scheme=LabelScheme(*scheme, **options))
    return [data.label_names[i] for i in data.labels], data.origin


def test_each_file_is_read_by_its_own_names(tmp_path):
    write(tmp_path / "a.parquet", [0, 1], ["neg", "pos"])
    write(tmp_path / "b.parquet", [0, 1, -1], ["pos", "neg"])
    write(tmp_path / "c.parquet", pa.array(["pos", "neg"]).dictionary_encode())
    write(tmp_path / "d.parquet", pa.array(["pos"], pa.string_view()))
    assert read(tmp_path)[0] == ["neg", "pos", "pos", "neg", "pos", "neg", "pos"]


def test_names_that_do_not_match_a_models_are_refused_unless_mapped(tmp_path):
    write(tmp_path / "a.parquet", [0, 1], ["pos", "neg"])
    with pytest.raises(
        UserError, match=r"has the labels pos, neg, .*; expected one of negative, positive; map them with"
    ):
        read(tmp_path, MODEL)
    mapping = parse_mapping(["pos=positive", "neg=negative"])
    labels, origin = read(tmp_path, MODEL, mapping=mapping)
    assert (labels, origin.label_map) == (["positive", "negative"], mapping)


def test_what_the_user_named_in_training_is_known_in_evaluation(tmp_path):
    write(tmp_path / "a.parquet", [0, 1], ["neg", "pos"])
    write(tmp_path / "b.parquet", [0, 1], ["pos", "neg"])
    train = labelled.read(str(tmp_path / "a.parquet"), scheme=LabelScheme(MODEL, by_user=True))
    assert train.labels.tolist() == [0, 1]
    assert labelled.read(str(tmp_path / "b.parquet"), scheme=train.scheme).labels.tolist() == [1, 0]
    with pytest.raises(
        UserError, match=r"names the labels 0, 1, \.\.\. neg, pos, and .*b\.parquet names them pos, neg"
    ):
        read(tmp_path, MODEL, by_user=True)


def test_numbers_taken_for_a_models_names_are_told(tmp_path):
    write(tmp_path / "a.parquet", [0, 1])
    labels, origin = read(tmp_path, MODEL)
    assert labels == MODEL
    assert origin.remarks == ["the labels 0, 1, ... of the data are taken for negative, positive"]
    assert read(tmp_path, MODEL, by_user=True)[1].remarks == []


@pytest.mark.parametrize(
    ("labels", "scheme", "expected"),
    [
        ([True, False], {}, ["true", "false"]),
        ([True, False], {"names": MODEL, "by_user": True}, ["positive", "negative"]),
        ([True, None, False], {"names": ["false", "true"]}, ["true", "false"]),
        (
            [True, False],
            {"names": MODEL, "mapping": {"true": "negative", "false": "positive"}},
            ["negative", "positive"],
        ),
        ([decimal.Decimal("1.00"), decimal.Decimal("3.00")], {}, ["1", "3"]),
        ([0, 1], {"mapping": {"0": "no", "1": "yes"}}, ["no", "yes"]),
        (pa.array([b"a", b"b"]), {}, ["a", "b"]),
        (pa.array(["a", "b"], pa.large_string()).dictionary_encode(), {}, ["a", "b"]),
    ],
)
def test_labels_of_any_type(tmp_path, labels, scheme, expected):
    write(tmp_path / "a.parquet", labels)
    assert read(tmp_path, **scheme)[0] == expected


def test_numbers_and_their_texts_are_the_same_label(tmp_path):
    write(tmp_path / "a.parquet", [1, 2])
    write(tmp_path / "b.parquet", ["2", "1"])
    assert read(tmp_path)[0] == ["1", "2", "2", "1"]


def test_labels_stand_in_the_names_of_folders(tmp_path):
    for folder in ("label=pos", "label=neg"):
        write(tmp_path / folder / "a.parquet", ["x"])
        table = pq.ParquetFile(tmp_path / folder / "a.parquet").read(columns=["text"])
        pq.write_table(table, tmp_path / folder / "a.parquet")
    assert read(tmp_path)[0] == ["neg", "pos"]
    for name, number in (("pos", 1), ("neg", 0)):
        (tmp_path / f"label={name}").rename(tmp_path / f"label={number}")
    assert read(tmp_path, MODEL, by_user=True)[0] == ["negative", "positive"]


@pytest.mark.parametrize("pair", ["pos", "=positive", "pos=", "a=b"])
def test_a_label_map_that_cannot_be_read_is_refused(pair):
    with pytest.raises(UserError, match=f"--label-map has the part '{pair}'; expected label=name, each label once"):
        parse_mapping(["a=x", pair])


def test_a_label_with_one_text_is_trained_on_and_told():
    data = labelled.LabelledTexts([str(i) for i in range(41)], np.array([0, 1] * 20 + [2]), ["a", "b", "c"])
    train, held_out = splits.hold_out(data, 0.25, seed=0)
    assert 2 in train.labels
    assert set(held_out.labels) == {0, 1}
    assert train.origin.remarks == ["trained on but never evaluated, since they have too few texts: c"]


def test_rare_labels_can_be_left_out():
    data = labelled.LabelledTexts(list("abcdef"), np.array([0, 0, 0, 1, 2, 2]), ["x", "y", "z"])
    names = labelled.find_frequent_labels(data, 2)
    left = labelled.restrict_labels(data, names)
    assert (left.label_names, left.labels.tolist(), left.texts) == (["x", "z"], [0, 0, 0, 1, 1], list("abcef"))
    assert left.origin.remarks == ["left out, with fewer rows than --min-label-rows: y (1 rows)"]
    assert labelled.restrict_labels(data, labelled.find_frequent_labels(data, 1)) is data
    with pytest.raises(UserError, match="--min-label-rows is 4; no label has so many rows: the most frequent has 3"):
        labelled.find_frequent_labels(data, 4)


@pytest.mark.parametrize("names", [["neg", "neu", "pos"], None])
def test_numbers_mean_the_same_after_rare_labels_are_left_out(tmp_path, names):
    write(tmp_path / "train.parquet", [0, 0, 1, 2, 2])
    write(tmp_path / "test.parquet", [2, 0])
    read = labelled.read(str(tmp_path / "train.parquet"), scheme=LabelScheme(names, by_user=True))
    train = labelled.restrict_labels(read, labelled.find_frequent_labels(read, 2))
    test = labelled.read(str(tmp_path / "test.parquet"), scheme=train.scheme)
    assert [test.label_names[i] for i in test.labels] == (["pos", "neg"] if names else ["2", "0"])
    write(tmp_path / "test.parquet", [2, 1])
    with pytest.raises(UserError, match="has the label 'neu'" if names else "has the label 1"):
        labelled.read(str(tmp_path / "test.parquet"), scheme=train.scheme)


@pytest.mark.parametrize("declared", [["positive", "negative", "unsure"], ["negative", "pos"], ["a", "b", "c"]])
def test_names_that_overlap_or_are_more_are_never_taken_by_position(tmp_path, declared):
    write(tmp_path / "a.parquet", [0, 1], declared)
    labels = [name for name in declared[:2] if name in MODEL]
    if labels == declared[:2]:
        assert read(tmp_path, MODEL, by_user=True)[0] == labels
    else:
        with pytest.raises(UserError, match="as the data names its numbers"):
            read(tmp_path, MODEL, by_user=True)


def test_numbers_with_and_without_names_do_not_mix(tmp_path):
    write(tmp_path / "a.parquet", [0, 1], ["neg", "pos"])
    write(tmp_path / "b.parquet", [0, 1])
    with pytest.raises(UserError, match=r"b\.parquet has the number 0 without a name, and .*a\.parquet names"):
        read(tmp_path)


@pytest.mark.parametrize("numbers", [[0, 1, 2], [0], [4]])
def test_numbers_are_no_positions_where_a_models_names_are_numbers(tmp_path, numbers):
    write(tmp_path / "a.parquet", numbers)
    with pytest.raises(UserError, match="expected one of 1, 2, 3"):
        read(tmp_path, ["1", "2", "3"])


def test_a_bundle_of_an_older_version_takes_named_numbers_by_their_order_and_says_so(tmp_path):
    """It noted that its labels were numbers, and not which names the data gave them."""
    write(tmp_path / "a.parquet", [0, 1], ["neg", "pos"])
    labels, origin = read(tmp_path, MODEL, numbered=True)
    assert (labels, origin.remarks) == (MODEL, ["the labels 0, 1, ... of the data are taken for negative, positive"])


def test_labels_of_rows_without_text_are_no_classes(tmp_path):
    table = pa.table({"text": ["a", None, " ", "b"], "label": ["x", "junk", "more", "y"]})
    pq.write_table(table, tmp_path / "a.parquet")
    data = labelled.read(str(tmp_path), scheme=LabelScheme(["x", "y"]))
    assert (data.labels.tolist(), data.origin.dropped.without_text) == ([0, 1], 2)


def test_labels_in_another_encoding_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\na,é\nb,è\n".encode("cp1252"))
    with pytest.raises(UserError, match="with bytes that are not UTF-8; give the file's encoding with --csv-encoding"):
        read(tmp_path)
