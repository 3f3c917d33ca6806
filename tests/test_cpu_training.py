"""Dropout and attention on a CPU give what torch and transformers give."""

import copy

import pytest
import torch
from torch import nn

from sentiment_core import classifier, cpu_training
from sentiment_core.cpu_training import Dropout


def test_dropout_drops_the_share_it_is_told_and_keeps_the_mean():
    dropout = Dropout(0.3).train()
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, requires_grad=True)
    y = dropout(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=2e-3)  # four standard errors
    assert y.mean().item() == pytest.approx(1, abs=4e-3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # the same elements, scaled alike
    rows = (y == 0).float().mean(dim=1)
    assert rows.std().item() == pytest.approx((0.3 * 0.7 / 1001) ** 0.5, rel=0.1)  # each for itself
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)
    assert not torch.equal(dropout(x), y)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("precise", [True, False], ids=["float32", "bfloat16"])
def test_the_same_logits_and_gradients_as_eager_attention(tiny_encoder, precise):
    torch.manual_seed(0)
    config = classifier.make_config(tiny_encoder, ["a", "b"], dropout=0.0)
    eager = classifier.from_encoder(tiny_encoder, config, "standard").train()
    classifier.set_head_dropout(eager, 0.0)
    ours = copy.deepcopy(eager)
    eager.pretrained.set_attn_implementation("eager")
    cpu_training.prepare(ours)
    ids = torch.randint(1000, 20000, (3, 17))
    mask = (torch.arange(17) < torch.tensor([[17], [9], [1]])).long()
    for model in (eager, ours):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            model.logits = model(ids, mask).float()
        model.logits.square().sum().backward()
    near = {"atol": 1e-6, "rtol": 1e-5} if precise else {"atol": 3e-2, "rtol": 3e-2}
    torch.testing.assert_close(ours.logits, eager.logits, **near)
    for (name, one), other in zip(ours.named_parameters(), eager.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, **near, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_may_look_at_nothing_gets_numbers(dtype):
    """As in families that look around within a window, behind the end of a row."""
    query, key, value = (torch.randn(1, 2, 4, 4, dtype=dtype) for _ in range(3))
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 3, :] = torch.finfo(torch.float32).min
    found, _ = cpu_training.attend(nn.Module().train(), query, key, value, mask, dropout=0.5)
    assert found.isfinite().all()


@pytest.mark.parametrize("p", [1e-7, 1 - 1e-7])
def test_dropout_stands_the_extremes(p):
    y = Dropout(p).train()(torch.ones(100))
    assert y.isfinite().all()
    assert (y.mean() == 1) == (p < 0.5)


def test_attention_with_dropout_has_the_mean_of_that_without():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 8, 4) for _ in range(3))
    module = nn.Module().train()
    many = [cpu_training.attend(module, query, key, value, None, dropout=0.4)[0] for _ in range(4000)]
    whole, _ = cpu_training.attend(module.eval(), query, key, value, None, dropout=0.4)
    assert (many[0] - whole).abs().max() > 0.1
    torch.testing.assert_close(torch.stack(many).mean(dim=0), whole, atol=0.1, rtol=0)


def test_dropout_is_replaced_wherever_it_is(tiny_encoder):
    config = classifier.make_config(tiny_encoder, ["a", "b"], dropout=0.25)
    model = classifier.from_encoder(tiny_encoder, config, "mlp")
    before = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    cpu_training.prepare(model)
    assert [module.p for module in model.modules() if type(module) is Dropout] == before
    assert not any(type(module) is nn.Dropout for module in model.modules())
    assert model.pretrained.config._attn_implementation == cpu_training.ATTENTION


def test_long_rows_are_computed_in_smaller_parts(tiny_encoder):
    config = classifier.make_config(tiny_encoder, ["a", "b"])
    config.num_attention_heads = 12
    assert cpu_training.budget(2048, config, 64) == 2048
    rows = cpu_training.budget(2048, config, 512) // 512
    assert 0 < 4 * 12 * rows * 512**2 <= cpu_training.SCORES_BYTES < 4 * 12 * (rows + 1) * 512**2
