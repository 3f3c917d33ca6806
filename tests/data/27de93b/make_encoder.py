"""Write a random BERT of two layers with a vocabulary of a hundred word pieces, labelled sentences and two inputs."""

import os
import string
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

GOOD, BAD = ["wonderful", "great", "superb", "lovely"], ["awful", "terrible", "dreadful", "boring"]
WORDS = ["film", "book", "play", "story", "the", "a", "was", "and", "so", "we", "talked", "about", "it", "very", "not"]

root = Path("/tmp/sentiment-core-27de93b")
letters = [*string.ascii_lowercase, *string.digits, *".,!?'"]
vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *GOOD, *BAD, *WORDS]
(root / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes)
BertModel(config).save_pretrained(root / "encoder")
tokenizer = BertTokenizerFast(vocab=str(root / "vocab.txt"), model_max_length=64)
tokenizer.save_pretrained(root / "encoder")


def sentences(rows: int, seed: int) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    texts = [f"the {random.choice(WORDS[:4])} was {random.choice(GOOD if label else BAD)}" for label in labels]
    return texts, [("negative", "positive")[label] for label in labels]


texts, labels = sentences(400, seed=0)
pq.write_table(pa.table({"text": texts, "label": labels}), root / "train.parquet")
odd = [None, "", " ", "\x00", "😀", "été", "not " * 100, "the film was great", "the film was great"]
for day, seed in (("2026-11-27", 1), ("2026-11-28", 2)):
    texts = odd + sentences(21, seed)[0]
    folder = root / "input" / f"date={day}"
    folder.mkdir(parents=True, exist_ok=True)
    kinds = pa.array(["a", "b", None] * 10).dictionary_encode()
    nested = [{"n": row, "tags": [str(row)]} for row in range(30)]
    table = pa.table({"id": np.arange(30), "kind": kinds, "nested": nested, "text": texts})
    pq.write_table(table, folder / "part-0.parquet", row_group_size=10)
night = root / "nightly-input" / "date=2026-11-27"
night.mkdir(parents=True, exist_ok=True)
pq.write_table(pa.table({"text": sentences(240, seed=3)[0]}), night / "part-0.parquet")
for path in root.rglob("*.parquet"):
    os.utime(path, (1_764_288_000, 1_764_288_000))  # footers of outputs hold it
