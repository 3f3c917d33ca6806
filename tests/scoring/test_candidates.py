"""Candidates are chosen by sketches, whatever files are called, and where these cannot tell by path and time."""

import numpy as np
import pytest

from sentiment_core.data.shards import Unit
from sentiment_core.scoring.candidates import MOST_CANDIDATES, UNSURE_CANDIDATES, Candidates
from sentiment_core.scoring.outputs import Output
from sentiment_core.scoring.records import Origin, Run, UnitOrigin
from sentiment_core.scoring.statistics import PassCounts
from sentiment_core.text.distinct_sketch import sketch_texts

ZERO = PassCounts.zero({"": ["no", "yes"]})


def output(source: str, texts: list[str], time: int = 0, start: int = 0, reused: tuple[str, ...] = ()) -> Output:
    """Return an output by its footer; some of its texts may have been reused."""
    models = {"": ZERO.models[""].add_sketch(sketch_texts(texts))}
    counts = PassCounts(models, {"": ZERO.models[""].add_sketch(sketch_texts(reused))} if reused else {})
    unit = UnitOrigin(source, start, start + len(texts), 1_000, 1, 1)
    return Output(f"{source}-{start}", time, len(texts), Origin(Run("in", "bundle"), unit), counts, has_text_hash=True)


def chosen(outputs: list[Output], source: str, texts: list[str], start: int = 0) -> list[str]:
    candidates = Candidates.of(outputs, lambda output: False)
    assert candidates is not None
    unit = Unit(source, start, start + len(texts), 1_000, 1, 1, 1)
    return [candidates.paths[i].as_py() for i in candidates.choose(unit, texts)[0]]


def texts_of(name: str, rows: int) -> list[str]:
    return [f"{name} {i}" for i in range(rows)]


def test_outputs_that_share_texts_come_first_by_how_many_they_share():
    a, b, c = texts_of("a", 1_000), texts_of("b", 100), texts_of("c", 100)
    outputs = [output("1", a), output("2", b), output("3", c, reused=tuple(texts_of("d", 5)))]
    assert chosen(outputs, "new", [*b, *a[:500]])[:2] == ["1-0", "2-0"]
    assert chosen(outputs, "new", [*b, *c[:7]]) == ["2-0", "3-0", "1-0"]
    assert chosen(outputs, "new", ["d 3"])[0] == "3-0"


def test_an_output_whose_sketch_has_all_of_its_texts_is_left_out_if_it_shares_none():
    outputs = [output("1", texts_of("a", 100)), output("2", texts_of("b", 5_000))]
    assert chosen(outputs, "new", ["c"]) == ["2-0"]
    assert chosen(outputs, "1", ["c"]) == ["1-0", "2-0"]  # it may hold empty texts, which no sketch has


def test_where_sketches_cannot_tell_the_nearest_and_the_latest_are_looked_at():
    many = [output("x/same", texts_of(f"s{i}", 500), start=1_000 * i) for i in range(20)]
    late = [output(f"y/{i}", texts_of(f"l{i}", 500), time=10 + i) for i in range(20)]
    named = [output(f"z{i}/other", texts_of(f"n{i}", 500)) for i in range(2)]
    outputs = [*many, *late, *named]
    assert chosen(outputs, "x/same", ["new"], start=7_100)[:2] == ["x/same-7000", "x/same-8000"]
    assert len(chosen(outputs, "x/same", ["new"])) == UNSURE_CANDIDATES
    assert chosen(outputs, "w/other", ["new"]) == ["z0/other-0", "z1/other-0", "y/19-0", "y/18-0"]


def test_their_number_is_bounded():
    outputs = [output(f"{i}", [f"text {i}"], time=i) for i in range(200)]
    picked = chosen(outputs, "new", [f"text {i}" for i in range(200)])
    assert picked == [f"{i}-0" for i in range(199, 199 - MOST_CANDIDATES, -1)]
    assert len(chosen([*outputs, output("new", ["x"])], "new", [f"text {i}" for i in range(200)])) == MOST_CANDIDATES


def test_without_outputs_there_are_no_candidates():
    assert Candidates.of([], lambda output: True) is None


@pytest.mark.parametrize("texts", [[], [None, ""]])
def test_units_without_texts_are_no_trouble(texts):
    assert chosen([output("1", ["a"])], "new", texts) == []


def test_gone_outputs_are_told_from_changed_ones():
    outputs = [output("gone", ["a"], time=1), output("changed", ["b"], time=2)]
    candidates = Candidates.of(outputs, lambda output: output.path == "gone-0")
    assert candidates is not None
    assert dict(zip(candidates.paths.to_pylist(), candidates.is_gone.tolist(), strict=True)) == {
        "changed-0": False,
        "gone-0": True,
    }
    assert candidates.hashes.dtype == np.uint64
