"""Samples for shares stand for the corpus; samples for training hold new, uncertain texts that differ."""

import csv
import hashlib
import json
import os

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from sentiment_core import cli
from sentiment_core.analysis.sample import SampleSettings, sample
from sentiment_core.analysis.sample_file import read_sample
from sentiment_core.data import labelled
from sentiment_core.data.readers import Columns
from sentiment_core.data.sample_columns import unescape
from sentiment_core.errors import UserError
from sentiment_core.model.objective import MultiLabel
from tests.analysis.outputs import write_output
from tests.lake import make_catalog
from tests.scoring.conftest import ODD_TEXTS
from tests.scoring.runs import score_folder, write_shard


def number_of(text: str | None) -> int:
    return int.from_bytes(hashlib.blake2b((text or "").encode(), digest_size=4).digest(), "little")


def predict(texts):
    """Give each text some probability of `yes`, by its hash."""
    yes = np.array([number_of(text) % 1000 / 1000 for text in texts])
    return np.stack([1 - yes, yes], axis=1)


def is_yes(text: str) -> bool:
    """Say what is true: the more probable answer, mostly."""
    p, chance = number_of(text) % 1000 / 1000, number_of(text + "!") % 1000 / 1000
    return chance < p**2


def texts_of(name: str, rows: int) -> list[str]:
    return [f"{name} text {i}" for i in range(rows)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write a small day and a large one. Some rows have no text."""
    root = tmp_path_factory.mktemp("sample") / "in"
    write_shard(root, "day=1/a.parquet", {"text": [None, " ", *texts_of("a", 798)], "shop": ["x", None] * 400})
    write_shard(root, "day=1/b.parquet", {"text": texts_of("b", 700), "shop": ["y"] * 700}, row_group_size=100)
    write_shard(root, "day=2/c.parquet", {"text": texts_of("c", 100), "shop": ["x"] * 100})
    return root


@pytest.fixture(scope="module")
def out(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("sample") / "out"
    write_output(root, out, predict, min_confidence=0.6)
    return out


def draw(out, to, rows=100, **settings):
    return sample(SampleSettings(scored=str(out), rows=rows, to=str(to), **settings))


def cells_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sample_for_shares_leaves_nothing_out(out, root, tmp_path):
    result = draw(out, tmp_path / "s.csv")
    drawn = read_sample(str(tmp_path / "s.csv"))
    assert (result.rows, result.population, len(drawn)) == (100, 1598, 100)
    assert drawn.weight.sum() == pytest.approx(1598)  # rows without text are no part of it, abstained ones are
    assert any("no label" in name for name in result.strata)
    assert {name.partition(" ")[0] for name in result.strata} == {"day=1", "day=2"}
    assert all(drawn >= 5 for _, drawn in result.strata.values())
    texts = {text: (path, row) for path in ("day=1/a", "day=1/b", "day=2/c") for row, text in enumerate(
        texts_of(path[-1], 800) if path != "day=1/a" else [None, " ", *texts_of("a", 798)])}  # fmt: skip
    for row in cells_of(tmp_path / "s.csv"):
        assert texts[row["text"]] == (row["source"].removesuffix(".parquet"), int(row["row"]))
        assert row["label"] == ""


def test_estimates_over_many_samples_are_unbiased(out, root, tmp_path):
    everything = [text for name, rows in (("a", 798), ("b", 700), ("c", 100)) for text in texts_of(name, rows)]
    truth = np.mean([is_yes(text) for text in everything])
    estimates = []
    for seed in range(60):
        draw(out, tmp_path / f"{seed}.csv", rows=60, seed=seed)
        rows = cells_of(tmp_path / f"{seed}.csv")
        weights = read_sample(str(tmp_path / f"{seed}.csv")).weight
        yes = np.array([is_yes(row["text"]) for row in rows])
        estimates.append((weights * yes).sum() / weights.sum())
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 3 * error
    assert np.std(estimates) < np.sqrt(truth * (1 - truth) / 60)  # better than rows drawn at random


def test_the_seed_decides_the_rows(out, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw(out, tmp_path / f"{name}.csv", seed=seed)
    first, again, third = ((tmp_path / f"{name}.csv").read_bytes() for name in "abc")
    assert first == again
    assert first != third


def test_who_stops_early_has_a_sample_of_all_strata(out, tmp_path):
    draw(out, tmp_path / "s.csv", rows=200)
    strata = [row["stratum"].partition(" |")[0] for row in cells_of(tmp_path / "s.csv")]
    assert {*strata[:40]} == {"day=1", "day=2"}


def test_few_rows_are_not_drawn_by_partition(out, tmp_path):
    result = draw(out, tmp_path / "s.csv", rows=19)
    assert "not drawn by day: its 2 groups would get fewer than 10 rows each" in result.report()
    assert not any("day" in name for name in result.strata)


def test_the_first_partition_keys_are_taken_where_all_are_too_many(tmp_path):
    for year in range(2):
        for month in range(6):
            write_shard(
                tmp_path / "in", f"year={year}/month={month}/a.parquet", {"text": texts_of(f"{year}{month}", 9)}
            )
    write_output(tmp_path / "in", tmp_path / "out", predict)
    result = draw(tmp_path / "out", tmp_path / "s.csv", rows=50)
    assert "drawn from each of 2 groups by year" in result.remarks


def test_a_kept_column_can_be_the_groups(out, tmp_path):
    result = draw(out, tmp_path / "s.csv", by=("shop",))
    assert {name.partition(" ")[0] for name in result.strata} == {"shop=x", "shop=y", "shop=null"}
    with pytest.raises(UserError, match="--by is 'town'; expected a partition key or a kept column"):
        draw(out, tmp_path / "t.csv", by=("town",))


def test_a_corpus_with_fewer_rows_is_drawn_whole(out, tmp_path):
    result = draw(out, tmp_path / "s.csv", rows=5_000)
    assert result.rows == result.population == 1598
    assert (read_sample(str(tmp_path / "s.csv")).weight == 1).all()


def test_files_are_never_overwritten(out, tmp_path):
    (tmp_path / "s.csv").write_text("hours of work")
    with pytest.raises(UserError, match=r"s.csv exists, and may hold labels"):
        draw(out, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == "hours of work"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"to": "-"}, "--to is '-'; expected a file that ends in .csv"),
        ({"rows": 0}, "--rows is 0; expected 1 or more"),
        ({"exclude": ("a.csv",)}, "a sample for shares leaves nothing out"),
        ({"for_": "training", "by": ("day",)}, "a sample for training has no groups"),
        ({"by": ("a", "a")}, "expected different keys"),
    ],
)
def test_settings_are_checked(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        SampleSettings(**{"scored": "out", "rows": 10, "to": "s.csv"} | settings)


def test_a_changed_shard_is_refused_and_a_gone_one_said(root, tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": texts_of("a", 50)})
    write_shard(tmp_path / "in", "b.parquet", {"text": texts_of("b", 50)})
    write_output(tmp_path / "in", tmp_path / "out", predict)
    (tmp_path / "in/b.parquet").unlink()
    result = draw(tmp_path / "out", tmp_path / "s.csv", rows=10)
    assert "50 scored rows were not drawn from, since their shards are gone" in result.remarks
    assert result.population == 50
    write_shard(tmp_path / "in", "a.parquet", {"text": texts_of("changed", 50)})
    with pytest.raises(UserError, match=r"a.parquet of .* has changed since it was scored.*score again, then sample"):
        draw(tmp_path / "out", tmp_path / "t.csv")
    with pytest.raises(UserError, match="has none of the shards"):
        draw(tmp_path / "out", tmp_path / "t.csv", input=str(root))
    assert not (tmp_path / "t.csv").exists()


def test_a_moved_input_is_named(out, root, tmp_path):
    (tmp_path / "moved").symlink_to(root)
    assert draw(out, tmp_path / "s.csv", input=str(tmp_path / "moved")).rows == 100


def test_rows_that_are_not_scored_yet_are_said(root, tmp_path):
    write_output(root, tmp_path / "out", predict, only=lambda unit: unit.source == "day=2/c.parquet")
    result = draw(tmp_path / "out", tmp_path / "s.csv", rows=3)
    assert (result.rows, result.population) == (3, 100)
    assert any(remark.startswith("2 shards of the input are not scored") for remark in result.remarks)


def test_a_corpus_without_text_is_refused(tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": [None, " "]})
    write_output(tmp_path / "in", tmp_path / "out", predict)
    for purpose in ("shares", "training"):
        with pytest.raises(UserError, match="holds no row with text"):
            draw(tmp_path / "out", tmp_path / "s.csv", for_=purpose)


def test_rows_of_a_table_come_from_the_version_that_was_scored(tmp_path):
    write_deltalake(tmp_path / "table", pa.table({"day": ["1"] * 30, "text": texts_of("a", 30)}), partition_by=["day"])
    write_output(tmp_path / "table", tmp_path / "out", predict)
    write_deltalake(tmp_path / "table", pa.table({"day": ["2"] * 5, "text": texts_of("b", 5)}), mode="overwrite")
    draw(tmp_path / "out", tmp_path / "s.csv", rows=20, by=("day",))
    rows = cells_of(tmp_path / "s.csv")
    assert {row["text"] for row in rows} < {*texts_of("a", 30)}
    assert {row["stratum"].partition(" |")[0] for row in rows} == {"day=1"}


def test_partition_columns_of_tables_are_groups_only_if_they_are_named(tmp_path):
    rows = pa.table({"day": ["1", "2"] * 30, "text": texts_of("a", 60)})
    write_deltalake(tmp_path / "delta", rows, partition_by=["day"])
    table = make_catalog(tmp_path).create_table("ns.t", rows.schema)
    with table.update_spec() as update:
        update.add_identity("day")
    table.append(rows)
    for name, root in (("delta", tmp_path / "delta"), ("iceberg", table.metadata_location)):
        write_output(root, tmp_path / name / "out", predict)
        result = draw(tmp_path / name / "out", tmp_path / f"{name}.csv", rows=40)
        assert not any("day" in stratum for stratum in result.strata)
        result = draw(tmp_path / name / "out", tmp_path / f"{name} by.csv", rows=40, by=("day",))
        assert {stratum.partition(" ")[0] for stratum in result.strata} == {"day=1", "day=2"}


def test_one_of_several_models_and_several_labels(root, tmp_path):
    def several(texts):
        return np.array([[number_of(f"{text}{i}") % 1000 / 1000 for i in range(3)] for text in texts])

    write_output(root, tmp_path / "out", several, "abc", MultiLabel(), names=("mood", "topic"))
    result = draw(tmp_path / "out", tmp_path / "s.csv", name="topic")
    assert result.next_steps[0].startswith("next: fill the column label with any of: a, b, c; write | between several")
    assert result.next_steps[1].endswith("s.csv --name topic --by day")
    assert "--label-separator '|'" in result.next_steps[2]
    assert read_sample(str(tmp_path / "s.csv")).weight.sum() == pytest.approx(1598)
    training = draw(tmp_path / "out", tmp_path / "t.csv", name="mood", for_="training", rows=20)
    assert training.rows == 20


def test_several_text_columns_stay_columns(tmp_path):
    columns = {"title": ["=a", None] * 20, "body": texts_of("b", 40)}
    write_shard(tmp_path / "in", "a.parquet", columns)
    write_output(tmp_path / "in", tmp_path / "out", predict, text_column="title,body")
    draw(tmp_path / "out", tmp_path / "s.csv", rows=40)
    rows = cells_of(tmp_path / "s.csv")
    assert {(row["title"], row["body"]) for row in rows} == {
        (("'=a", "")[i % 2], text) for i, text in enumerate(columns["body"])
    }


def test_a_sample_for_training_holds_uncertain_texts_once(tmp_path):
    texts = [*texts_of("a", 200), *["the same text"] * 100, *texts_of("a", 200)]
    write_shard(tmp_path / "in", "a.parquet", {"text": texts})
    write_output(tmp_path / "in", tmp_path / "out", predict)
    result = draw(tmp_path / "out", tmp_path / "s.csv", rows=20, for_="training")
    rows = cells_of(tmp_path / "s.csv")
    assert len({row["text"] for row in rows}) == len(rows) == 20
    assert {(row["stratum"], row["weight"]) for row in rows} == {("", "")}
    confidence = np.abs(predict([row["text"] for row in rows])[:, 1] - 0.5)
    assert confidence.max() <= np.quantile(np.abs(predict(texts_of("a", 200))[:, 1] - 0.5), 0.6)
    assert "chosen from the 100 least confident texts, each once" in result.report()


def test_copies_do_not_make_a_sample_for_training_read_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("sentiment_core.analysis.sample.MOST_CANDIDATES", 200)
    write_shard(tmp_path / "in", "a.parquet", {"text": ["the same text"] * 300 + texts_of("a", 10)})
    same = predict(["the same text"])[0]
    write_output(tmp_path / "in", tmp_path / "out", lambda texts: [same if t[0] == "t" else [0, 1] for t in texts])
    result = draw(tmp_path / "out", tmp_path / "s.csv", rows=5, for_="training")
    assert [row["text"] for row in cells_of(tmp_path / "s.csv")] == ["the same text"]
    sentence = (
        "there are only 1 different texts without labels among the 200 least confident rows; the rest was not read"
    )
    assert sentence in result.remarks
    with pytest.raises(UserError, match=r"the 200 least confident texts of .* have labels already"):
        draw(tmp_path / "out", tmp_path / "t.csv", rows=5, for_="training", exclude=(str(tmp_path / "s.csv"),))


def test_a_look_at_the_first_rows_is_no_corpus(root, tmp_path):
    write_output(root, tmp_path / "out", predict, limit=1_600)
    result = draw(tmp_path / "out", tmp_path / "s.csv")
    assert any(line.startswith("the output holds the first 1,600 rows of the corpus only") for line in result.remarks)


def test_texts_with_labels_are_not_drawn_for_training(tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": texts_of("a", 60)})
    write_output(tmp_path / "in", tmp_path / "out", predict)
    draw(tmp_path / "out", tmp_path / "first.csv", rows=30, for_="training")
    write_shard(tmp_path, "old.parquet", {"text": texts_of("a", 10), "label": ["yes"] * 10})
    excluded = (str(tmp_path / "first.csv"), str(tmp_path / "old.parquet"))
    result = draw(tmp_path / "out", tmp_path / "s.csv", rows=60, for_="training", exclude=excluded)
    first, second = ({row["text"] for row in cells_of(tmp_path / name)} for name in ("first.csv", "s.csv"))
    assert second == {*texts_of("a", 60)} - first - {*texts_of("a", 10)}
    labelled_before = len(first | {*texts_of("a", 10)})
    assert f"{labelled_before} of the 60 least confident rows have labels already" in result.remarks
    assert f"there are only {60 - labelled_before} different texts without labels" in result.remarks
    write_shard(tmp_path, "all.parquet", {"text": texts_of("a", 60)})
    with pytest.raises(UserError, match="have labels already; there is nothing left to draw"):
        draw(tmp_path / "out", tmp_path / "t.csv", for_="training", exclude=(str(tmp_path / "all.parquet"),))
    write_shard(tmp_path, "no_text.parquet", {"review": texts_of("a", 60)})
    with pytest.raises(UserError, match=r"--exclude: .* has no column 'text'; it has review$"):
        draw(tmp_path / "out", tmp_path / "t.csv", for_="training", exclude=(str(tmp_path / "no_text.parquet"),))


def test_the_training_data_of_the_bundle_is_left_out(tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": texts_of("a", 60)})
    write_shard(tmp_path, "train.parquet", {"review": texts_of("a", 40), "label": ["yes"] * 40})
    record = {"format_version": 2, "head": "standard", "labels": ["no", "yes"], "max_length": 32}
    record["training"] = {"settings": {"text_column": ["review"]}, "data": {"place": str(tmp_path / "train.parquet")}}
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/sentiment.json").write_text(json.dumps(record))
    write_output(tmp_path / "in", tmp_path / "out", predict, model=str(tmp_path / "bundle"))
    result = draw(tmp_path / "out", tmp_path / "s.csv", rows=60, for_="training")
    assert {row["text"] for row in cells_of(tmp_path / "s.csv")} == {*texts_of("a", 60)[40:]}
    assert f"texts of the bundle's training data were left out ({tmp_path / 'train.parquet'})" in result.remarks

    def trained_on(path):
        record["training"]["data"]["place"] = str(path)
        (tmp_path / "bundle/sentiment.json").write_text(json.dumps(record))

    trained_on(tmp_path / "tr*.parquet")
    assert draw(tmp_path / "out", tmp_path / "glob.csv", rows=60, for_="training").rows == 20
    trained_on("iceberg://absent/name.of_table")
    result = draw(tmp_path / "out", tmp_path / "iceberg.csv", rows=60, for_="training")
    assert any("training data cannot be read (iceberg://absent/name.of_table" in line for line in result.remarks)
    record["distillation"] = {"teacher": "t", "texts": {"place": str(tmp_path / "train.parquet")}}
    trained_on(tmp_path / "train.parquet")
    result = draw(tmp_path / "out", tmp_path / "taught.csv", rows=60, for_="training")
    assert result.rows == 60
    told = "the bundle that scored learned from a teacher, without labels: no text was left out"
    assert told in result.remarks
    del record["distillation"]
    trained_on(tmp_path / "train.parquet")
    (tmp_path / "train.parquet").unlink()
    result = draw(tmp_path / "out", tmp_path / "t.csv", rows=60, for_="training")
    assert result.rows == 60
    assert any("is not at hand; rows of it were not left out; give it with --exclude" in r for r in result.remarks)


def test_labelled_rows_of_a_sample_are_training_data(out, tmp_path):
    draw(out, tmp_path / "s.csv", rows=20, for_="training")
    rows = cells_of(tmp_path / "s.csv")
    with open(tmp_path / "s.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row | {"label": "yes" if i < 12 else ""} for i, row in enumerate(rows))
    data = labelled.read(str(tmp_path / "s.csv"), Columns())
    assert data.texts == [row["text"] for row in rows[:12]]
    assert "8 of 20 rows of samples have no label yet and were left out" in data.origin.remarks
    assert data.origin.dropped.without_label == 8


def test_the_command_prints_strata_and_what_to_do_next(out, tmp_path, capsys, own_process):
    with pytest.raises(SystemExit) as done:
        cli.main(["sample", "--scored", str(out), "--rows", "50", "--for", "shares", "--to", str(tmp_path / "s.csv")])
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"50 of 1,598 rows with text were drawn into {tmp_path / 's.csv'}"
    assert "next: fill the column label with one of: no, yes; rows that nobody reaches stay empty; then" in lines
    assert f"  sentiment-core shares --scored {out} --labelled {tmp_path / 's.csv'} --by day" in lines


def test_unreadable_text_is_named(tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": texts_of("a", 20)})
    write_output(tmp_path / "in", tmp_path / "out", predict)
    path = tmp_path / "in/a.parquet"
    content, stat = path.read_bytes(), path.stat()
    path.write_bytes(content[:4] + b"\x00" * (len(content) - 40) + content[-36:])
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match=r"a.parquet.*(has changed since|cannot be read)"):
        draw(tmp_path / "out", tmp_path / "s.csv")


def test_rows_that_a_real_model_scored_are_drawn(in_process, tiny_bundle, tmp_path):
    odd = [*ODD_TEXTS, "=1+1", 'a\r\nb, "c"; d\'']
    write_shard(tmp_path / "in", "kind=a/plain.parquet", {"text": odd, "id": [*range(len(odd))]}, row_group_size=3)
    write_shard(tmp_path / "in", "kind=b/dictionary.parquet", {"text": pa.array(odd).dictionary_encode()})
    score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out")
    result = draw(tmp_path / "out", tmp_path / "s.csv", rows=500)
    rows = cells_of(tmp_path / "s.csv")
    assert result.rows == result.population == len(rows)
    for row in rows:
        text = unescape(row["text"])
        assert text == odd[int(row["row"])]
    assert read_sample(str(tmp_path / "s.csv")).weight.sum() == result.population
    training = draw(tmp_path / "out", tmp_path / "t.csv", rows=5, for_="training")
    assert training.rows == 5
