"""Templates and their formats."""

import pytest
from jinja2 import UndefinedError

from sentiment_core.report import html


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12_345, "12,345"), (0.12345, "0.123"), (168.52, "168.5"), (12_345.6, "12,345.6"), ("<b>", "<b>")],
)
def test_numbers_are_formatted_by_their_size(value, text):
    assert html.format_cell(value) == text


def test_every_value_is_escaped():
    trends = [("<u>", {"<i>": b"png"})]
    page = html.render("nights.html", title="<b>", lines=[], badges={}, ok_nights=0, rows=0, trends=trends)
    assert "<title>&lt;b&gt;</title>" in page
    assert "<h2>Trends&lt;u&gt;</h2>" in page
    assert '<img alt="&lt;i&gt;" src="data:image/png;base64,cG5n">' in page


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(UndefinedError, match="'lines' is undefined"):
        html.render("nights.html", title="Nights")
