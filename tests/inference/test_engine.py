"""The engine: whatever computes it and whatever comes along, a row's probabilities are those of plain torch."""

import os
import shutil
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from sentiment_core.errors import UserError
from sentiment_core.inference import selection
from sentiment_core.inference.backends import base
from sentiment_core.inference.backends.base import BackendUnavailable, in_precision
from sentiment_core.inference.backends.torch_packed import LEAST_STEP_TOKENS
from sentiment_core.inference.backends.torch_padded import Padded
from sentiment_core.inference.engine import Engine, NotFinite
from sentiment_core.inference.timing import Choice
from sentiment_core.model import bundle
from sentiment_core.runtime import hardware
from sentiment_core.text.token_lists import TokenLists
from tests.conftest import make_bundle, random_lists

LIMIT = 64
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
POSITIONS = {"max_position_embeddings": LIMIT + 2}
FAMILIES = {
    "bert": BertConfig(vocab_size=30522, **SIZES, **POSITIONS),
    "distilbert": DistilBertConfig(vocab_size=30522, dim=32, n_layers=2, n_heads=2, hidden_dim=64, **POSITIONS),
    "roberta": RobertaConfig(vocab_size=30522, pad_token_id=0, **SIZES, **POSITIONS),
    "electra": ElectraConfig(vocab_size=30522, embedding_size=16, **SIZES, **POSITIONS),
    "albert": AlbertConfig(vocab_size=30522, embedding_size=16, **SIZES, **POSITIONS),
    "mpnet": MPNetConfig(vocab_size=30522, pad_token_id=0, **SIZES, **POSITIONS),
    "modernbert": ModernBertConfig(
        vocab_size=30522, **SIZES, pad_token_id=0, cls_token_id=101, sep_token_id=102, local_attention=16
    ),
}


@pytest.fixture(scope="module")
def family_bundle(packaged_encoder, tmp_path_factory):
    made: dict[tuple[str, str], str] = {}

    def make(family: str, head: str) -> str:
        if (family, head) not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            AutoModel.from_config(FAMILIES[family]).save_pretrained(folder / "encoder")
            AutoTokenizer.from_pretrained(packaged_encoder).save_pretrained(folder / "encoder")
            made[family, head] = make_bundle(str(folder / "encoder"), folder / "b", head, max_length=LIMIT)
        return made[family, head]

    return make


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "torch", "packed")]
)
def engine(request, short_encoder, tmp_path_factory) -> Engine:
    """A trained encoder, three classes, on each backend."""
    place = tmp_path_factory.mktemp("engine") / "b"
    return Engine.load(make_bundle(short_encoder, place, labels=("a", "b", "c"), max_length=512), None, request.param)


def by_company(engine: Engine) -> float:
    """By how much a row's probabilities may differ with what else is in the batch: on AMX, torch's bfloat16 product of
    1,536 columns is added up in an order that depends on the number of tokens, which moved them by up to 0.0021. On a
    GPU, cuBLAS chooses kernels by the number of tokens."""
    if engine.device.type == "cuda":
        return 5e-3
    on_amx = torch.cpu.get_capabilities().get("amx_bf16", False)
    return 3e-3 if on_amx and engine.backend.name == "torch bfloat16" else 1e-3


def one_by_one(place: str, lists: TokenLists) -> np.ndarray:
    """Plain torch, float32, a batch for each row."""
    model, _ = bundle.load(place)
    with torch.inference_mode():
        logits = [
            model(torch.from_numpy(row[None].astype(np.int64)), torch.ones(1, len(row), dtype=torch.int64))
            for row in np.split(lists.ids, lists.offsets[1:-1])
        ]
    return torch.softmax(torch.cat(logits), dim=1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), [*((family, "standard") for family in FAMILIES), ("roberta", "mlp")])
def test_every_family_gets_what_plain_torch_gives(family_bundle, family, head):
    place = family_bundle(family, head)
    lists = random_lists([1, 2, 3, 7, 15, 16, 17, LIMIT - 1, LIMIT])
    expected = one_by_one(place, lists)
    for backend in (None, "torch"):
        found, _ = Engine.load(place, None, backend).probabilities(lists)
        np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra", "albert", "modernbert"])
def test_packing_serves_the_common_families(family_bundle, family):
    place = family_bundle(family, "standard")
    lists = random_lists([5, LIMIT, 1, 30, 30, 2])
    found, padding = Engine.load(place, None, "packed").probabilities(lists)
    np.testing.assert_allclose(found, one_by_one(place, lists), atol=0.02)
    assert padding == LEAST_STEP_TOKENS - lists.lengths.sum()


def test_the_padding_id_in_a_text_takes_no_position_where_a_family_does_not_count_it(family_bundle):
    place = family_bundle("roberta", "standard")
    lists = random_lists([9, 20, 4])
    lists.ids[[3, 4, 15]] = 0  # the padding id of this one
    found, _ = Engine.load(place, None, "packed", precision="float32").probabilities(lists)
    np.testing.assert_allclose(found, one_by_one(place, lists), atol=1e-4)


def test_a_number_type_that_the_model_does_not_survive_is_refused(tiny_bundle, monkeypatch):
    model, info = bundle.load(tiny_bundle)
    model.encoder.encoder.layer[0].intermediate.dense.weight.data *= 1e6
    monkeypatch.setattr(selection, "list_choices", lambda *_: [Choice("torch", "float16")])
    with pytest.raises(
        UserError, match=r"--precision float16: the model does not come out right in it here \(its prob"
    ):
        Engine(model, len(info.labels), 32, 1, on_cpu=True, precision="float16")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_is_told_to_load_the_model_itself(tiny_bundle):
    """It lacks the threads that compute, for which it would wait for ever."""
    engine = Engine.load(tiny_bundle, 1, "torch", on_cpu=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            engine.probabilities(random_lists([3]))
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    assert told == "UserError: The model was loaded before this process was forked. Load it in each process."


@pytest.mark.parametrize(
    ("rows", "steps"), [(1, [512]), (8, [512]), (9, [1024]), (32, [2048]), (33, [2048, 512]), (49, [2048, 2048])]
)
def test_a_packed_step_is_filled_to_the_next_power_of_two(family_bundle, rows, steps):
    """A step of the whole budget for each request would cost a GPU three times the request's own."""
    engine = Engine.load(family_bundle("bert", "standard"), None, "packed")
    engine.backend.budget = 2048
    computed = []
    engine.backend.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    _, padding = engine.probabilities(random_lists([LIMIT] * rows))
    assert computed == steps
    assert padding == sum(steps) - LIMIT * rows


def test_heads_of_any_size_can_be_packed(packaged_encoder, tmp_path, monkeypatch):
    """The kernel of GPUs takes heads whose size is a multiple of 8."""
    sizes = SIZES | {"hidden_size": 52}
    AutoModel.from_config(BertConfig(vocab_size=30522, **sizes, **POSITIONS)).save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(packaged_encoder).save_pretrained(tmp_path / "encoder")
    place = make_bundle(str(tmp_path / "encoder"), tmp_path / "b", max_length=LIMIT)
    lists = random_lists([5, LIMIT, 1, 30])
    expected = one_by_one(place, lists)
    engine = Engine.load(place, None, "packed")
    attend, seen = torch.nn.functional.scaled_dot_product_attention, set()

    def record(query, *arguments, **keywords):
        seen.add(query.shape[-1])
        return attend(query, *arguments, **keywords)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    np.testing.assert_allclose(engine.probabilities(lists)[0], expected, atol=0.02)
    assert seen == {32}  # of 26


def test_a_row_longer_than_a_packed_step_is_a_step_of_its_own(family_bundle):
    engine = Engine.load(family_bundle("bert", "standard"), None, "packed")
    expected, _ = engine.probabilities(random_lists([LIMIT] * 3))
    engine.backend.budget = LIMIT // 2 + 1
    states, padding = engine.probabilities(random_lists([LIMIT] * 3))
    np.testing.assert_allclose(states, expected, atol=1e-3)
    assert padding == 3 * 2


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("c++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="needs a C++ compiler and Python's headers, for torch.compile",
)
def test_one_compiled_shape_serves_all_full_steps(family_bundle):
    """Also in another thread, as in an actor of Ray Data, which loads in one and computes in another."""
    place = family_bundle("bert", "standard")
    torch._dynamo.utils.counters.clear()
    with torch._inductor.config.patch({"cpp.vec_isa_ok": False}):  # else half a minute of trying sets of instructions
        engine = Engine.load(place, 2, "compiled")
    assert torch._dynamo.utils.counters["stats"]
    assert not any(parameter.is_inference() for parameter in engine.backend.encoder.parameters())
    torch._dynamo.utils.counters.clear()
    pool = ThreadPoolExecutor(1)
    for lengths in ([5, LIMIT, 1, 30], [7], [LIMIT] * (engine.backend.budget // LIMIT + 8)):
        lists = random_lists(lengths)
        probabilities, _ = pool.submit(engine.probabilities, lists).result()
        np.testing.assert_allclose(probabilities, one_by_one(place, lists), atol=0.02)
    assert not torch._dynamo.utils.counters["stats"]  # no graph but the one that loading made


def test_what_cannot_be_packed_says_why(family_bundle):
    with pytest.raises(BackendUnavailable, match="its own attention"):
        Engine.load(family_bundle("mpnet", "standard"), None, "packed")


def test_openvino_is_taken_by_itself_on_a_cpu(tiny_bundle):
    engine = Engine.load(tiny_bundle)
    if engine.device.type == "cuda":
        pytest.skip("needs a machine without a GPU")
    assert engine.backend.name.startswith("openvino ")
    assert engine.passed_over == []


@pytest.mark.slow
@pytest.mark.parametrize("own", [None, "7"])
def test_what_openvino_is_started_with_does_not_stay(tiny_bundle, monkeypatch, own):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    if own:
        monkeypatch.setenv(name, own)
    else:
        monkeypatch.delenv(name, raising=False)
    Engine.load(tiny_bundle, backend="openvino")
    assert os.environ.get(name) == own


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(0, 80), min_size=1, max_size=40), seed=st.integers(0, 9), data=st.data())
def test_a_row_gets_the_same_in_any_company_and_order(engine, lengths, seed, data):
    lists = random_lists(lengths, seed)
    together, _ = engine.probabilities(lists)
    assert (np.isnan(together).any(axis=1) == (lists.lengths == 0)).all()
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=20)))
    np.testing.assert_allclose(engine.probabilities(lists.take(rows))[0], together[rows], atol=by_company(engine))


def test_long_rows_get_the_same_in_any_company(engine):
    lists = random_lists([512, 511, 300, 256, 255, 187, 160, 150, 40] * 2)
    together, _ = engine.probabilities(lists)
    for row in range(9):
        alone, _ = engine.probabilities(lists.take(np.array([row])))
        np.testing.assert_allclose(alone[0], together[row], atol=by_company(engine))


def test_rows_of_the_same_tokens_are_computed_once(engine):
    lists = random_lists([9, 0, 20, 5])
    once, padding = engine.probabilities(lists)
    again, padding_again = engine.probabilities(lists.take(np.array([3, 2, 2, 1, 0, 3, 2])))
    assert padding_again == padding
    np.testing.assert_allclose(again, once[[3, 2, 2, 1, 0, 3, 2]], atol=1e-6)


@pytest.mark.slow
def test_the_logits_of_a_list_s_pieces_are_averaged(tiny_bundle):
    lists = random_lists([32 * 3, 5, 0, 32 * 2])
    logits = [np.log(one_by_one(tiny_bundle, TokenLists(ids, np.array([0, len(ids)])))) for ids in
              (*np.split(lists.ids[:96], 3), *np.split(lists.ids[101:], 2))]  # fmt: skip
    found, _ = Engine.load(tiny_bundle).probabilities(lists)  # whose maximum is 32
    expected = [softmax(np.mean(some, axis=0), axis=1)[0] for some in (logits[:3], logits[3:])]
    np.testing.assert_allclose(found[[0, 3]], expected, atol=0.01)
    assert np.isnan(found[2]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_out_of_memory_is_met_by_smaller_batches(tiny_bundle, error):
    """Memory for 700 tokens at a time, as it were."""
    model, _ = bundle.load(tiny_bundle)

    def refuse(module, args, kwargs):
        if (args[0] if args else kwargs["input_ids"]).numel() > 700:
            raise error

    model.encoder.register_forward_pre_hook(refuse, with_kwargs=True)
    engine = Engine(model, 2, 800, backend="torch", precision="float32")
    lists = random_lists([40] * 60)
    found, _ = engine.probabilities(lists)
    unlimited = Engine(bundle.load(tiny_bundle)[0], 2, 800, backend="torch", precision="float32")
    np.testing.assert_allclose(found, unlimited.probabilities(lists)[0], atol=1e-5)
    assert engine.remarks == ["out of memory, so batches of 512 tokens"]
    with pytest.raises(type(error)):
        engine.probabilities(random_lists([800] * 2))


def test_a_model_that_overflows_in_float16_is_computed_in_float32(tiny_bundle):
    """As GPUs without bfloat16 compute. Its first states reach 1e6 before a norm brings them back."""
    model, info = bundle.load(tiny_bundle)
    layer = model.encoder.encoder.layer[0].intermediate.dense
    layer.weight.data *= 1e6
    exact = Engine(model, 2, info.max_length, backend="torch", precision="float32")
    lists = random_lists([5, 20, 9])
    expected, _ = exact.probabilities(lists)
    split = base.SplitClassifier(base.FirstToken(model.encoder), exact.head, is_whole=False)
    exact.backend = Padded(split, exact.device, torch.float16, 0, None)
    with pytest.raises(NotFinite, match="torch float16"):
        exact.probabilities(lists)
    exact.exact_model = model  # as where float16 was chosen
    np.testing.assert_allclose(exact.probabilities(lists)[0], expected, atol=1e-6)
    assert exact.backend.name == "torch float32"
    assert exact.remarks == ["torch float32: the numbers of some rows overflow"]


@pytest.mark.slow
def test_eight_bits_leave_the_labels(packaged_encoder, tmp_path):
    """Random words on an untrained head lie closer to the boundary than text that the model was trained for."""
    place = make_bundle(packaged_encoder, tmp_path / "b", max_length=512, int8={"layers": 36})
    lists = random_lists(np.random.default_rng(0).integers(3, 60, 400).tolist())
    whole, _ = Engine.load(place, None, "torch", precision="float32").probabilities(lists)
    chip = hardware.chip_id(torch.device("cpu"))
    small = Engine.load(place, None, "int8", choices={chip: "int8 float32"})  # so that nothing is measured
    assert small.backend.name.startswith("int8 ")
    found, _ = small.probabilities(lists)
    assert (found.argmax(axis=1) == whole.argmax(axis=1)).mean() > 0.98
    assert 0 < np.abs(found - whole).mean() < 0.01
    rows = np.array([7, 3, 200])
    np.testing.assert_allclose(small.probabilities(lists.take(rows))[0], found[rows], atol=1e-3)


def test_rotary_positions_stay_exact_in_bf16():
    config = ModernBertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=32,
        pad_token_id=0, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    exact = AutoModel.from_config(config)
    found = in_precision(exact, torch.bfloat16)
    frequencies = {name: buffer for name, buffer in exact.named_buffers() if "inv_freq" in name}
    assert frequencies
    assert {parameter.dtype for parameter in found.parameters()} == {torch.bfloat16}
    for name, expected in frequencies.items():
        assert torch.equal(dict(found.named_buffers())[name], expected)
    ids = torch.randint(5, 99, (2, 40))
    torch.testing.assert_close(found(ids).last_hidden_state.float(), exact(ids).last_hidden_state, atol=0.1, rtol=0.1)
