"""Telling whose manner a text is in: logistic regression on character n-grams. scikit-learn is known here alone
(`pip install 'bianlian[eval]'`)."""

import math
from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

_Z_95 = 1.959964


class StyleClassifier:
    """Learned from texts in a manner and texts that are not. Runs of one to three characters, in which the ends of a
    text count as characters too: a telegram is known by the full stop it lacks."""

    def __init__(self, in_manner: Sequence[str], others: Sequence[str]):
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False, sublinear_tf=True)
        self._pipeline = make_pipeline(vectorizer, LogisticRegression(C=10, class_weight="balanced", max_iter=1000))
        labels = [True] * len(in_manner) + [False] * len(others)
        self._pipeline.fit([_framed(text) for text in (*in_manner, *others)], labels)

    def told_right(self, in_manner: Sequence[str], others: Sequence[str]) -> int:
        """How many of the texts it puts on their right side."""
        found = self._pipeline.predict([_framed(text) for text in (*in_manner, *others)])
        return int(found[: len(in_manner)].sum() + (~found[len(in_manner) :]).sum())


def wilson(right: int, of: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927), which holds near 0 and 1 too."""
    share, z2 = right / of, _Z_95**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z_95 / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def _framed(text: str) -> str:
    return f"\x02{text}\x03"
