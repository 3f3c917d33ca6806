"""A contender's failure is its own: it becomes a reason, and the benchmark goes on."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from timing import ContenderFailed, ContenderProcess, matrix_ceiling

pytestmark = pytest.mark.slow


def make_divider(dividend: int):
    """Make a contender that divides, unless it is asked to die or to hang."""
    if dividend < 0:
        raise ValueError("expected a positive number\nand this is another line")

    def divide(divisor: int) -> float:
        if divisor < 0:
            os._exit(7)
        if divisor > 1_000:
            time.sleep(60)
        return dividend / divisor

    return divide


@pytest.fixture
def divider():
    process = ContenderProcess(make_divider, 6)
    yield process
    process.kill()


def test_an_error_is_an_answer_and_the_process_goes_on(divider):
    with pytest.raises(ContenderFailed, match="ZeroDivisionError"):
        divider.call(0)
    assert divider.call(3) == 2


def test_a_dead_process_says_its_exit_code(divider):
    with pytest.raises(ContenderFailed, match="exit code 7"):
        divider.call(-1)


def test_a_hanging_process_is_ended(divider):
    divider.wait_until_made()
    with pytest.raises(ContenderFailed, match="no answer within 1 s"):
        divider.call(5_000, limit_s=1)


def test_a_contender_that_cannot_be_made_says_why_in_one_line():
    process = ContenderProcess(make_divider, -1)
    with pytest.raises(ContenderFailed) as failure:
        process.call(3)
    assert str(failure.value) == "ValueError: expected a positive number"


def test_the_matrix_ceiling_is_a_rate():
    assert matrix_ceiling(32, 64, torch.float32, torch.device("cpu"), rows=16) > 1e6
