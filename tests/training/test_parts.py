"""Parts of the loop: memory, vocabulary, clipping, depths of layers."""

import numpy as np
import pytest
import torch
from ray.exceptions import OutOfMemoryError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from torch import nn

from sentiment_core.model import bundle, classifier
from sentiment_core.runtime.failures import describe_error
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists
from sentiment_core.training.optimizer import clip_at_next_step
from sentiment_core.training.ray_workers import first_failure, is_loss
from sentiment_core.training.token_budget import TokenBudget, find_token_budget
from sentiment_core.training.torch_setup import CheckedTorchConfig
from sentiment_core.training.vocabulary import TrimmedVocabulary, ids_in, remap


def test_the_memory_that_there_is_decides_how_much_is_computed_at_a_time():
    tried = []

    def attempt(tokens: int) -> None:
        tried.append(tokens)
        if tokens > 1500:
            raise torch.OutOfMemoryError

    def fail(tokens: int) -> None:
        raise RuntimeError("another reason")

    assert find_token_budget(attempt, 4096, torch.device("cpu")) == 1024
    assert tried == [4096, 2048, 1024]
    with pytest.raises(RuntimeError, match="another reason"):
        find_token_budget(fail, 4096, torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        find_token_budget(lambda tokens: attempt(4096), 4096, torch.device("cpu"))


@pytest.mark.parametrize(("fits", "resumed"), [(1024, 1024), (131072, 4096)])
def test_a_run_resumed_on_a_smaller_gpu_computes_what_fits_there(fits, resumed):
    budget = TokenBudget(fits)
    budget.load_state_dict(TokenBudget(4096).state_dict())
    assert budget.tokens == resumed


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("[gloo/transport] Connection reset by peer", True),
        ("NCCL error: remote process exited", True),
        ("NCCL error: ncclInvalidUsage: This usually reflects invalid usage of NCCL library", False),
        ("shapes cannot be multiplied", False),
    ],
)
def test_only_a_worker_that_went_away_is_a_loss(message, lost):
    assert is_loss(RuntimeError(message)) == lost


class GroupOutOfMemory:
    """Workers that Ray has killed for their memory."""

    def __len__(self) -> int:
        return 2

    def execute_async(self, *_: object, **__: object) -> None:
        raise OutOfMemoryError("killed due to the node running low on memory")


def test_a_worker_killed_for_its_memory_is_a_loss_that_is_told_and_leaves_its_cpus():
    lost = WorkerHealthCheckFailedError(
        "A worker health check failed.", OutOfMemoryError("the node runs low on memory")
    )
    failure = first_failure(WorkerGroupError("Training failed", {0: lost}))
    assert is_loss(failure)
    assert describe_error(failure) == "OutOfMemoryError: the node runs low on memory"
    config = CheckedTorchConfig()
    config.backend_cls().on_shutdown(GroupOutOfMemory(), config)  # raises nothing: Ray would leave the CPUs taken


def test_embeddings_that_the_data_has_no_token_of_stay_as_they_are(tiny_bundle):
    model, _ = bundle.load(tiny_bundle)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = np.array([101, 2204, 2143, 102, 101, 2919, 102], np.int32)
    tokens = TokenLists(ids, np.array([0, 4, 7]))
    (expected,) = model(*map(torch.from_numpy, pad(tokens, np.array([0]), 0)))
    token_ids = ids_in(0, tokens)
    vocabulary = TrimmedVocabulary(model, token_ids)
    assert vocabulary.embedding.shape == (6, 32)
    small = remap(tokens, token_ids)
    (found,) = model(*map(torch.from_numpy, pad(small, np.array([0]), 0)))
    assert torch.equal(found, expected)
    with torch.no_grad():
        vocabulary.embedding.add_(1)
    after = vocabulary.restore(model)
    assert after.keys() == before.keys()
    changed = (after[vocabulary.name] != before[vocabulary.name]).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == [0, 101, 102, 2143, 2204, 2919]


@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_does(norm):
    def trained(clips) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        for scale in (1.0, 100.0, 3.0):  # Adam alone would not tell gradients from multiples of them
            model(torch.randn(8, 20)).square().sum().mul(scale).backward()
            clips(model, optimizer)
            optimizer.step()
            optimizer.zero_grad()
        return model

    ours = trained(lambda _, optimizer: clip_at_next_step(optimizer, norm))
    torchs = trained(lambda model, _: nn.utils.clip_grad_norm_(model.parameters(), norm))
    without = trained(lambda *_: None)
    for a, b, c in zip(ours.parameters(), torchs.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        assert torch.allclose(a, c) == (norm == 1e6)


def test_layers_are_told_by_how_deep_they_lie(tiny_bundle):
    depth = classifier.depths(bundle.load(tiny_bundle)[0])
    told = {name.partition("bert.")[2]: number for name, number in depth.items()}
    assert told["embeddings.word_embeddings.weight"] == 2
    assert told["encoder.layer.0.output.dense.weight"] == 1
    assert told["encoder.layer.1.output.dense.weight"] == told["pooler.dense.weight"] == 0
