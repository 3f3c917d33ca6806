"""Sketches of distinct texts."""

from sentiment_core.text.distinct_sketch import SIZE, estimate_distinct, merge_sketches, relative_error, sketch_texts


def test_a_sketch_of_few_texts_counts_them():
    sketch = sketch_texts([f"text {i % 70}" for i in range(1000)] + [None])
    more = sketch_texts([f"text {i}" for i in range(60, 120)])
    assert estimate_distinct(sketch) == 70
    assert estimate_distinct(merge_sketches(sketch, more)) == 120
    assert relative_error(sketch) == 0


def test_a_sketch_of_many_texts_is_about_right_and_adds_up():
    texts = [f"text {i}" for i in range(40_000)]
    sketch = sketch_texts(texts * 2)
    assert len(sketch) == SIZE
    assert abs(estimate_distinct(sketch) / 40_000 - 1) < 4 * relative_error(sketch)
    assert merge_sketches(sketch_texts(texts[:25_000]), sketch_texts(texts[20_000:])) == sketch
