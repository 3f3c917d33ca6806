"""An encoder with a classification head: built from a pretrained folder, rebuilt from a bundle.

The head `standard` is that of transformers' own sequence-classification model (for BERT: pooled output, dropout,
linear). The head `mlp` puts two layers on the first token of any encoder.
"""

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from sentiment_core.errors import UserError
from sentiment_core.model import families
from sentiment_core.model.objective import SingleLabel
from sentiment_core.model.records import Head, ProblemType
from sentiment_core.text.batching import pad

MLP_DROPOUT = 0.1  # unless set_head_dropout says otherwise
HEAD_STD = 0.02  # of a new head's weights, as in BERT
WRAPPER_PREFIXES = ("_orig_mod.", "module.")  # of weights saved from torch.compile's and DDP's wrappers
BUFFER = re.compile(r"(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias)$")  # saved by older versions


Module = TypeVar("Module", bound=nn.Module)


class MlpClassifier(nn.Module):
    """An encoder and a head of two layers: first token, linear to half, GELU, dropout, linear; Xavier-initialized."""

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
        """The transformers model inside."""
        return self.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Compute the logits, (n, classes)."""
        return self.head()(self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])

    def head(self) -> nn.Module:
        """Return the head alone: first tokens' last hidden states (n, hidden) -> logits (n, classes)."""
        return nn.Sequential(self.dense, nn.GELU(), self.dropout, self.classifier)


class StandardClassifier(nn.Module):
    """A model of `AutoModelForSequenceClassification` that returns bare logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.encoder_prefix = f"model.{model.base_model_prefix}."

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Compute the logits, (n, classes)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    @property
    def pretrained(self) -> nn.Module:
        """The transformers model inside."""
        return self.model

    @property
    def encoder(self) -> nn.Module:
        """The model without its head."""
        return self.model.base_model  # type: ignore[return-value]

    def head(self) -> nn.Module:
        """Return the head alone: first tokens' last hidden states (n, hidden) -> logits (n, classes).

        It is right only for families whose head looks at no other tokens.
        """
        return _HeadAlone(self.model)


class _HeadAlone(nn.Module):
    """A transformers model with a stub in its encoder's place, which leaves the head alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.copy(model)
        stub = _EncoderStub(model.base_model)
        self.model._modules = model._modules | {str(model.base_model_prefix): stub}

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Compute logits (n, classes) from the first tokens' states (n, hidden)."""
        return self.model(inputs_embeds=states[:, None]).logits


class _EncoderStub(nn.Module):
    """An encoder whose last hidden states are its input; only the pooler computes."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.pooler = getattr(encoder, "pooler", None)
        self.activation = getattr(encoder, "pooler_activation", None)  # ALBERT's pooler is a bare linear layer

    def forward(self, *_, inputs_embeds: torch.Tensor, **__) -> BaseModelOutputWithPooling:
        """Return the states as an encoder would."""
        pooled = None
        if self.activation is not None and self.pooler is not None:
            pooled = self.activation(self.pooler(inputs_embeds[:, 0]))
        elif self.pooler is not None:
            pooled = self.pooler(inputs_embeds)
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)


Classifier = StandardClassifier | MlpClassifier


def make_config(
    folder: str,
    labels: list[str],
    dropout: float | None = None,
    problem_type: ProblemType = SingleLabel.problem_type,
) -> PretrainedConfig:
    """Read the encoder's configuration and set labels and dropout (None keeps the encoder's own dropout)."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    name_labels(config, labels, problem_type)
    for name in families.ENCODER_DROPOUTS:
        if dropout is not None and hasattr(config, name):
            setattr(config, name, dropout)
    return config


def name_labels(config: Any, labels: list[str], problem_type: ProblemType) -> None:
    """Note the labels, in the order of the logits, and whether a text gets one of them or several."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = problem_type


def from_encoder(folder: str, config: PretrainedConfig, head: Head, with_head: bool = False) -> Classifier:
    """Load a pretrained encoder and put a new head on it.

    The head's first weights come from torch's random state. A standard head that the folder holds for the same labels
    is kept, by the labels' names; `with_head` requires it. Raises `UserError` if the folder's weights are not those of
    the whole encoder.
    """
    loader = AutoModelForSequenceClassification if head == "standard" else AutoModel
    with progress_bars_hidden():
        model, report = loader.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            key_mapping={rf"^({'|'.join(map(re.escape, WRAPPER_PREFIXES))})+": ""},
            output_loading_info=True,
        )
    _check_report(folder, model, report, with_head)
    if head == "mlp":
        return _with_mlp(model, config)
    classifier = StandardClassifier(model)
    if not with_head:  # that of a bundle has its labels already
        not_loaded = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
        _match_head(folder, classifier, list((config.id2label or {}).values()), not_loaded)
    return classifier


def _check_report(folder: str, model: nn.Module, report: dict[str, Any], with_head: bool) -> None:
    """Refuse weights that lack a part of the encoder, or have one too many or of another shape. Raises `UserError`.

    The head may be missing unless `with_head`, and with it the pooler, which pretrained encoders often lack. A pooler
    and heads that the model does not have may stand in its folder: pretraining left them.
    """
    prefix = f"{model.base_model_prefix}."
    parts = {name.split(".")[0] for name, _ in model.base_model.named_parameters()}  # type: ignore[union-attr]

    def needed(names: Iterable[str], with_head: bool = with_head) -> list[str]:
        names = (name.removeprefix(prefix) for name in names if not BUFFER.search(name))
        return sorted(name for name in names if with_head or (name.split(".")[0] in parts and "pooler" not in name))

    missing, unexpected = needed(report["missing_keys"]), needed(report["unexpected_keys"], with_head=False)
    other_shape = needed(name for name, *_ in report["mismatched_keys"])
    kinds = (("missing", missing), ("of another shape", other_shape), ("unexpected", unexpected))
    problems = [f"{len(names)} {kind} ({names[0]})" for kind, names in kinds if names]
    if problems:
        raise UserError(
            f"the weights of {folder} do not fit the model in its config.json: {', '.join(problems)}. "
            "Save the model itself again, with its save_pretrained."
        )


def _match_head(folder: str, classifier: StandardClassifier, labels: list[str], not_loaded: set[str]) -> None:
    """Order the last layer's rows by the labels' names; start with new ones if the folder has other labels."""
    saved = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).id2label or {}
    saved_labels = [str(saved[number]) for number in sorted(saved)]
    layer = last_layer(classifier, len(labels))
    name = next(name for name, module in classifier.model.named_modules() if module is layer)
    if saved_labels == labels or f"{name}.weight" in not_loaded:
        return
    with torch.no_grad():
        if set(saved_labels) == set(labels):
            order = [saved_labels.index(label) for label in labels]
            for parameter in layer.parameters():
                parameter.copy_(parameter[order].clone())
        else:
            nn.init.normal_(layer.weight, std=HEAD_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@contextlib.contextmanager
def progress_bars_hidden() -> Iterator[None]:
    """Hide the progress bars of transformers, which it shows for a second's work too."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def from_config(config: PretrainedConfig, head: Head) -> Classifier:
    """Build the model with random weights, into which those of a bundle can be loaded."""
    if head == "standard":
        return StandardClassifier(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32))
    return _with_mlp(AutoModel.from_config(config, dtype=torch.float32), config)


def check(config: PretrainedConfig, head: Head, labels: list[str], gradient_checkpointing: bool) -> None:
    """Refuse an encoder that cannot be trained with this head.

    Builds it without its weights. Raises `UserError`, and what transformers raises for a family without such a head.
    """
    if config.is_encoder_decoder:
        raise UserError(
            f"--model is of the family {config.model_type}, which has a decoder. Choose an encoder without one."
        )
    with torch.device("meta"):
        model = from_config(config, head)
    last_layer(model, len(labels))
    if gradient_checkpointing and not getattr(model.pretrained, "supports_gradient_checkpointing", False):
        raise UserError(f"--gradient-checkpointing: {config.model_type} encoders do not support it. Leave it out.")


def _with_mlp(encoder: nn.Module, config: PretrainedConfig) -> MlpClassifier:
    return MlpClassifier(encoder, config.hidden_size, len(config.id2label or {}), MLP_DROPOUT)


def set_head_dropout(classifier: Classifier, p: float) -> None:
    """Set the dropout of the head, whatever the family calls it."""
    for name, module in classifier.named_modules():
        if isinstance(module, nn.Dropout) and not name.startswith(classifier.encoder_prefix):
            module.p = p


def depths(classifier: Classifier) -> dict[str, int]:
    """Count the encoder's layers above each of its parameters; above embeddings lie all of them."""
    numbers = {
        name: [int(n) for n in re.findall(r"\.(\d+)\.", name)[:1]]
        for name, _ in classifier.named_parameters()
        if name.startswith(classifier.encoder_prefix)
    }
    layers = max((n[0] + 1 for n in numbers.values() if n), default=0)
    return {name: layers - 1 - n[0] if n else layers if "embedding" in name else 0 for name, n in numbers.items()}


def copy_sharing_weights(model: Module) -> Module:
    """Copy a model's modules, so that they can be changed, but not its weights."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def encoder_layers(encoder: nn.Module) -> nn.ModuleList:
    """Find the list of the encoder's layers; an empty one for families that have none."""
    return max((m for m in encoder.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList())


def compute_first_token_only(model: nn.Module, encoder: nn.Module) -> bool:
    """Make the encoder's last layer compute only each row's first token behind its attention.

    The head looks at nothing else. With six layers it saves a tenth of all work. Families differ in where the other
    tokens can be dropped, so each norm of the last layer is tried, and kept where the output stays the same.

    Args:
        model: (input_ids, attention_mask) -> logits, or what the head gets; in evaluation mode.
        encoder: The encoder inside `model`; it is changed.

    Returns:
        Whether there was such a place.
    """
    layers: Any = encoder_layers(encoder)
    config: Any = encoder.config
    lists = families.make_probe(config)
    device = next(encoder.parameters()).device
    batch = [torch.from_numpy(x).to(device) for x in pad(lists, np.arange(len(lists)), config.pad_token_id or 0)]
    with torch.inference_mode():
        expected = model(*batch)
        for norm in [m for m in layers[-1].modules() if "Norm" in type(m).__name__] if len(layers) else []:
            hook = norm.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :1], *inputs[1:]))
            try:
                if torch.allclose(model(*batch), expected, rtol=1e-4, atol=1e-5):
                    return True
            except Exception:  # families complain in many ways about shapes that do not fit
                pass
            hook.remove()
    return False


def last_layer(classifier: Classifier, classes: int) -> nn.Linear:
    """Find the linear layer that makes the logits, whatever the family calls it."""
    layers = [m for m in classifier.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not layers:
        raise UserError(f"{type(classifier).__name__} has no linear layer of {classes} outputs. Use --head mlp.")
    return layers[-1]
