"""Sketches of distinct texts."""

from sentiment_core.text.distinct_sketch import SIZE, estimate_distinct, merge_sketches, relative_error, sketch_texts


def test_a_sketch_of_few_texts_counts_them():
    one = sketch_texts([f"text {i % 70}" for i in range(1000)] + [None])
    other = sketch_texts([f"text {i}" for i in range(60, 120)])
    assert estimate_distinct(one) == 70
    assert estimate_distinct(merge_sketches(one, other)) == 120
    assert relative_error(one) == 0


def test_a_sketch_of_many_texts_is_about_right_and_adds_up():
    texts = [f"text {i}" for i in range(40_000)]
    whole = sketch_texts(texts * 2)
    assert len(whole) == SIZE
    assert abs(estimate_distinct(whole) / 40_000 - 1) < 4 * relative_error(whole)
    assert merge_sketches(sketch_texts(texts[:25_000]), sketch_texts(texts[20_000:])) == whole
