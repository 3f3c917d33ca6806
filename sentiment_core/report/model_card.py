"""Make a bundle's model card, `README.md`.

Its numbers stand in the text and in the metadata, `model-index`, which the Hugging Face hub reads and shows.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sentiment_core.model import guarantee
from sentiment_core.model.records import Guarantee
from sentiment_core.report.html import TEMPLATES

if TYPE_CHECKING:
    from sentiment_core.model.bundle import BundleInfo
    from sentiment_core.model.records import EpochRecord

TASK = "text-classification"
PROMISED_ACCURACIES = (0.9, 0.95, 0.99)  # that the card has a threshold for
# the hub's names of our metrics, where they differ
HUB_METRICS = {"macro_f1": "f1", "micro_f1": "f1", "brier": "brier_score"}


def make_model_card(info: "BundleInfo", log: Sequence["EpochRecord"], figures: Mapping[str, str]) -> str:
    """Make the model card of a bundle.

    Args:
        info: What the bundle says of itself.
        log: One record an epoch; none of a model that was not trained here.
        figures: File names of the figures by their titles.
    """
    encoder = info.training.encoder
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["sentiment-core"],
        base_model=encoder.name if encoder.revision else None,  # else a folder, which the hub would refuse
        model_name=make_title(info),
        eval_results=list_results(info),
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / "model_card.md"),
        title=make_title(info),
        preprocessing=describe_preprocessing(info),
        info=info,
        promises=_list_promises(info),
        log=log,
        figures=figures,
    )
    return str(card).rstrip() + "\n"


def _list_promises(info: "BundleInfo") -> list[Guarantee]:
    """List the guarantees that the card shows; none of a bundle without labelled rows."""
    grid = info.guarantee
    return [guarantee.promise(grid, target, guarantee.CERTAINTY) for target in PROMISED_ACCURACIES if grid.rows]


def list_results(info: "BundleInfo") -> list[EvalResult]:
    """List a bundle's metrics on its evaluation rows, if there are any, for the hub's `model-index`.

    Agreement with a teacher is none of the hub's metrics.
    """
    metrics, origin = info.metrics, info.training.eval_data
    if not metrics.n or info.distillation.is_by_teacher:
        return []
    is_on_hub = bool(origin.revision)
    # a part of the training data, kept from training
    is_held_out = info.training.epochs > 0 and not info.training.settings.get("eval_data") and not origin.folds
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=origin.place.partition(":")[0] if is_on_hub else "labelled-text",
            dataset_name=origin.place,
            dataset_split="held-out" if is_held_out else None,
            dataset_revision=origin.revision,
            metric_type=HUB_METRICS.get(key, key),
            metric_name=metrics.NUMBERS[key],
            metric_value=value,
        )
        for key, value in metrics.numbers.items()
        if key in metrics.NUMBERS
    ]


def make_title(info: "BundleInfo") -> str:
    """Return the heading of a bundle's card and report."""
    return f"Text classifier: {', '.join(info.labels)}"


def describe_preprocessing(info: "BundleInfo") -> str:
    """Describe how the bundle cleans and cuts a text, in a sentence or two."""
    tokens = info.max_length
    truncation = {
        "head": f"Texts longer than {tokens} tokens are cut: the first {tokens} tokens are kept.",
        "tail": f"Texts longer than {tokens} tokens are cut: the last {tokens} tokens are kept.",
        "head_tail": f"Texts longer than {tokens} tokens are cut: {tokens} tokens are kept, a quarter of them from the "
        "beginning, the rest from the end.",
        "window": f"Texts longer than {tokens} tokens are read in overlapping windows of {tokens} tokens, whose logits "
        "are averaged.",
    }
    cleaned = {"none": "", "markup": "HTML tags and character references are replaced first. "}
    return cleaned[info.clean] + truncation[info.truncation]
