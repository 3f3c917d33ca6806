"""The engine: a bundle on a device, which turns token lists into calibrated probabilities.

It knows nothing of Ray or of files to score. `selection` finds the backend that computes.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from sentiment_core.errors import UserError
from sentiment_core.inference import selection, timing
from sentiment_core.inference.backends.base import BackendUnavailable
from sentiment_core.inference.classified import Classified
from sentiment_core.inference.int8_layers import Int8Layers, unpack_layers
from sentiment_core.inference.timing import Choice
from sentiment_core.model import bundle
from sentiment_core.model.classifier import Classifier
from sentiment_core.model.objective import Objective, SingleLabel
from sentiment_core.runtime import cpu_threads, hardware
from sentiment_core.runtime.precision import Precision
from sentiment_core.text.token_lists import DistinctLists, TokenLists, mean_over_windows


class NotFinite(UserError):
    """A model gives NaN or infinite probabilities."""


EMPTY: Mapping[str, str] = MappingProxyType({})
LEAST_TOKENS = 512  # of a batch: about the longest row that most encoders take


class Engine:
    """A classifier that computes with the fastest backend that runs it right."""

    def __init__(
        self,
        model: Classifier,
        classes: int,
        max_length: int,
        threads: int | None = None,
        backend: str | None = None,
        objective: Objective = SingleLabel(),  # noqa: B008 (frozen)
        on_cpu: bool = False,
        precision: Precision = "auto",
        mean_tokens: float | None = None,
        choices: Mapping[str, str] = EMPTY,
        work_tokens: float = 0.0,
        int8_layers: Int8Layers = selection.NO_LAYERS,
    ) -> None:
        """Select the backend and move the model to its device.

        Args:
            model: The classifier.
            classes: Number of labels.
            max_length: Tokens of a window. Of longer lists the logits of their windows are averaged.
            threads: CPU threads to compute with; None leaves the number to the library.
            backend: Name in `selection.BACKENDS`; None takes the fastest that runs the model right here, and
                `passed_over` says why others were not taken.
            objective: How logits become probabilities.
            on_cpu: Whether to leave a GPU alone.
            precision: Number type to compute in; auto takes the fastest, as measured.
            mean_tokens: Of a text of the work; None where nothing is known of it.
            choices: By chip, the choice that earlier runs made and that is taken again, as `choice` has it.
            work_tokens: To compute in all, about. For many a backend is compiled, which takes a minute.
            int8_layers: Layers that the backend `int8` computes in 8 bits.

        Raises:
            BackendUnavailable: The backend asked for does not run the model right.
            UserError: The chip does not compute in that precision.
        """
        only_on_cpu = on_cpu or (backend is not None and selection.find_backend(backend).device_types == ("cpu",))
        self.device = torch.device("cpu") if only_on_cpu else hardware.device()
        self.threads = threads if self.device.type == "cpu" else None
        self.classes = classes
        self.objective = objective
        self.process = os.getpid()
        self.max_length = max_length
        self._limit_threads()
        self.chip = hardware.chip_id(self.device)
        own_threads = self.threads or cpu_threads.count_usable()
        possible = selection.list_choices(backend, self.device, own_threads, precision)
        # what is asked for is taken even where it is slower, but then `margin` says so
        usual = selection.list_choices(None, self.device, own_threads, precision) if backend == "int8" else []
        length = timing.work_length(mean_tokens, max_length)

        def select(choices: Sequence[Choice], mean_length: int | None) -> selection.Selection:
            return selection.select_backend(
                model, self.device, self.threads, choices, objective, mean_length, work_tokens, int8_layers, usual
            )

        try:
            selected = selection.select_as_noted(choices.get(self.chip, ""), possible, length, select)
        except BackendUnavailable as error:
            if precision == "auto" or backend is not None:
                raise
            raise UserError(
                f"--precision {precision}: the model does not come out right in it here ({error}). "
                "Leave out --precision."
            ) from None
        self._take(selected)
        # numbers above 65,504 are infinite in float16: then float32 computes
        self.exact_model = model if self.choice.number_type == "float16" else None

    @classmethod
    def load(
        cls,
        folder: str,
        threads: int | None = None,
        backend: str | None = None,
        mean_tokens: float | None = None,
        **settings: Any,
    ) -> "Engine":
        """Load the bundle in a local folder. `mean_tokens`: by default those of the bundle's evaluation rows."""
        model, info = bundle.load(folder)
        reference = info.reference
        if mean_tokens is None and reference.tokens and reference.rows:
            mean_tokens = reference.tokens / reference.rows
        int8_file = Path(folder, bundle.INT8)
        if backend == "int8" and int8_file.exists():
            settings["int8_layers"] = unpack_layers(int8_file.read_bytes())
        return cls(
            model,
            len(info.labels),
            info.max_length,
            threads,
            backend,
            objective=info.objective,
            mean_tokens=mean_tokens,
            **settings,
        )

    def classify(self, tokens: DistinctLists) -> Classified:
        """Compute rows whose distinct lists are known, as scoring asks of each kind of engine."""
        return Classified(*self.distinct_probabilities(tokens))

    def probabilities(self, tokens: TokenLists) -> tuple[np.ndarray, int]:
        """Compute the probabilities of all rows, those with the same tokens once; see `distinct_probabilities`."""
        return self.distinct_probabilities(DistinctLists.find(tokens))

    def distinct_probabilities(self, tokens: DistinctLists) -> tuple[np.ndarray, int]:
        """Compute the probabilities of rows whose distinct lists are known.

        When memory runs out, the engine halves the tokens of a batch and keeps to that.

        Returns:
            Probabilities (n, classes) float32 in the order of the rows, NaN for rows without tokens; and the number of
            tokens of padding that were computed.

        Raises:
            UserError: This process was forked from the one that loaded the model, and lacks its threads.
            NotFinite: The model gives no numbers for some rows.
        """
        if self.process != os.getpid():
            raise UserError("The model was loaded before this process was forked. Load it in each process.")
        self._limit_threads()
        while True:
            try:
                probabilities, padding = self._compute(tokens.lists)
                return probabilities[tokens.inverse], padding
            except RuntimeError as error:
                if not hardware.is_out_of_memory(error) or self.backend.budget <= LEAST_TOKENS:
                    raise
            except NotFinite:
                if self.exact_model is None:
                    raise
                self._compute_in_float32(self.exact_model)
                continue
            # outside the except block, whose traceback would keep the memory in use
            self.backend.budget //= 2
            torch.cuda.empty_cache()

    @property
    def computed_by(self) -> str:
        """Name of the backend and number type that compute, such as `openvino bfloat16`."""
        return self.backend.name

    @property
    def is_usable(self) -> bool:
        """True unless an error left the device refusing this process everything."""
        return hardware.still_computes(self.device)

    @property
    def remarks(self) -> list[str]:
        """List what users should know of the computation: backends passed over, batches made smaller."""
        halved = f"out of memory, so batches of {self.backend.budget:,} tokens"
        is_halved = self.backend.budget < self._initial_budget
        return [*self.passed_over, *[halved] * is_halved]

    def _compute(self, tokens: TokenLists) -> tuple[np.ndarray, int]:
        windows, first_windows = tokens.windows(self.max_length)
        batches = self.backend.batches(windows.lengths)
        logits = np.full((len(windows), self.classes), np.nan)
        if batches:
            with torch.inference_mode():
                logits[np.concatenate(batches)] = self.head(self.backend(windows, batches).double()).cpu().numpy()
        probabilities = self.objective.activate(mean_over_windows(logits, first_windows)).astype(np.float32)
        failed = int((~np.isfinite(probabilities).all(axis=1) & (tokens.lengths > 0)).sum())
        if failed:
            raise NotFinite(
                f"the model gives no finite probabilities for {failed:,} of {len(tokens):,} distinct texts, computed "
                f"by {self.backend.name}: its weights hold NaN, or numbers that overflow"
            )
        return probabilities, sum(self.backend.padding(windows.lengths[batch]) for batch in batches)

    def _take(self, selected: selection.Selection) -> None:
        """Compute with this backend from now on."""
        self.backend, self.choice, self.passed_over = selected.backend, selected.choice, selected.passed_over
        self.margin = selected.margin  # how much faster than others it was measured to be
        # in float64, whose rounding, which depends on the batch, float32 does not show
        self.head = copy.deepcopy(selected.head).double()
        self._initial_budget = self.backend.budget

    def _compute_in_float32(self, model: Classifier) -> None:
        """Give up float16, in which the model overflows."""
        reason = f"{self.choice}: the numbers of some rows overflow"
        exact = [Choice("torch", "float32")]
        self._take(selection.select_backend(model, self.device, self.threads, exact, self.objective, None))
        self.passed_over, self.exact_model = [reason], None

    def _limit_threads(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)  # of the calling thread, and of those that use torch later
