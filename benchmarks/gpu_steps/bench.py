"""Give every step of `gpu.py` its device, its sizes, and figures that survive whatever ends the step."""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import describe

from gpu_steps.inputs import SHAPES, SMALL_SHAPES, Shape, make_bundle
from sentiment_core.runtime import hardware

LEAVE_SHARE = 0.15  # of a step's time: no measurement begins in it
NEEDS_GPU = "needs a GPU"


class Skipped(Exception):
    """A measurement that cannot be taken here; the message says why."""


@dataclass(frozen=True)
class Scale:
    """Sizes of what the steps compute."""

    shapes: dict[str, Shape]
    longest: int  # tokens of a text
    task_rows: int  # of a scoring task
    review_rows: int
    repeats: int  # timed runs
    check_rows: int  # that are compared with float32
    ceiling_tokens: int | None  # rows of the bare products; None: as many as an engine's batch
    copy_bytes: int
    attention_tokens: int
    texts: int  # that peers score
    warm_up_texts: int
    training_rows: int
    training_batches: tuple[int, ...]


FULL = Scale(SHAPES, 512, 16_384, 4_096, 5, 100, None, 4 << 30, 32_768, 8_192, 256, 4_096, (32, 256))
SMALL = Scale(SMALL_SHAPES, 64, 96, 16, 2, 12, 64, 8 << 20, 256, 48, 8, 48, (2,))


class Bench:
    """The machine, the sizes, and the figures of the step that runs."""

    def __init__(self, folder: str, is_small: bool, encoder: str | None) -> None:
        """Prepare for steps.

        Args:
            folder: For models and figures; all processes of a run share it.
            is_small: Whether everything is small, to try the steps on a CPU.
            encoder: Folder of a trained encoder for `minilm-l6`; None takes random weights.
        """
        self.folder, self.is_small, self.encoder = Path(folder), is_small, encoder
        self.device = hardware.device()
        self.scale = SMALL if is_small else FULL
        self.figures: dict[str, Any] = {}
        self.file = self.folder / "figures.json"
        self.ends = float("inf")

    def begin(self, seconds: float) -> None:
        """Begin a step that has so many seconds."""
        self.figures = {}
        self.ends = time.monotonic() + (1 - LEAVE_SHARE) * seconds
        self._write()

    @property
    def is_cuda(self) -> bool:
        """True where a GPU computes."""
        return self.device.type == "cuda"

    @property
    def half(self) -> torch.dtype:
        """The device's fast number type."""
        return hardware.number_types(self.device)[-1]

    @property
    def compared_shapes(self) -> list[str]:
        """The smallest and the largest shape, for what takes long."""
        names = list(self.scale.shapes)
        return list(dict.fromkeys([names[0], names[-1]]))

    def require_gpu(self) -> None:
        """Raise `Skipped` without a GPU."""
        if not self.is_cuda:
            raise Skipped(NEEDS_GPU)

    def measure(self, name: str, take: Callable[..., Any], *arguments: Any) -> Any:
        """Take a measurement and record it, or why it could not be taken; the next one goes on.

        Returns its figures, None where there are none.
        """
        answer = None
        try:
            if time.monotonic() > self.ends:
                raise Skipped("no time left for it in this step")
            answer = self.figures[name] = take(*arguments)
        except Skipped as reason:
            self.figures[name] = {"skipped": str(reason)}
        except Exception as error:  # libraries and drivers raise all kinds
            self.figures[name] = {"failed": describe(error)}
        self._write()
        return answer

    def load(self, name: str, make: Callable[[], Any]) -> Any:
        """Make something and record how long that takes; None where it fails."""
        made = []

        def take() -> dict[str, float]:
            started = time.perf_counter()
            made.append(make())
            return {"seconds": time.perf_counter() - started}

        self.measure(name, take)
        return made[0] if made else None

    def bundle(self, shape: str) -> str:
        """Return the folder of a bundle of this shape; make it if it is the first time."""
        path = self.folder / shape
        if not path.exists():
            encoder = self.encoder if shape == "minilm-l6" else None
            make_bundle(str(path), self.scale.shapes[shape], self.scale.longest, encoder, self.device)
        return str(path)

    def synchronize(self) -> None:
        """Wait until the GPU has done all that was launched."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def wall_seconds(self, run: Callable[[], Any], repeats: int | None = None, warm_up: int = 1) -> float:
        """Return the median time of a run until the device is done."""
        seconds = []
        for number in range(warm_up + (repeats or self.scale.repeats)):
            self.synchronize()
            started = time.perf_counter()
            run()
            self.synchronize()
            if number >= warm_up:
                seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def device_seconds(self, run: Callable[[], Any], calls: int = 10) -> float:
        """Return the time that a call takes on the device, launched `calls` times in a row."""
        run()
        if not self.is_cuda:
            return self.wall_seconds(run, calls, warm_up=0)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / calls

    def free_memory(self) -> None:
        """Give cached memory back, and count the peak from here."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _write(self) -> None:
        draft = self.file.with_suffix(".new")
        draft.write_text(json.dumps(self.figures))
        os.replace(draft, self.file)
