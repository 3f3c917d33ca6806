"""Dropout and attention on a CPU give what torch and transformers give."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch import nn
from transformers import AutoConfig

from sentiment_core.model import classifier
from sentiment_core.training import cpu
from sentiment_core.training.cpu import Dropout, ShardedBackward


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


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_dropout_passes_on_autocasts_type_in_training_alone(p):
    x = torch.ones(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert Dropout(p).train()(x).dtype == torch.bfloat16
        assert Dropout(p).eval()(x) is x
    assert Dropout(p).train()(x).dtype == torch.float32


@pytest.mark.parametrize("precise", [True, False], ids=["float32", "bfloat16"])
def test_the_same_logits_and_gradients_as_eager_attention(tiny_encoder, precise):
    torch.manual_seed(0)
    config = classifier.make_config(tiny_encoder, ["a", "b"], dropout=0.0)
    eager = classifier.from_encoder(tiny_encoder, config, "standard").train()
    classifier.set_head_dropout(eager, 0.0)
    ours = copy.deepcopy(eager)
    eager.pretrained.set_attn_implementation("eager")
    cpu.prepare(ours)
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
def test_a_family_with_windows_gets_the_losses_and_gradients_of_eager_attention(dtype):
    """In parts side by side, with rows longer than the window and padding that it does not reach."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "modernbert", vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        pad_token_id=0, cls_token_id=1, sep_token_id=2, local_attention=8,
        layer_types=["sliding_attention", "full_attention"], initializer_range=0.1,
    )  # fmt: skip
    eager = classifier.from_config(config, "standard").train()
    ours = copy.deepcopy(eager)
    eager.pretrained.set_attn_implementation("eager")
    cpu.prepare(ours)
    assert ours.pretrained.config._attn_implementation == cpu.ATTENTION
    assert eager.pretrained.config._attn_implementation == "eager"
    ids, targets = torch.randint(5, 99, (4, 40)), torch.tensor([0, 1, 1, 0])
    mask = (torch.arange(40) < torch.tensor([[40], [33], [3], [1]])).long()

    def loss(model, part):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(ids[part], mask[part]).float()
        return nn.functional.cross_entropy(logits, targets[part], reduction="sum")

    expected = loss(eager, np.arange(4))
    expected.backward()
    found = ShardedBackward(ours, dtype, threads=2).add_parts(loss, [np.array([0, 2]), np.array([1, 3])])
    near = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 3e-2}
    torch.testing.assert_close(found, expected.detach(), **near)
    for (name, parameter), other in zip(ours.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, **near, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_may_look_at_nothing_gets_numbers(dtype):
    """As in families that look around within a window, behind the end of a row."""
    query, key, value = (torch.randn(1, 2, 4, 4, dtype=dtype) for _ in range(3))
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 3, :] = torch.finfo(torch.float32).min
    found, _ = cpu.attend(nn.Module().train(), query, key, value, mask, dropout=0.5)
    assert found.isfinite().all()


@pytest.mark.parametrize("p", [1e-7, 1 - 1e-7])
def test_dropout_stands_the_extremes(p):
    y = Dropout(p).train()(torch.ones(100))
    assert y.isfinite().all()
    assert (y.mean() == 1) == (p < 0.5)


@pytest.mark.slow
def test_attention_with_dropout_has_the_mean_of_that_without():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 8, 4) for _ in range(3))
    module = nn.Module().train()
    many = [cpu.attend(module, query, key, value, None, dropout=0.4)[0] for _ in range(4000)]
    whole, _ = cpu.attend(module.eval(), query, key, value, None, dropout=0.4)
    assert (many[0] - whole).abs().max() > 0.1
    torch.testing.assert_close(torch.stack(many).mean(dim=0), whole, atol=0.1, rtol=0)


def test_dropout_is_replaced_wherever_it_is(tiny_encoder):
    config = classifier.make_config(tiny_encoder, ["a", "b"], dropout=0.25)
    model = classifier.from_encoder(tiny_encoder, config, "mlp")
    before = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    cpu.prepare(model)
    assert [module.p for module in model.modules() if type(module) is Dropout] == before
    assert not any(type(module) is nn.Dropout for module in model.modules())
    assert model.pretrained.config._attn_implementation == cpu.ATTENTION


def test_long_rows_are_computed_in_smaller_parts(tiny_encoder):
    config = classifier.make_config(tiny_encoder, ["a", "b"])
    config.num_attention_heads = 12
    assert cpu.limit_budget(2048, config, 64) == 2048
    rows = cpu.limit_budget(2048, config, 512) // 512
    assert 0 < 4 * 12 * rows * 512**2 <= cpu.SCORES_BYTES < 4 * 12 * (rows + 1) * 512**2


def sharded_and_model(encoder, dropout, dtype):
    torch.manual_seed(0)
    model = classifier.from_encoder(encoder, classifier.make_config(encoder, ["a", "b"], dropout), "standard").train()
    classifier.set_head_dropout(model, dropout)
    cpu.prepare(model)
    return ShardedBackward(model, dtype, threads=2), model


def loss_of(dtype):
    ids = torch.randint(1000, 20000, (7, 9), generator=torch.Generator().manual_seed(0))

    def loss(model, part):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(ids[part], torch.ones_like(ids[part])).float()
        return logits.square().sum()

    return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[7], [3, 2, 1, 1]], ids=str)
def test_parts_side_by_side_give_the_gradients_of_the_whole(tiny_encoder, dtype, sizes):
    sharded, model = sharded_and_model(tiny_encoder, 0.0, dtype)
    parts = np.split(np.arange(7), np.cumsum(sizes)[:-1])
    whole = loss_of(dtype)(model, np.arange(7))
    whole.backward()
    expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    near = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 3e-2}
    model.zero_grad()
    for times in (1, 2):  # on top of what is there
        torch.testing.assert_close(sharded.add_parts(loss_of(dtype), parts), whole.detach(), **near)
        for (name, p), gradient in zip(model.named_parameters(), expected, strict=True):
            if gradient is None:
                assert p.grad is None, name
            else:
                assert p.grad.dtype == torch.float32
                torch.testing.assert_close(p.grad / times, gradient, **near, msg=name)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert sharded.add_parts(loss_of(dtype), parts) == 0  # the weights are the model's of now


def test_parts_side_by_side_drop_the_same_from_the_same_random_state(tiny_encoder):
    sharded, model = sharded_and_model(tiny_encoder, 0.5, torch.float32)
    parts = [np.array([i]) for i in range(7)]
    found = []
    for seed in (1, 1, 1, 2):
        model.zero_grad()
        torch.manual_seed(seed)
        loss = sharded.add_parts(loss_of(torch.float32), parts)
        found.append([loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for again in found[1:3]:
        assert all(torch.equal(x, y) for x, y in zip(again, found[0], strict=True))
    assert found[3][0] != found[0][0]


def test_a_part_leaves_the_threads_own_dropout_to_torchs_random_state(tiny_encoder):
    sharded, _ = sharded_and_model(tiny_encoder, 0.5, torch.float32)
    sharded.add_parts(loss_of(torch.float32), [np.arange(7)])
    dropped = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        dropped.append(Dropout(0.5).train()(torch.ones(1000)))
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
@pytest.mark.parametrize("budget", [1, 60, 500, 5000])
def test_parts_have_every_row_once_and_keep_the_budget(rows, budget):
    lengths = np.random.default_rng(rows).integers(1, 30, rows)
    parts = ShardedBackward.split(lengths, budget)
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert len(parts) % 2 == 0 or len(parts) in (1, rows)
    for part in parts:
        assert len(part) == 1 or len(part) * lengths[part].max() <= budget


def test_a_worker_allocates_by_jemalloc(ray_here):
    environment = cpu.environment()
    if "LD_PRELOAD" not in environment:
        pytest.skip("needs Linux on x86-64, and an own choice of malloc (LD_PRELOAD) not made")

    @ray.remote(num_cpus=0, runtime_env={"env_vars": environment})
    def libraries() -> str:
        return Path("/proc/self/maps").read_text()

    assert os.path.realpath(environment["LD_PRELOAD"]) in ray.get(libraries.remote())


def test_threads_of_a_worker_do_not_spin_for_long(monkeypatch):
    """A training beside a busy process made a fifth of what it makes so."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert 0 < int(cpu.environment()["GOMP_SPINCOUNT"]) < 100_000  # by default it is 300,000


@pytest.mark.parametrize("name", ["LD_PRELOAD", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_the_users_own_choice_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    added = cpu.environment()
    assert name not in added
    assert ("MALLOC_CONF" in added) <= ("LD_PRELOAD" in added)
    assert ("GOMP_SPINCOUNT" in added) <= (name == "LD_PRELOAD")


@pytest.mark.skipif("LD_PRELOAD" not in cpu.environment(), reason="needs Linux on x86-64, for which Ray has jemalloc")
def test_unused_memory_is_given_back_to_the_system():
    script = """
import torch
from sentiment_core.training import cpu

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

unused, tensor = cpu.UnusedMemory(), torch.ones(100 << 20)
del tensor
full = resident()
unused.give_back()  # too early
held = resident()
unused.give_back(after_s=0)
print(full - held, held - resident())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | cpu.environment(), capture_output=True, text=True, check=True
    )
    early, given_back = map(int, done.stdout.split())
    assert early < 50 << 20
    assert given_back > 350 << 20  # of 400 MiB
