"""Take a measurement once on a machine, whichever process asks."""

import json
import threading
import time

import pytest

from sentiment_core.runtime.measurements import remember


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sentiment-core" / "measurements"


def test_a_key_is_measured_once(cache):
    assert remember({"chip": "a", "threads": 2}, lambda: {"x": 1.5}) == {"x": 1.5}
    assert remember({"threads": 2, "chip": "a"}, lambda: {"x": 9.0}) == {"x": 1.5}
    assert remember({"chip": "b", "threads": 2}, lambda: {"x": 9.0}) == {"x": 9.0}
    (record,) = [path for path in cache.glob("*.json") if json.loads(path.read_text())["key"]["chip"] == "a"]
    assert json.loads(record.read_text())["values"] == {"x": 1.5}


def test_of_several_that_ask_at_once_one_measures_and_the_others_wait():
    calls, results = [], []

    def measure() -> dict[str, float]:
        calls.append(threading.get_ident())
        time.sleep(0.2)
        return {"x": float(len(calls))}

    threads = [threading.Thread(target=lambda: results.append(remember({"k": 1}, measure))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(calls) == 1
    assert results == [{"x": 1.0}] * 4


@pytest.mark.parametrize("content", ["{", "[]", '{"values": 3}', '{"values": {"x": null}}'])
def test_a_damaged_record_is_measured_again(cache, content):
    remember({"k": 1}, lambda: {"x": 1.0})
    (record,) = cache.glob("*.json")
    record.write_text(content)
    assert remember({"k": 1}, lambda: {"x": 2.0}) == {"x": 2.0}
    assert remember({"k": 1}, lambda: {"x": 3.0}) == {"x": 2.0}


def test_where_nothing_can_be_kept_it_is_measured_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert remember({"k": 1}, lambda: {"x": 1.0}) == {"x": 1.0}
    assert remember({"k": 1}, lambda: {"x": 2.0}) == {"x": 2.0}


def test_a_failed_measurement_leaves_nothing(cache):
    with pytest.raises(ValueError, match="broken"):
        remember({"k": 1}, lambda: (_ for _ in ()).throw(ValueError("broken")))
    assert remember({"k": 1}, lambda: {"x": 2.0}) == {"x": 2.0}
