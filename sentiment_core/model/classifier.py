"""An encoder with a classification head: built from a pretrained folder, rebuilt from a bundle.

`standard` is transformers' own sequence-classification model (pooled output -> dropout -> linear, for BERT). `mlp` puts
two layers on the first token of any encoder.
"""

import copy
import re
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sentiment_core.errors import UserError
from sentiment_core.model.records import Head
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists

MLP_DROPOUT = 0.1  # unless set_head_dropout says otherwise
# what the families call the dropouts inside the encoder
ENCODER_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "embedding_dropout",
    "mlp_dropout",
)  # fmt: skip
# families whose attention is the plain one; others may have fewer keys than queries, caps, sinks, ...
PLAIN_ATTENTION = ("albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
PROBE_LENGTHS = (1, 2, 15, 16, 40)  # of the token lists that a way to compute a model is checked with
POSITIONS_ASIDE = 2  # RoBERTa and its kin have two positions that no token takes


class MlpClassifier(nn.Module):
    """First token -> linear to half -> GELU -> dropout -> linear, Xavier-initialised."""

    encoder_prefix = "encoder."  # of parameter names; all others belong to the head

    def __init__(self, encoder: nn.Module, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dense = nn.Linear(hidden, hidden // 2)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden // 2, classes)
        for layer in (self.dense, self.classifier):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def pretrained(self) -> nn.Module:
        return self.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head()(self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])

    def head(self) -> nn.Module:
        """First tokens' last hidden states (n, hidden) -> logits (n, classes)."""
        return nn.Sequential(self.dense, nn.GELU(), self.dropout, self.classifier)


class StandardClassifier(nn.Module):
    """`AutoModelForSequenceClassification`, giving bare logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.encoder_prefix = f"model.{model.base_model_prefix}."

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    @property
    def pretrained(self) -> nn.Module:
        return self.model

    @property
    def encoder(self) -> nn.Module:
        return self.model.base_model  # type: ignore[return-value]

    def head(self) -> nn.Module:
        """First tokens' last hidden states (n, hidden) -> logits (n, classes), where the family looks at no others."""
        return _HeadAlone(self.model)


class _HeadAlone(nn.Module):
    """What transformers' model does behind its encoder: the model itself, with states given in the encoder's place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.copy(model)
        given = _Given(getattr(model.base_model, "pooler", None))
        self.model._modules = model._modules | {str(model.base_model_prefix): given}

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.model(inputs_embeds=states[:, None]).logits


class _Given(nn.Module):
    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, *_, inputs_embeds: torch.Tensor, **__) -> BaseModelOutputWithPooling:
        pooled = self.pooler(inputs_embeds) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)


Classifier = StandardClassifier | MlpClassifier


def make_config(folder: str, labels: list[str], dropout: float | None = None) -> PretrainedConfig:
    """The encoder's configuration with these labels and this dropout inside it (None keeps the encoder's own)."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    for name in ENCODER_DROPOUTS:
        if dropout is not None and hasattr(config, name):
            setattr(config, name, dropout)
    return config


def from_encoder(folder: str, config: PretrainedConfig, head: Head) -> Classifier:
    """A pretrained encoder with a new head, its first weights from torch's random state; a head for as many labels that
    the folder holds is kept."""
    options = {"config": config, "local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    options["dtype"] = torch.float32
    if head == "standard":
        return StandardClassifier(
            AutoModelForSequenceClassification.from_pretrained(folder, ignore_mismatched_sizes=True, **options)
        )
    return _with_mlp(AutoModel.from_pretrained(folder, **options), config)


def from_config(config: PretrainedConfig, head: Head) -> Classifier:
    """The same model with random weights, to load a bundle's into."""
    if head == "standard":
        return StandardClassifier(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32))
    return _with_mlp(AutoModel.from_config(config, dtype=torch.float32), config)


def check(config: PretrainedConfig, head: Head, labels: list[str], gradient_checkpointing: bool) -> None:
    """Refuse an encoder that cannot be trained so. Builds it without its weights. Raises `UserError`, and what
    transformers raises for a family that has no such classifier."""
    if config.is_encoder_decoder:
        raise UserError(f"--model is of the family {config.model_type}, with a decoder; expected an encoder alone")
    with torch.device("meta"):
        model = from_config(config, head)
    last_layer(model, len(labels))
    if gradient_checkpointing and not getattr(model.pretrained, "supports_gradient_checkpointing", False):
        raise UserError(f"--gradient-checkpointing: {config.model_type} encoders do not know it; leave it out")


def _with_mlp(encoder: nn.Module, config: PretrainedConfig) -> MlpClassifier:
    return MlpClassifier(encoder, config.hidden_size, len(config.id2label or {}), MLP_DROPOUT)


def set_head_dropout(classifier: Classifier, p: float) -> None:
    """Set the dropout of the head, whatever the family calls it."""
    for name, module in classifier.named_modules():
        if isinstance(module, nn.Dropout) and not name.startswith(classifier.encoder_prefix):
            module.p = p


def depths(classifier: Classifier) -> dict[str, int]:
    """How many of the encoder's layers lie above each parameter of the encoder; those of the embeddings, all."""
    numbers = {
        name: [int(n) for n in re.findall(r"\.(\d+)\.", name)[:1]]
        for name, _ in classifier.named_parameters()
        if name.startswith(classifier.encoder_prefix)
    }
    layers = max((n[0] + 1 for n in numbers.values() if n), default=0)
    return {name: layers - 1 - n[0] if n else layers if "embedding" in name else 0 for name, n in numbers.items()}


def positions(config: Any, unbounded: int) -> int:
    """How many tokens the encoder has positions for; `unbounded` if it counts them otherwise."""
    found = getattr(config, "max_position_embeddings", None) or 0
    return found if found > 0 else unbounded  # XLNet: -1


def probe(config: Any) -> TokenLists:
    """Token lists of several lengths, random but for special tokens, which vocabularies keep at either end."""
    limit = positions(config, 512) - POSITIONS_ASIDE
    offsets = np.cumsum([0, *(min(length, limit) for length in PROBE_LENGTHS)])
    quarter = config.vocab_size // 4
    ids = np.random.default_rng(0).integers(quarter, 3 * quarter, offsets[-1], dtype=np.int32)
    ids[ids == (config.pad_token_id or 0)] += 1
    return TokenLists(ids, offsets)


def spare_other_tokens(model: nn.Module, encoder: nn.Module) -> bool:
    """Compute no more of the encoder's last layer than the head looks at, a tenth of all work with six layers: of what
    comes behind the attention only each row's first token. Where exactly, `model`, (input_ids, attention_mask) -> what
    the head gives or is given, shows: it must give the same then, in eval mode. False where it does so nowhere."""
    layers: Any = max((m for m in encoder.modules() if isinstance(m, nn.ModuleList)), key=len, default=[])
    config: Any = encoder.config
    lists = probe(config)
    device = next(encoder.parameters()).device
    batch = [torch.from_numpy(x).to(device) for x in pad(lists, np.arange(len(lists)), config.pad_token_id or 0)]
    with torch.inference_mode():
        expected = model(*batch)
        for norm in [m for m in layers[-1].modules() if "Norm" in type(m).__name__] if len(layers) else []:
            hook = norm.register_forward_pre_hook(lambda _, given: (given[0][:, :1], *given[1:]))
            try:
                if torch.allclose(model(*batch), expected, rtol=1e-4, atol=1e-5):
                    return True
            except Exception:  # shapes that do not fit, of which families complain in many ways
                pass
            hook.remove()
    return False


def last_layer(classifier: Classifier, classes: int) -> nn.Linear:
    """The linear layer that makes the logits, whatever the family calls it."""
    found = [m for m in classifier.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not found:
        raise UserError(f"{type(classifier).__name__} ends in no linear layer of {classes} outputs; use --head mlp")
    return found[-1]
