"""Which backends are tried, and in which order."""

import pytest

from sentiment_core.inference.selection import BACKENDS, candidates, find_backend


def names(*arguments) -> list[str]:
    return [entry.name for entry in candidates(*arguments)]


def test_the_fastest_backend_of_a_device_is_tried_first_and_plain_torch_last():
    assert names(None, "cpu", False) == names(None, "cpu", True) == ["openvino", "torch"]
    assert names(None, "cuda", False) == ["packed", "torch"]
    assert names(None, "cuda", True) == ["compiled", "packed", "torch"]


def test_a_backend_asked_for_is_the_only_one_tried_wherever_it_runs():
    assert all(names(entry.name, "cpu", False) == [entry.name] for entry in BACKENDS)


def test_an_unknown_backend_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no backend 'fast'; expected one of compiled, packed, openvino, int8, torch"):
        find_backend("fast")
