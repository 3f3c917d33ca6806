"""The engine: a bundle on a device, which turns token lists into calibrated probabilities.

It knows nothing of Ray or of files to score. `selection` finds the backend that computes.
"""

import copy

import numpy as np
import torch

from sentiment_core.errors import UserError
from sentiment_core.inference import selection
from sentiment_core.model import bundle
from sentiment_core.model.classifier import Classifier
from sentiment_core.model.objective import Objective
from sentiment_core.runtime import hardware
from sentiment_core.text.token_lists import DistinctLists, TokenLists, mean_over_windows


class NotFinite(UserError):
    """A model gives NaN or infinite probabilities."""


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
        long_run: bool = False,
        objective: Objective = Objective(),  # noqa: B008 (frozen)
        on_cpu: bool = False,
    ) -> None:
        """Select the backend and move the model to its device.

        Args:
            model: The classifier.
            classes: Number of labels.
            max_length: Tokens of a window. Of longer lists the logits of their windows are averaged.
            threads: CPU threads to compute with; None leaves the choice to the library.
            backend: Name in `selection.BACKENDS`; None takes the fastest that runs the model right here, and
                `passed_over` says why others were not taken.
            long_run: Whether a backend that takes a minute to start is worth it.
            objective: How logits become probabilities.
            on_cpu: Whether to leave a GPU alone.

        Raises:
            BackendUnavailable: The backend asked for does not run the model right.
        """
        only_on_cpu = on_cpu or (backend is not None and selection.find_backend(backend).device_types == ("cpu",))
        self.device = torch.device("cpu") if only_on_cpu else hardware.device()
        self.threads = threads if self.device.type == "cpu" else None
        self.classes = classes
        self.objective = objective
        self.max_length = max_length
        self._limit_threads()
        entries = selection.candidates(backend, self.device.type, long_run)
        selected = selection.select_backend(model, self.device, self.threads, entries, objective)
        self.backend, self.passed_over = selected.backend, selected.passed_over
        # in float64, whose rounding, which depends on the batch, float32 does not show
        self.head = copy.deepcopy(selected.head).double()
        self._initial_budget = self.backend.budget

    @classmethod
    def load(
        cls,
        folder: str,
        threads: int | None = None,
        backend: str | None = None,
        long_run: bool = False,
        on_cpu: bool = False,
    ) -> "Engine":
        """Load the bundle in a local folder."""
        model, info = bundle.load(folder)
        return cls(model, len(info.labels), info.max_length, threads, backend, long_run, info.objective, on_cpu)

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
            NotFinite: The model gives no numbers for some rows.
        """
        self._limit_threads()
        while True:
            try:
                probabilities, padding = self._compute(tokens.lists)
                return probabilities[tokens.inverse], padding
            except RuntimeError as error:
                if not hardware.is_out_of_memory(error) or self.backend.budget <= LEAST_TOKENS:
                    raise
            # outside the except block, whose traceback would keep the memory in use
            self.backend.budget //= 2
            torch.cuda.empty_cache()

    @property
    def is_usable(self) -> bool:
        """True unless an error left the device refusing this process everything."""
        return hardware.still_computes(self.device)

    @property
    def remarks(self) -> list[str]:
        """List what users should know of the computation: backends passed over, batches made smaller."""
        is_halved = self.backend.budget < self._initial_budget
        return [*self.passed_over, *[f"out of memory, so batches of {self.backend.budget:,} tokens"] * is_halved]

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

    def _limit_threads(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)  # holds for the calling thread only
