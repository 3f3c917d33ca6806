"""Make a bundle of a Hugging Face classifier; with labelled text evaluate and calibrate it.

On this machine and without Ray. The classifier's weights stay as they are, but for the temperature in its last layer.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.data import labelled
from sentiment_core.data.csv_settings import csv_encoding_setting, csv_separator_setting
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import LabelScheme, parse_mapping
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.evaluation import describe_metrics
from sentiment_core.inference.engine import Engine
from sentiment_core.inference.int8 import LabelledTokens, prepare_int8
from sentiment_core.model import bundle, classifier, encoder, fitness, guarantee, source
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.classifier import Classifier
from sentiment_core.model.objective import Objective
from sentiment_core.model.records import EvaluationRows, GuaranteeGrid, Int8Check
from sentiment_core.runtime import preflight, storage
from sentiment_core.text.tokenizer import Tokenizer
from sentiment_core.training.data import tokenize_part
from sentiment_core.training.diagnostics import reference_statistics

NOT_CALIBRATED = "confidences are as the model gives them, not calibrated: "


@dataclass(frozen=True)
class AdoptSettings:
    """Settings of `adopt`."""

    model: str = setting(
        REQUIRED, "Hugging Face sequence classifier: a folder, URI or hub name", "NAME_OR_DIR", group="model"
    )
    out: str = setting(REQUIRED, "folder or URI of the new model bundle; must not exist yet", "BUNDLE", group="output")
    label_names: tuple[str, ...] = setting(
        (), "names of the model's labels, in its order; default: those of its id2label", "A,B", group="model"
    )
    max_length: int | None = setting(
        None, "tokens to read of a text; default: by the model's tokenizer and positions", "N", group="long texts"
    )
    data: str | None = setting(
        None,
        "labelled text to evaluate and calibrate on: Parquet, CSV or JSON Lines (file, folder, glob, URI), or a hub "
        "data set as owner/name[:config][:split]",
        "D",
        group="data",
    )
    text_column: tuple[str, ...] = setting(
        ("text",), "column with the text, or several whose texts are joined (default: text)", "A,B", group="data"
    )
    label_column: str = setting(
        "label", "column with the label: a label name of the model, or its number; or a list of them", group="data"
    )
    label_separator: str | None = setting(
        None,
        "separator of the labels in a text that holds several; a row with the separator alone has none",
        group="data",
    )
    label_map: tuple[str, ...] = setting(
        (), "labels of the data, and the model's names for them, such as pos=positive,neg=negative", "A=B", group="data"
    )
    csv_separator: str | None = csv_separator_setting()
    csv_encoding: str | None = csv_encoding_setting()

    @property
    def columns(self) -> Columns:
        """The columns of labelled files to read."""
        return Columns(
            self.text_column,
            self.label_column,
            self.csv_separator,
            self.csv_encoding,
            label_separator=self.label_separator,
        )

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        names = self.label_names
        check(len(set(names)) == len(names), "label_names", ",".join(names), "different names")
        check(self.max_length is None or self.max_length >= 1, "max_length", self.max_length, "1 or more")
        parse_mapping(self.label_map)
        _ = self.columns  # which checks them


@dataclass(frozen=True)
class AdoptResult:
    """A new bundle: its path and what it says of itself."""

    place: str
    info: BundleInfo

    def summary(self) -> str:
        """Return a few lines for the terminal."""
        fitted, labels = self.info.calibration, ", ".join(self.info.labels)
        lines = [f"labels: {labels}; texts are read up to {self.info.max_length} tokens"]
        if not self.info.metrics.n:
            lines.append(NOT_CALIBRATED + "give labelled text with --data")
        else:
            lines += [*describe_metrics(self.info.metrics), *self.info.training.eval_data.remarks]
            lines.append(
                f"calibration error {fitted.ece_before:.4f} -> {fitted.ece_after:.4f}: {fitted.parameters}"
                if fitted.rows
                else NOT_CALIBRATED + "no last linear layer makes its logits"
            )
        return "\n".join([*lines, f"bundle: {self.place}"])


def adopt(settings: AdoptSettings) -> AdoptResult:
    """Make a bundle of a classifier that was trained elsewhere. Raises `UserError`."""
    preflight.check_lasting(settings.out)
    bundle.check_free(settings.out)
    opened = source.open_classifier(settings.model, settings.label_names, settings.max_length)
    preflight.check_space(settings.out, 2 * sum(map(len, opened.files.values())))  # also where it is put together
    several = opened.info.objective.several
    scheme = LabelScheme(opened.info.labels, mapping=parse_mapping(settings.label_map), several=several)
    data = labelled.read(settings.data, settings.columns, scheme) if settings.data else None
    with storage.unpack_files(opened.files) as folder:
        model, info = bundle.load(folder)
        tokenizer = encoder.load_tokenizer(folder)
        config: Any = model.pretrained.config
        classifier.name_labels(config, info.labels, info.problem_type)
        info = replace(info, int8=Int8Check(), training=replace(info.training, settings=asdict(settings)))
        int8_files: dict[str, bytes] = {}
        if data:
            info, int8_files = _evaluate(model, info, data, bundle.load_tokenizer(folder))
        from sentiment_core.report import training_report  # matplotlib: a second that refusals do not need

        bundle.write(settings.out, model, config, tokenizer, info, training_report.make_card(info, []) | int8_files)
    return AdoptResult(settings.out, info)


def _evaluate(
    model: Classifier, info: BundleInfo, data: LabelledTexts, tokenizer: Tokenizer
) -> tuple[BundleInfo, dict[str, bytes]]:
    """Evaluate and calibrate a model on labelled rows.

    Returns its record with what they show, and the bundle's file for 8 bits, if there is one.
    """
    objective, classes = info.objective, len(info.labels)
    data, tokens = tokenize_part(data, tokenizer)
    mean_tokens = float(tokens.lengths.mean())
    engine = Engine(model, classes, info.max_length, objective=objective, mean_tokens=mean_tokens)
    probabilities, _ = engine.probabilities(tokens)
    logits = objective.invert(probabilities)
    fitted: Any = objective.fit_calibration(logits, data.labels)
    if _fold(model, objective, fitted, classes):
        probabilities = objective.activate(objective.calibrate(logits, fitted))
    else:
        fitted = objective.records["calibration"]()
    objective = objective.fit_decision(probabilities, data.labels)
    origin = EvaluationRows(**vars(data.origin), eval_rows=len(data), fingerprint=data.fingerprint())
    # each row either fits the 8 bits or is evaluated in them
    fitting, evaluated = np.arange(0, len(data), 2), np.arange(1, len(data), 2)
    held_out = LabelledTokens(tokens.take(evaluated), data.labels[evaluated])
    int8, int8_files = prepare_int8(model, classes, info.max_length, objective, held_out, tokens.take(fitting))
    info = replace(
        info,
        metrics=objective.evaluate(probabilities, data.labels, info.labels),
        calibration=fitted,
        **objective.settings,
        training=replace(info.training, eval_data=origin),
        reference=reference_statistics(objective, tokens, probabilities, info.labels, tokenizer.unknown_id),
        int8=int8,
        # rows of a sample were not drawn evenly, and promise nothing
        guarantee=GuaranteeGrid() if data.samples else guarantee.make_grid(objective, probabilities, data.labels),
    )
    return info, int8_files


def _fold(model: Classifier, objective: Objective, fitted: Any, classes: int) -> bool:
    """Fold a calibration into the last linear layer; return whether that calibrates the logits.

    If it does not, the layer is left as it was: families may compute the logits otherwise.
    """
    try:
        layer = classifier.last_layer(model, classes)
        objective.check_last_layer(layer)
    except UserError:
        return False
    before, weights = fitness.probe_logits(model), {name: value.clone() for name, value in layer.state_dict().items()}
    objective.fold_calibration(layer, fitted)
    expected = objective.calibrate(before.cpu().numpy(), fitted)
    if np.allclose(fitness.probe_logits(model).cpu().numpy(), expected, rtol=1e-3, atol=1e-4):
        return True
    layer.load_state_dict(weights)
    return False
