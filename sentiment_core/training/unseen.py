"""Tell which evaluation rows a new model has not seen: only these can promise an accuracy."""

from dataclasses import replace

import numpy as np

from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.model import bundle
from sentiment_core.model.encoder import Encoder
from sentiment_core.model.known_texts import hash_text, read_training_texts
from sentiment_core.runtime import storage


def find_unseen(
    start_from: Encoder, train_part: LabelledTexts | None, eval_part: LabelledTexts
) -> tuple[LabelledTexts, np.ndarray]:
    """Find the evaluation rows with a text that nothing was trained on.

    A bundle that is trained further has seen the rows of its first training. Where these are not at hand, no row counts
    as unseen.

    Args:
        start_from: The encoder, perhaps a bundle.
        train_part: The rows that will be trained on; None with cross-validation, which answers no row by a model that
            was trained on it.
        eval_part: The evaluation rows.

    Returns:
        The evaluation rows, with what is to be said of them, and (n,) bool.
    """
    evaluated = [hash_text(text) for text in eval_part.texts]
    of_first, unread = _read_first_training(start_from.folder)
    left = {*evaluated} - of_first
    if train_part:
        left.difference_update(map(hash_text, train_part.texts))
    unseen = np.array([digest in left for digest in evaluated], bool)
    remarks = list(eval_part.origin.remarks)
    if number := int((~unseen).sum()):
        source = f", or --model {start_from.name} before," if of_first else ""
        remarks.append(
            f"{number:,} of {len(unseen):,} evaluation rows have texts that this model{source} was trained or evaluated "
            "on: its figures may look better than they are, and these rows promise no accuracy"
        )
    if unread:
        remarks.append(
            f"--model {start_from.name} is a bundle, and {unread[0]}: evaluation rows may be among it, so they promise "
            "no accuracy"
        )
    noted = replace(eval_part, origin=replace(eval_part.origin, remarks=remarks))
    return noted, unseen & (not unread)


def _read_first_training(folder: str) -> tuple[set[bytes], list[str]]:
    """Hash the texts that a bundle was made with; none of another encoder, or where no training is noted.

    Returns:
        The hashes, and a sentence about each place that could not be read.
    """
    if not storage.exists(storage.join(folder, bundle.CARD)):
        return set(), []
    info = bundle.read_info(folder)
    if not (info.training.data.place or info.distillation.texts.place):
        return set(), []
    return read_training_texts(info, with_taught=True)
