"""Report an error of another process by the line that names it."""

import pytest

from sentiment_core.runtime.failures import describe_remote_error

FRAMES = """The actor died because of an error raised in its creation task, ray::Actor.__init__() (pid=7, ip=10.0.0.1)
  File "engine.py", line 57, in __init__
    self.model.to(device)
"""
CUDA = """torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device
Search for `cudaErrorNoKernelImageForDevice' in the manual.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
WEIGHTS = """RuntimeError: Error(s) in loading state_dict for BertModel:
\tsize mismatch for pooler.dense.weight
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CUDA, CUDA.partition("\n")[0]),
        (WEIGHTS, WEIGHTS.partition("\n")[0]),
        ("sentiment_core.errors.UserError: torch has no kernels for it.", "torch has no kernels for it."),
    ],
)
def test_the_line_that_names_a_remote_error_is_shown(error, line):
    assert describe_remote_error(FRAMES + error) == line


def test_an_error_without_a_trace_is_shown_by_its_last_line():
    assert describe_remote_error("The actor died.\nIts node is gone.\n") == "Its node is gone."
