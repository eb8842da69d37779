"""Confidence intervals by a bootstrap over speakers, and paired comparisons.

Utterances of one speaker resemble each other, so a bootstrap over utterances
gives intervals that are far too narrow. Here whole speakers are drawn with
replacement, with all of their utterances. Training is not repeated: intervals
hold for the same models and other speakers, not for other trainings.

Intervals are percentile intervals, widened for few speakers (Hesterberg,
*What Teachers Should Know About the Bootstrap*, 2015, section 5.3): plain ones
are too narrow by sqrt((P - 1) / P) and by the normal quantile in place of
Student's. In 400 simulated corpora of 10 speakers, plain 95 % intervals held
the truth in 88 %, these in 94 %. p-values are found by inverting the intervals.

Symbols: S seeds, P speakers, K classes, R resamples, M metrics.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest, bootstrap, norm, t as student_t

from speechbrain_dslstm.evaluation.metrics import METRICS, score_counts

__all__ = [
    "RESAMPLES",
    "bootstrap_scores",
    "compare",
    "mcnemar",
    "speaker_counts",
]

RESAMPLES = 10_000
# Predictions of one training: utterance id -> a row with "speaker", the true
# "emotion" and the label "predicted"
Run = Mapping[str, Mapping[str, str]]


def speaker_counts(
    runs: Sequence[Run], labels: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """Sort the speakers [P] and count confusions by seed and speaker, [S, P, K, K].

    Rows of a matrix are the truth. A ValueError says that there are no
    utterances, that the seeds differ in their utterances, speakers or true
    emotions, or that a label is unknown.
    """
    if not runs or not runs[0]:
        raise ValueError("there are no predictions")
    for run in runs[1:]:
        _check_same(runs[0], run, "two seeds")
    speakers = sorted({row["speaker"] for row in runs[0].values()})
    place = {speaker: index for index, speaker in enumerate(speakers)}
    index = {label: k for k, label in enumerate(labels)}
    shape = len(runs), len(speakers), len(labels), len(labels)
    counts = np.zeros(shape, dtype=np.int64)
    for seed, run in enumerate(runs):
        for key, row in run.items():
            for name in ("emotion", "predicted"):
                if row[name] not in index:
                    raise ValueError(
                        f"{key}: {name} is {row[name]!r}, expected one of "
                        f"{list(labels)}"
                    )
            truth, predicted = index[row["emotion"]], index[row["predicted"]]
            counts[seed, place[row["speaker"]], truth, predicted] += 1
    return speakers, counts


def bootstrap_scores(
    counts: np.ndarray,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict]:
    """Compute pooled scores with intervals over speakers.

    Each resample draws the same speakers for all seeds, and averages the
    scores over the seeds. The result has for each of ``METRICS`` the pooled
    ``value`` and the ends ``low`` and ``high``, None for a single speaker.

    Arguments
    ---------
    counts : [S, P, K, K]
        Confusion matrices, such as those of ``bootstrap.speaker_counts``.
    resamples
        Number of resamples R.
    confidence
        Coverage of the interval, in (0, 1).
    seed
        Seed of the draws.

    Example
    -------
    >>> counts = np.array([[[[9, 1], [2, 8]], [[5, 5], [4, 6]]]])
    >>> found = bootstrap_scores(counts)["ua"]
    >>> [round(found[name], 2) for name in ("value", "low", "high")]
    [0.7, 0.55, 0.85]
    """
    counts = _check_counts(counts)
    return _resample(counts, None, resamples, confidence, seed)[0]


def compare(
    first: Sequence[Run],
    second: Sequence[Run],
    labels: Sequence[str],
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict:
    """Compare two systems on the same utterances.

    The result has for each of ``METRICS`` the difference ``value`` (second -
    first), its interval ``low`` and ``high``, and the two-sided ``p`` that goes
    with it, at least the smallest value that R draws can resolve; all but the
    value are None for a single speaker. It also has the numbers of "speakers"
    and "utterances".

    Arguments
    ---------
    first, second
        Predictions of each seed: utterance id -> a row with ``speaker``, the
        true ``emotion`` and the label ``predicted``. Seeds may differ.
    labels : [K]
        Names of the classes.
    resamples, confidence, seed
        See ``bootstrap_scores``.

    Example
    -------
    >>> rows = {
    ...     f"{s}{i}": {"speaker": s, "emotion": "ab"[i % 2], "predicted": "a"}
    ...     for s in "xyz"
    ...     for i in range(4)
    ... }
    >>> compare([rows], [rows], ["a", "b"])["ua"]
    {'value': 0.0, 'low': 0.0, 'high': 0.0, 'p': 1.0}
    """
    speakers, one = speaker_counts(first, labels)
    _, two = speaker_counts(second, labels)
    _check_same(first[0], second[0], "the two systems")
    found, drawn = _resample(one, two, resamples, confidence, seed)
    for k, name in enumerate(METRICS):
        p = None if drawn is None else _p_value(drawn[k], len(speakers))
        found[name]["p"] = p
    return {"speakers": len(speakers), "utterances": len(first[0]), **found}


def mcnemar(first: Run, second: Run) -> dict[str, float]:
    """Test by utterances whether two systems are equally often right.

    McNemar's exact test: of the utterances that one system alone gets right,
    ``first_only`` and ``second_only``, is each system's share one half? The
    two-sided ``p`` assumes independent utterances, which those of one speaker
    are not; ``compare`` does not assume it.

    Arguments
    ---------
    first, second
        Predictions of one training of each system, as one seed of ``compare``.

    Example
    -------
    >>> def answers(text):
    ...     row = {"speaker": "s", "emotion": "a"}
    ...     return {i: {**row, "predicted": c} for i, c in enumerate(text)}
    >>> mcnemar(answers("aaaaaabb"), answers("abbbbbab"))
    {'first_only': 5, 'second_only': 1, 'p': 0.21875}
    """
    _check_same(first, second, "the two systems")
    right = [
        tuple(row["emotion"] == row["predicted"] for row in both)
        for both in ((first[key], second[key]) for key in first)
    ]
    one, two = right.count((True, False)), right.count((False, True))
    p = float(binomtest(one, one + two).pvalue) if one + two else 1.0
    return {"first_only": one, "second_only": two, "p": p}


def _resample(
    first: np.ndarray,
    second: np.ndarray | None,
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[dict[str, dict], np.ndarray | None]:
    """Compute scores or differences with intervals, and resamples [M, R]."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if resamples < 100:
        raise ValueError(f"resamples must be at least 100, got {resamples}")
    speakers = first.shape[1]

    def statistic(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        """Score speakers drawn along the last axis, [M, ...]."""
        drawn = np.moveaxis(np.asarray(drawn), axis, -1)
        shape = drawn.shape[:-1]
        drawn = drawn.reshape(-1, drawn.shape[-1]).astype(np.int64)
        # Count how often each speaker was drawn in each row
        drawn += speakers * np.arange(len(drawn))[:, None]
        times = np.bincount(drawn.ravel(), minlength=speakers * len(drawn))
        times = times.reshape(-1, speakers).astype(float)
        scores = _weighted(times, first)
        if second is not None:
            scores = _weighted(times, second) - scores
        return scores.T.reshape(len(METRICS), *shape)

    everyone = np.arange(speakers)
    ends, drawn = [(None, None)] * len(METRICS), None
    if speakers > 1:
        found = bootstrap(
            (everyone,),
            statistic,
            n_resamples=resamples,
            confidence_level=_widened(confidence, speakers),
            method="percentile",
            vectorized=True,
            axis=-1,
            batch=max(1, 10**7 // first[..., 0, 0].size // first[0, 0].size),
            rng=np.random.default_rng(seed),
        )
        ends = np.transpose(found.confidence_interval).tolist()
        drawn = found.bootstrap_distribution
    rows = zip(METRICS, statistic(everyone), ends, strict=True)
    return {
        name: {"value": float(value), "low": low, "high": high}
        for name, value, (low, high) in rows
    }, drawn


def _weighted(times: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Score speakers counted ``times`` [R, P], averaged over seeds: [R, M]."""
    seeds, speakers, classes, _ = counts.shape
    flat = counts.transpose(1, 0, 2, 3).reshape(speakers, -1)
    summed = (times @ flat).reshape(-1, seeds, classes, classes)
    return score_counts(summed).mean(axis=1)


def _widened(confidence: float, speakers: int) -> float:
    """Nominal level at which a percentile interval covers ``confidence``."""
    t = student_t.ppf((1 + confidence) / 2, speakers - 1)
    level = 1 - 2 * norm.sf(t * (speakers / (speakers - 1)) ** 0.5)
    return min(float(level), 1 - 1e-12)


def _p_value(drawn: np.ndarray, speakers: int) -> float:
    """Two-sided p-value of a difference: the inverse of ``_widened``."""
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1
    z = norm.isf(min(0.5, tail / (len(drawn) + 1)))
    t = z * ((speakers - 1) / speakers) ** 0.5
    return float(2 * student_t.sf(t, speakers - 1))


def _check_counts(counts: np.ndarray) -> np.ndarray:
    """Convert the counts to an array [S, P, K, K]."""
    counts = np.asarray(counts)
    if counts.ndim != 4 or counts.shape[2] != counts.shape[3]:
        raise ValueError(
            "expected counts [seeds, speakers, classes, classes], got "
            f"{list(counts.shape)}"
        )
    if (counts < 0).any() or not counts.sum(axis=(1, 2, 3)).all():
        raise ValueError("expected counts, at least one for each seed")
    return counts


def _check_same(first: Run, second: Run, who: str) -> None:
    """Raise an error where utterances, speakers or true emotions differ."""
    only = first.keys() ^ second.keys()
    if only:
        raise ValueError(
            f"{who} have different utterances: {len(first)} and "
            f"{len(second)}, of which {len(only)} in one only, such as "
            f"{min(only)}; compare finished folds of the same corpus"
        )
    for key, row in first.items():
        for name in ("speaker", "emotion"):
            if row[name] != second[key][name]:
                raise ValueError(
                    f"{who} disagree on the {name} of {key}: "
                    f"{row[name]!r} and {second[key][name]!r}"
                )
