"""The model card: its numbers, as text and as the hub reads them."""

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from sentiment_core.model.records import GuaranteeGrid, Int8Check
from sentiment_core.report.model_card import make_model_card
from tests.report.examples import bundle_info, epoch_log

FIGURES = {"Confusion matrix": "confusion.png", "Loss": "loss.png"}


def table_rows(card: str) -> dict[str, list[str]]:
    """Return the rows of a card's tables: first cell to the others."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


def test_the_numbers_are_those_of_the_bundle():
    info, log = bundle_info(), epoch_log()
    card = make_model_card(info, log, FIGURES)
    rows = table_rows(card)
    assert "on 900 held-out rows" in rows
    assert rows["accuracy"] == [f"{info.metrics.accuracy:.4f}"]
    assert rows["macro-F1"] == [f"{info.metrics.macro_f1:.4f}"]
    assert rows["calibration error"] == [f"{info.metrics.ece:.4f}"]
    assert rows["calibration error before calibration"] == ["0.0625"]
    assert next(value for name, value in rows.items() if name.startswith("calibration error cross")) == ["0.0312"]
    assert rows["Brier score"] == [f"{info.metrics.brier:.4f}"]
    assert rows["mean absolute error, in labels"] == ["0.2500"]
    mean_losses = [sum(record.losses) / len(record.losses) for record in log]
    assert rows["1"] == [f"{mean_losses[0]:.4f}", "0.5000", "0.8000", "0.7500"]
    assert rows["2 (kept)"] == [f"{mean_losses[1]:.4f}", "0.4000", "0.8500", "0.8000"]
    assert rows["rows"] == ["8,100 of `reviews.csv`"]
    assert [rows[f"label {label}"] for label in info.labels] == [["25.0 %"], ["12.5 %"], ["62.5 %"]]
    assert "the calibration (temperature 1.31) fitted" in card
    assert "learning rates 2e-05 (encoder) and 0.0001 (head), 3 epochs" in card
    assert "bfloat16 on AMD EPYC, 152 s." in card
    assert re.findall(r"!\[(.*?)\]\((.*?)\)", card) == list(FIGURES.items())


def test_the_card_says_what_8_bits_change():
    info = bundle_info()
    card = make_model_card(info, epoch_log(), FIGURES)
    rows = table_rows(card)
    assert rows["rows with the same label as in float32"] == ["99.75 % of 9,000"]
    assert rows["accuracy in 8 bits"] == ["0.8425 (0.8450 in float32) on 900 held-out rows"]
    assert "`score --int8` computes 34 of 36 linear layers in 8 bits." in card


def test_the_card_says_what_accuracy_is_promised_and_where_none_is():
    info = bundle_info()
    card = make_model_card(info, epoch_log(), FIGURES)
    rows = table_rows(card)
    assert "With certainty 0.95 so many labels are right" in card
    assert rows["90 %"] == ["0.75", "40 %"]
    assert rows["95 %"] == ["0.78125", "35 %"]
    assert rows["99 %"][0].startswith("none: from 900 evaluation rows at most accuracy 0.9")
    assert "With certainty" not in make_model_card(replace(info, guarantee=GuaranteeGrid()), epoch_log(), FIGURES)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (Int8Check(agreement=0.99, rows=500, layers=18, all_layers=36), "is refused: too many labels change."),
        (Int8Check(reason="not installed"), "Not checked: not installed. `score --int8` is refused."),
        (Int8Check(), "Not checked: made by an older version."),
    ],
)
def test_the_card_says_why_there_are_no_8_bits(check, words):
    card = make_model_card(replace(bundle_info(), int8=check), epoch_log(), FIGURES)
    assert words in card
    assert "linear layers in 8 bits" not in card
    assert "accuracy in 8 bits" not in card


def test_the_hub_finds_the_same_numbers_in_the_metadata():
    info = bundle_info()
    card = ModelCard(make_model_card(info, epoch_log(), FIGURES))
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-classification")
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "accuracy": info.metrics.accuracy,
        "f1": info.metrics.macro_f1,
        "ece": info.metrics.ece,
        "brier_score": info.metrics.brier,
        "mae": info.metrics.mae,
    }
    assert {result.dataset_name for result in card.data.eval_results} == {"reviews.csv"}
    assert {result.dataset_split for result in card.data.eval_results} == {"held-out"}
    assert card.data.base_model is None  # a folder is not a model of the hub


def test_what_is_from_the_hub_is_linked_there():
    info = bundle_info("stanfordnlp/imdb:plain_text:test", "abc123")
    info.training.settings["eval_data"] = "stanfordnlp/imdb:plain_text:test"
    card = ModelCard(make_model_card(info, epoch_log(), FIGURES))
    assert {result.dataset_split for result in card.data.eval_results} == {None}
    assert card.data.base_model == "distilbert/distilbert-base-uncased"
    (dataset,) = {(r.dataset_type, r.dataset_name, r.dataset_revision) for r in card.data.eval_results}
    assert dataset == ("stanfordnlp/imdb", "stanfordnlp/imdb:plain_text:test", "abc123")
    assert "Fine-tuned from `distilbert/distilbert-base-uncased` at revision abc123 (head: standard)" in card.text


@pytest.mark.parametrize("name", ["a: b\n---\nc", "{{ 1 + 1 }}", "-"])
def test_a_strange_name_of_the_data_stays_a_name(name):
    info = bundle_info(name)
    card = ModelCard(make_model_card(info, epoch_log(), FIGURES))
    assert {result.dataset_name for result in card.data.eval_results} == {name}
