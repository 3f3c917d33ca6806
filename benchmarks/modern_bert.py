"""Time scoring in ModernBERT-base's shape: each backend and number type beside transformers on padded batches.

    python benchmarks/modern_bert.py
    python benchmarks/modern_bert.py --layers 2 --hidden 64 --sentences 32 --reviews 8

The second command is a quick look at a small model. Weights are random, and so are the token lists, which are as long
as sentences of SST-2 and as reviews of IMDB. Each contender lives in a process of its own and waits while another one
runs. All run once to warm up, then in turns; the tables show medians. Also writes JSON into benchmarks/results/.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from gpu_steps.inputs import CLASSES, VOCABULARY, draw_lengths, pad_id, random_lists, scale_head
from timing import RESULTS, ContenderFailed, ContenderProcess, flop_per_token, matrix_ceiling, peak_memory_mb, today
from transformers import ModernBertConfig

from sentiment_core.cli import run_and_exit
from sentiment_core.config import parse, setting
from sentiment_core.inference.engine import Engine
from sentiment_core.inference.selection import list_choices
from sentiment_core.model import bundle, classifier
from sentiment_core.model.classifier import Classifier
from sentiment_core.runtime import hardware
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists

PEER = "transformers float32"  # rows in the given order, padded to the longest of a batch
PEER_BATCH = 16
LONGEST = 512
# mean of the drawn lengths and the longest of them; what is cut off makes reviews of 275 tokens of 292
LENGTHS = {"sentences": (25, 128), "reviews": (292, LONGEST)}
HEAD_SIZE = 64
Timed = tuple[float, np.ndarray, float, int]


@dataclass(frozen=True)
class ModernBertSettings:
    """Settings of `modern_bert.py`."""

    layers: int = setting(22, "layers of the model; every third one attends to all tokens")
    hidden: int = setting(768, "width of the model: a multiple of 64, the size of an attention head")
    sentences: int = setting(64, "rows of 25 tokens on average that each contender is timed on")
    reviews: int = setting(16, "rows of 275 tokens on average that each contender is timed on")
    rounds: int = setting(3, "timed passes of each contender")
    threads: int = setting(0, "CPU threads of each contender; 0 leaves the number to torch")
    name: str = setting("modern_bert", "name of the file in benchmarks/results/")
    results: str = setting(str(RESULTS), "folder for the JSON file", "DIR")


def main() -> int:
    """Run the benchmark, print its tables and write its report."""
    settings = parse(ModernBertSettings, __doc__)
    device = hardware.device()
    work = draw_work(settings)
    encoder = make_model(settings, torch.device("meta")).encoder
    ceiling = matrix_ceiling(
        settings.hidden, encoder.config.intermediate_size, hardware.number_types(device)[-1], device
    )
    records = time_contenders([PEER, *name_choices(settings, device)], settings, work)
    report = {
        "name": settings.name,
        "date": today(),
        "device": hardware.device_name(device),
        "cpus": os.cpu_count(),
        "torch_threads": settings.threads or torch.get_num_threads(),
        "settings": {name: value for name, value in asdict(settings).items() if name not in ("name", "results")},
        "mean_tokens": {kind: float(tokens.lengths.mean()) for kind, tokens in work.items()},
        "flop_per_token": flop_per_token(encoder),
        "gemm_ceiling_flops": ceiling,
        "work": {kind: add_ratios(records[kind], tokens, encoder, ceiling) for kind, tokens in work.items()},
        "libraries": bundle.library_versions(),
    }
    print_tables(report)
    path = Path(settings.results) / f"{settings.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {path}")
    return 0


def draw_work(settings: ModernBertSettings) -> dict[str, TokenLists]:
    """Draw the token lists to score, by kind; the same in each process."""
    rng = np.random.default_rng(0)
    rows = {"sentences": settings.sentences, "reviews": settings.reviews}
    return {kind: random_lists(draw_lengths(*LENGTHS[kind], rows[kind], rng), rng) for kind in LENGTHS}


def make_model(settings: ModernBertSettings, device: torch.device) -> Classifier:
    """Make a classifier of ModernBERT-base's shape with random weights, in evaluation mode.

    Its vocabulary is BERT's, which is smaller than its own; no time depends on it.
    """
    config = ModernBertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=settings.layers,
        hidden_size=settings.hidden,
        num_attention_heads=settings.hidden // HEAD_SIZE,
        intermediate_size=settings.hidden * 3 // 2,
        pad_token_id=0,
        cls_token_id=101,
        sep_token_id=102,
        num_labels=CLASSES,
        initializer_range=settings.hidden**-0.5,  # of unit gain, so that a wrong backend would show
    )
    torch.manual_seed(0)
    with torch.device(device):
        return classifier.from_config(config, "standard").eval()


def name_choices(settings: ModernBertSettings, device: torch.device) -> list[str]:
    """Name each backend with each number type that this device computes."""
    choices = list_choices(None, device, settings.threads or torch.get_num_threads(), "auto")
    return list(dict.fromkeys(f"{choice.backend} {choice.number_type}" for choice in choices))


def make_timed(name: str, settings: ModernBertSettings) -> Callable[[str], Timed]:
    """Make a contender, in its own process, as a function that times itself on a kind of work.

    The function returns seconds, probabilities (rows, classes), peak memory in MB and computed tokens.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device, work = hardware.device(), draw_work(settings)
    model = make_model(settings, torch.device("cpu"))
    scale_head(model, torch.device("cpu"), LONGEST)
    score = make_peer(model.to(device), device) if name == PEER else make_engine(model, name, settings, device)

    def run(kind: str) -> Timed:
        started = time.perf_counter()
        probabilities, computed = score(work[kind])
        return time.perf_counter() - started, probabilities, peak_memory_mb(device), computed

    return run


def make_peer(model: Classifier, device: torch.device) -> Callable[[TokenLists], tuple[np.ndarray, int]]:
    """Make transformers' own model on batches in the given order, as its users call it."""

    def score(tokens: TokenLists) -> tuple[np.ndarray, int]:
        parts, computed = [], 0
        with torch.inference_mode():
            for rows in np.array_split(np.arange(len(tokens)), -(-len(tokens) // PEER_BATCH)):
                ids, mask = hardware.to_device(device, *pad(tokens, rows, pad_id(model)))
                logits = model.pretrained(input_ids=ids, attention_mask=mask).logits
                parts.append(logits.softmax(dim=1).cpu().numpy())
                computed += ids.numel()
        return np.concatenate(parts), computed

    return score


def make_engine(
    model: Classifier, name: str, settings: ModernBertSettings, device: torch.device
) -> Callable[[TokenLists], tuple[np.ndarray, int]]:
    """Make the engine with one backend and number type."""
    backend, number_type = name.split()
    engine = Engine(
        model,
        CLASSES,
        LONGEST,
        settings.threads or None,
        backend,
        precision=number_type,
        choices={hardware.chip_id(device): name},  # so that nothing is timed before
    )

    def score(tokens: TokenLists) -> tuple[np.ndarray, int]:
        probabilities, padding = engine.probabilities(tokens)
        return probabilities, len(tokens.ids) + padding

    return score


def time_contenders(
    names: list[str], settings: ModernBertSettings, work: dict[str, TokenLists]
) -> dict[str, dict[str, dict]]:
    """Time contenders in turns; leave out one that fails. Returns records by kind of work and contender."""
    processes: dict[str, ContenderProcess] = {}
    for name in names:
        say(f"loading: {name}")
        process = ContenderProcess(make_timed, name, settings)
        try:
            process.wait_until_made()
            processes[name] = process
        except ContenderFailed as error:
            say(f"left out: {name}: {error}")
    answers: dict[tuple[str, str], list[Timed]] = {}
    for round_number in range(settings.rounds + 1):
        for kind, tokens in work.items():
            for name in list(processes):
                try:
                    answer = processes[name].call(kind)
                except ContenderFailed as error:
                    say(f"left out: {name}: {error}")
                    processes.pop(name).kill()
                    continue
                if round_number:  # the first is to warm up
                    answers.setdefault((kind, name), []).append(answer)
                say(f"round {round_number}: {kind}: {name}: {len(tokens) / answer[0]:,.1f} rows/s")
    for process in processes.values():
        process.close()
    return {kind: {name: summarize(answers[kind, name]) for name in processes} for kind in work}


def summarize(answers: list[Timed]) -> dict:
    """Summarize the timed passes of a contender on one kind of work."""
    _, probabilities, memory, computed = answers[-1]
    return {
        "seconds": [answer[0] for answer in answers],
        "peak_memory_mb": memory,
        "computed": computed,
        "probabilities": probabilities,
    }


def add_ratios(records: dict[str, dict], tokens: TokenLists, encoder: torch.nn.Module, ceiling: float) -> dict:
    """Add rates, padding and ratios to the contenders' records; compare probabilities with the peer's."""
    expected = records[PEER]["probabilities"] if PEER in records else None
    peer_seconds = statistics.median(records[PEER]["seconds"]) if PEER in records else None
    for record in records.values():
        seconds, probabilities = statistics.median(record["seconds"]), record.pop("probabilities")
        record["rows_per_second"] = len(tokens) / seconds
        record["tokens_per_second"] = len(tokens.ids) / seconds
        record["padding_share"] = 1 - len(tokens.ids) / record["computed"]
        record["of_ceiling"] = record["tokens_per_second"] * flop_per_token(encoder) / ceiling
        record["times_peer"] = None if peer_seconds is None else peer_seconds / seconds
        record["largest_difference"] = None if expected is None else float(np.abs(probabilities - expected).max())
    return records


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr)


def print_tables(report: dict) -> None:
    """Print a table for each kind of work, one contender a line."""
    print(
        f"{report['settings']['layers']} layers of {report['settings']['hidden']}; {report['device']}, "
        f"{report['torch_threads']} threads, matrix ceiling {report['gemm_ceiling_flops'] / 1e9:,.0f} GFLOP/s"
    )
    heads = ("rows/s", "tokens/s", "x peer", "padding", "of ceiling", "difference", "memory MB")
    for kind, records in report["work"].items():
        title = f"{kind}, {report['mean_tokens'][kind]:.0f} tokens"
        print(f"{title:24}" + "".join(f"{head:>13}" for head in heads))
        for name, record in records.items():
            cells = (
                f"{record['rows_per_second']:,.1f}",
                f"{record['tokens_per_second']:,.0f}",
                "" if record["times_peer"] is None else f"{record['times_peer']:.2f}",
                f"{100 * record['padding_share']:.0f} %",
                f"{100 * record['of_ceiling']:.0f} %",
                "" if record["largest_difference"] is None else f"{record['largest_difference']:.5f}",
                f"{record['peak_memory_mb']:,.0f}",
            )
            print(f"{name:24}" + "".join(f"{cell:>13}" for cell in cells))


if __name__ == "__main__":
    run_and_exit(main)
