"""The files of a bundle that are for people."""

import re
from dataclasses import replace

import numpy as np

from sentiment_core.model.distillation_record import Distillation
from sentiment_core.model.multi_label_records import LabelCalibration
from sentiment_core.model.objective import MultiLabel
from sentiment_core.report import training_report
from tests.report.examples import COMMAND, MISTAKES, bundle_info, epoch_log


def test_a_bundle_gets_a_page_a_card_and_every_figure():
    files = training_report.make_files(bundle_info(), epoch_log(), COMMAND, MISTAKES)
    figures = training_report.FIGURES["single_label_classification"]
    images = {figure.file_name for figure in figures}
    assert set(files) == {"report.html", "README.md", *images}
    assert {"confusion.png", "reliability.png", "confidence.png", "risk_coverage.png", "loss.png"} <= images
    page, card = files["report.html"].decode(), files["README.md"].decode()
    assert re.findall(r'<img alt="(.*?)"', page) == [figure.title for figure in figures]
    assert all(f"]({name})" in card for name in images)
    assert COMMAND in page
    assert "Great, &lt;b&gt;another&lt;/b&gt; sequel." in page
    assert '<td>2 (kept)</td><td class="number">8,100</td>' in page
    assert "5.0 % of the evaluation\nrows are longer" in page
    assert "<td>mean absolute error, in labels</td>" in page
    assert 'src="http' not in page  # whole without a network


def test_a_model_without_mistakes_says_so():
    files = training_report.make_files(bundle_info(), epoch_log(), COMMAND, [])
    assert "Every evaluation row got the right label." in files["report.html"].decode()


def test_a_multi_label_bundle_shows_each_label():
    rng = np.random.default_rng(0)
    info = bundle_info()
    targets = rng.random((900, 3)) < np.array([0.5, 0.1, 0.0])
    probabilities = np.clip(0.2 + 0.5 * targets + rng.normal(0, 0.2, targets.shape), 0.01, 0.99)
    objective = MultiLabel().fit_decision(probabilities, targets)
    metrics = objective.evaluate(probabilities, targets, info.labels)
    calibration = LabelCalibration("m", [1.0] * 3, [0.0] * 3, 900, 0.1, 0.05, 0.06)
    info = replace(info, metrics=metrics, calibration=calibration, **objective.settings)
    log = [replace(record, eval=objective.score_epoch(probabilities, targets, info.labels)) for record in epoch_log()]
    files = training_report.make_files(info, log, COMMAND, MISTAKES)
    assert {"labels.png", "reliability.png", "risk_coverage.png"} <= set(files)
    page, card = files["report.html"].decode(), files["README.md"].decode()
    assert re.findall(r'<img alt="(.*?)"', page)[:2] == ["F1 by label", "Reliability by label"]
    assert f'<td>negative</td><td class="number">{targets[:, 0].sum()}</td>' in page
    assert "<dt>micro-F1</dt>" in page
    assert f"| micro-F1 | {metrics.micro_f1:.4f} |" in card
    assert f"| positive | 0 | {metrics.by_label['positive'].threshold:.3f} |" in card
    assert "| epoch | training loss | evaluation loss | micro-F1 | macro-F1 |" in card
    assert "the calibration (scale and shift of each label) fitted" in card


def test_a_student_without_labels_agrees_and_is_not_accurate():
    info = replace(bundle_info(), distillation=Distillation(teacher="models/large", evaluated_on="teacher"))
    page = training_report.make_files(info, epoch_log(), COMMAND, MISTAKES)["report.html"].decode()
    assert "agreement\nwith the teacher, not accuracy" in page
    assert "<h2>Largest differences from the teacher</h2>" in page
    assert "wrong labels" not in page
