"""The files of a bundle that are for people."""

import re

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
