"""The pages of nights."""

from sentiment_core.nightly import pages
from sentiment_core.nightly.record import Night, NightRun
from tests.report.examples import nights


def test_the_index_shows_the_alarms_of_every_night_in_its_line():
    series = nights(8)
    series[2].alarms = ["<new> shards"]
    series[2].exit_code = 4
    lines = {
        line.partition("</a>")[0].rpartition(">")[2]: line for line in pages.make_index_page(series).split("<tr>")[2:]
    }
    assert list(lines) == [night.night for night in reversed(series)]
    newest = lines["2026-09-08"]
    assert ">attention</span>" in newest
    for alarm in series[-1].alarms[:-1]:
        assert f"<li>{alarm.replace(chr(39), '&#39;')}</li>" in newest
    assert len(series[-1].alarms) == newest.count("<li>") == 3
    assert "<li>scoring stopped: &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;</li>" in newest
    assert "20260920-c0ffee promoted: accuracy 0.91, before 0.89" in newest
    assert "<li>&lt;new&gt; shards</li>" in lines["2026-09-03"]
    assert ">ok</span>" in lines["2026-09-01"]
    assert "<li>" not in lines["2026-09-01"]


def test_the_index_counts_nights_and_draws_trends():
    page = pages.make_index_page(nights(8))
    assert "8 nights, 7 of them ok. 480,000 rows scored." in page
    assert page.count("<img ") == 4
    assert "Trends" not in pages.make_index_page([Night("n")])


def test_a_night_with_drift_shows_why_someone_should_look():
    series = nights(8)
    page = pages.make_night_page(series[-1], series[:-1])
    assert page.count("<li>") == len(series[-1].alarms) == 3
    assert '<span class="badge warning">attention</span>' in page
    assert page.count("<img ") == 3
    drifted = [row for row in series[-1].comparisons if row.drifted]
    assert page.count('<tr class="flagged">') == len(drifted) == 2
    assert "kind=&lt;tweets&gt;" in page
    assert "<td>kind=b/part-7.parquet</td><td>Couldn&#39;t deserialize thrift: damaged</td>" in page
    assert "20260920-c0ffee promoted: accuracy 0.91, before 0.89" in page


def test_a_night_without_rows_has_a_page():
    page = pages.make_night_page(Night("n", alarms=["failed: no space"], state="failed"), [])
    assert '<span class="badge bad">failed</span>' in page
    assert "failed: no space" in page
    assert "<img " not in page


def test_the_rate_of_a_night_is_that_of_its_last_run_with_rows():
    runs = [NightRun("", 1.0, "", rows, rate) for rows, rate in ((100, 9.0), (50, 7.0), (0, None))]
    assert '<td class="number">7</td>' in pages.make_index_page([Night("n", runs=runs)])
    assert '<td class="number">7</td>' not in pages.make_index_page([Night("n", runs=runs[2:])])


def test_outcomes_are_named_by_state_and_exit_code():
    def outcome(state: str, exit_code: int | None = None, alarm: str = "") -> str:
        return pages.name_outcome(Night("n", state=state, exit_code=exit_code, alarms=[alarm] if alarm else []))

    assert outcome("running") == "running or killed"
    assert outcome("stopped", 1) == "stopped"
    assert outcome("done", 0) == "ok"
    assert outcome("done", 1, "verification found 3 missing") == "verification failed"
    assert outcome("done", 1, "scoring stopped: no space") == "failed"
    assert outcome("done", 3) == "shards failed"
    assert outcome("done", 4) == "attention"
