"""Choose texts whose labels would teach a model most: uncertain ones that are not alike."""

from collections.abc import Sequence

import numpy as np

from sentiment_core.model import known_texts

CANDIDATES = 5  # for each text that is wanted, among which diverse ones are chosen
FEATURES = 1 << 14  # hashed n-grams; 16 times as many take 20 times as long to reduce
DIMENSIONS = 64  # that the n-grams are reduced to
TEXT_CHARACTERS = 2_000  # of a text that are compared
NGRAMS = (2, 4)  # characters, within words
ITERATIONS = 50


def find_candidates(texts: Sequence[str], labelled_before: set[bytes], number: int) -> tuple[np.ndarray, int]:
    """Find the least confident texts that have no labels yet, each text once.

    Args:
        texts: Of scored rows, the least confident first.
        labelled_before: Hashes of texts with labels, as `known_texts.hash_cell` makes them.
        number: Of texts that `choose_diverse` is to choose.

    Returns:
        Indices of at most `CANDIDATES` times as many texts, int64, and how many of all `texts` have labels.
    """
    seen: set[bytes] = set()
    fresh, labelled_rows = [], 0
    for i, text in enumerate(texts):
        text_hash = known_texts.hash_cell(text)
        if text_hash in labelled_before:
            labelled_rows += 1
        elif text_hash not in seen:
            seen.add(text_hash)
            fresh.append(i)
    return np.array(fresh[: CANDIDATES * number], np.int64), labelled_rows


def choose_diverse(texts: Sequence[str], confidence: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Choose texts that are uncertain and differ from each other (Zhdanov 2019, Diverse mini-batch Active Learning).

    Weighted k-means divides the candidates into as many clusters as are wanted, and the text nearest to each center is
    chosen. Texts are vectors of hashed character n-grams, weighted by TF-IDF, so that no model is needed.

    Args:
        texts: Distinct candidates, a few times more than are wanted.
        confidence: (n,) of the model in its decisions; the weight of a text is what lacks to 1.
        number: Of texts to choose; at most n.
        seed: For the clusters.

    Returns:
        (number,) int64, indices of the chosen texts, the least confident first.
    """
    if len(texts) <= number:
        return np.argsort(confidence, kind="stable")
    from sklearn.cluster import KMeans

    vectors = _embed(texts, seed)
    weights = np.maximum(1 - confidence.astype(np.float64), 1e-6)
    clusters = KMeans(number, n_init=1, max_iter=ITERATIONS, random_state=seed).fit(vectors, sample_weight=weights)
    distance = np.linalg.norm(vectors - clusters.cluster_centers_[clusters.labels_], axis=1)
    by_distance = np.lexsort((confidence, distance))
    _, firsts = np.unique(clusters.labels_[by_distance], return_index=True)
    chosen = by_distance[firsts]
    rest = np.setdiff1d(np.argsort(confidence, kind="stable"), chosen, assume_unique=True)  # of empty clusters
    chosen = np.concatenate([chosen, rest[: number - len(chosen)]])
    return chosen[np.argsort(confidence[chosen], kind="stable")]


def _embed(texts: Sequence[str], seed: int) -> np.ndarray:
    """Return unit vectors of texts, (n, `DIMENSIONS`), or of few or simple texts their n-grams themselves."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.preprocessing import normalize

    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=NGRAMS, n_features=FEATURES, alternate_sign=False, norm=None
    )
    counts = hashing.transform(text[:TEXT_CHARACTERS] for text in texts)
    counts = counts[:, np.unique(counts.indices)]  # columns of zeros cost as much as others
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    if min(weighted.shape) <= DIMENSIONS:
        return normalize(weighted.toarray())
    return normalize(TruncatedSVD(DIMENSIONS, random_state=seed).fit_transform(weighted))
