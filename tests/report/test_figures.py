"""Figures of bundles and corpora."""

import pytest

from sentiment_core.model.records import Metrics
from sentiment_core.report import figures
from tests.report.examples import LABELS


def test_labels_with_dollars_are_drawn_as_they_are():
    metrics = Metrics(labels=["$5_$10", "$5% - $10%"], confusion=[[3, 1], [0, 2]], n=6)
    figure = figures.draw_confusion_matrix(metrics)
    assert figures.to_png(figure).startswith(b"\x89PNG")
    assert [text.get_text() for text in figure.axes[0].texts] == ["3\n75 %", "1\n25 %", "0\n0 %", "2\n100 %"]


def test_label_shares_are_stacked_to_one():
    shares = {"tweets": [0.2, 0.3, 0.5], "movies": [0.4, 0.1, 0.5]}
    figure = figures.draw_label_shares(
        {kind: dict(zip(LABELS, values, strict=True)) for kind, values in shares.items()}
    )
    ends = [bar.get_x() + bar.get_width() for bar in figure.axes[0].containers[-1]]
    assert ends == pytest.approx([1, 1])


def test_a_search_has_a_panel_for_its_trials_and_for_every_setting():
    trials = [
        {"settings": {"lr": lr, "head": "mlp"}, "scores": [-0.7, -lr]}  # a loss
        for lr in (0.1, 0.2, 0.3)
    ]
    figure = figures.draw_search_results([*trials, {"settings": {}, "scores": []}], "loss")
    assert [panel.get_title() for panel in figure.axes] == ["Trials", "lr", "head"]
    lowest_losses = figure.axes[1].collections[0].get_offsets()[:, 1]
    assert lowest_losses.tolist() == [0.1, 0.2, 0.3]
