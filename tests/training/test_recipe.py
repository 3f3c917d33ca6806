"""Choose by encoder, rows and labels what the user leaves open; a given flag wins."""

from dataclasses import replace

import pytest
from transformers import BertConfig, DistilBertConfig

from sentiment_core.errors import UserError
from sentiment_core.training.recipe import FIXED, Recipe, choose_recipe, recommend
from sentiment_core.training.settings import TrainSettings

REQUEST = TrainSettings(data="d", model="m", out="o")
SMALL = BertConfig(hidden_size=384)


def test_without_a_recipe_the_values_are_fixed():
    fixed = choose_recipe(replace(REQUEST, recipe="none"), SMALL, 100, 2, 10)
    assert fixed == FIXED == Recipe(3, 32, 2e-5, 1e-4, None, 0.0, 0.0, 0.0, "accuracy")
    assert choose_recipe(replace(REQUEST, recipe="none", lr=1e-3), SMALL, 100, 2, 10) == replace(FIXED, lr=1e-3)


@pytest.mark.parametrize(
    ("config", "lr", "head_lr"),
    [
        (SMALL, 1e-4, 1e-3),
        (BertConfig(), 3e-5, 5e-4),
        (DistilBertConfig(), 3e-5, 5e-4),
        (BertConfig(hidden_size=1024), 1e-5, 2e-4),
    ],
)
def test_larger_encoders_get_lower_rates(config, lr, head_lr):
    recipe = choose_recipe(REQUEST, config, 5_000, 2, 500)
    assert (recipe.lr, recipe.head_lr) == (lr, head_lr)


def test_epochs_make_a_number_of_steps_within_limits():
    assert recommend(384, 700, 2).epochs == 10  # 420 steps of 16 rows
    assert recommend(384, 1_500, 77).epochs == 13  # 1,170
    assert recommend(384, 7_000, 2).epochs == 3


def test_few_rows_get_more_epochs():
    assert [recommend(384, rows, 2).epochs for rows in (400, 160, 50, 30, 10)] == [15, 15, 15, 30, 60]
    assert choose_recipe(replace(REQUEST, epochs=4), SMALL, 10, 2, 500).epochs == 4


def test_few_evaluation_rows_choose_no_epoch():
    assert [choose_recipe(REQUEST, SMALL, 900, 2, rows).select_by for rows in (None, 99, 100)] == [
        "last",
        "last",
        "accuracy",
    ]
    assert choose_recipe(replace(REQUEST, select_by="loss"), SMALL, 900, 2, 10).select_by == "loss"


def test_batches_grow_with_the_rows_and_have_a_row_for_each_worker():
    assert [recommend(384, rows, 2).batch_size for rows in (1_999, 2_000, 19_999, 20_000)] == [16, 32, 32, 64]
    assert recommend(384, 100, 2, workers=20).batch_size == 20
    smaller = choose_recipe(replace(REQUEST, batch_size=8), SMALL, 700, 2, 500)
    assert (smaller.batch_size, smaller.epochs) == (8, 5)  # as many steps as with 16


def test_values_that_do_not_fit_together_are_refused_before_the_training():
    with pytest.raises(UserError, match="--batch-size is 32; expected at least one row for each of 40 workers"):
        choose_recipe(replace(REQUEST, recipe="none", workers=40), SMALL, 5_000, 2, 500)


def test_small_encoders_get_what_helps_with_many_rows():
    recipe = recommend(384, 60_000, 2)
    assert (recipe.dropout, recipe.adversarial, recipe.ema_decay, recipe.data_pruning) == (0.0, 1.0, 0.999, 0.5)
    for other in (recommend(768, 60_000, 2), recommend(384, 5_000, 2)):
        assert (other.dropout, other.adversarial, other.ema_decay, other.data_pruning) == (None, 0.0, 0.0, 0.0)


def test_every_flag_that_is_given_wins():
    flags = {"epochs": 4, "batch_size": 24, "lr": 5e-5, "head_lr": 5e-4, "dropout": 0.2}
    flags |= {"adversarial": 0.0, "ema_decay": 0.0, "data_pruning": 0.0, "select_by": "macro_f1"}
    assert choose_recipe(replace(REQUEST, **flags), SMALL, 60_000, 2, 10) == Recipe(**flags)


def test_a_recipe_is_described_by_its_flags():
    rates = "--lr 0.0001 --head-lr 0.001"
    assert recommend(384, 7_000, 2).describe() == f"--epochs 3 --batch-size 32 {rates}"
    few = choose_recipe(REQUEST, SMALL, 50, 2, 10)
    assert few.describe() == f"--epochs 15 --batch-size 16 {rates} --select-by last"
    tricks = "--dropout 0 --adversarial 1 --ema-decay 0.999 --data-pruning 0.5"
    assert recommend(384, 60_000, 2).describe() == f"--epochs 3 --batch-size 64 {rates} {tricks}"
