"""Calibration of posteriors by a temperature that is fitted after training.

A fully trained network is over-confident. Its log-posteriors are divided by one
number, the temperature, and normalised again: the order of the classes stays,
and the confidence comes closer to the accuracy.

Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural
Networks", ICML 2017, arXiv:1706.04599.
"""

import math
from collections.abc import Sequence

import torch
from scipy.optimize import minimize_scalar

from speechbrain_dslstm.evaluation.metrics import name_some, to_indices
from speechbrain_dslstm.models.calibration import TemperatureScaling

__all__ = [
    "cross_fit_temperature",
    "fit_temperature",
    "calibration_report",
    "expected_calibration_error",
]


# Few clips, all right or all wrong, would ask for any temperature
LOWEST, HIGHEST = 0.5, 4.0


def fit_temperature(
    log_posteriors: torch.Tensor, targets: torch.Tensor
) -> float:
    """Find the temperature in [0.5, 4] with the least negative log-likelihood.

    Arguments
    ---------
    log_posteriors : [n, K]
        Of validation data: never of training or test data.
    targets : [n]
        True classes, int64.

    Example
    -------
    >>> sure = torch.tensor([[0.99, 0.01]]).log().repeat(10, 1)
    >>> targets = torch.tensor([0] * 8 + [1] * 2)  # right in 8 of 10 cases
    >>> temperature = fit_temperature(sure, targets)
    >>> TemperatureScaling(temperature)(sure)[0].exp()
    tensor([0.8000, 0.2000])
    """
    log_posteriors = torch.as_tensor(log_posteriors).detach().double().cpu()
    targets = torch.as_tensor(targets).cpu()
    if not len(targets) or not bool(log_posteriors.isfinite().all()):
        raise ValueError(
            "a temperature is fitted on finite log-posteriors of at least one "
            f"item, got {len(targets)} items"
        )

    def loss(log_temperature: float) -> float:
        scaled = log_posteriors / math.exp(log_temperature)
        return float(torch.nn.functional.cross_entropy(scaled, targets))

    bounds = math.log(LOWEST), math.log(HIGHEST)
    found = minimize_scalar(
        loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(found.x)


def cross_fit_temperature(
    groups: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, float]:
    """Choose a temperature that helps groups it was not fitted on, or 1.

    Each group is scaled by the temperature that the other groups give. If that
    lowers the expected calibration error of all items together, the temperature
    of all groups is chosen; otherwise it is 1, which changes nothing. A single
    group cannot show this, so it gives 1.

    Arguments
    ---------
    groups
        Log-posteriors [n, K] and true classes [n] of each group, such as the
        held-out items of a fold, or a speaker's. No item may be training data.

    Returns
    -------
    dict
        "temperature", and the errors "ece_raw" and "ece_nested" of all items,
        before and after the scaling of each group by the others.

    Example
    -------
    >>> sure = torch.tensor([[0.99, 0.01]]).log().repeat(10, 1)
    >>> group = sure, torch.tensor([0] * 8 + [1] * 2)
    >>> found = cross_fit_temperature([group, group])
    >>> {name: round(value, 2) for name, value in found.items()}
    {'temperature': 3.31, 'ece_raw': 0.19, 'ece_nested': 0.0}
    >>> cross_fit_temperature([group])["temperature"]
    1.0
    """
    groups = [
        (torch.as_tensor(scores).double(), torch.as_tensor(targets))
        for scores, targets in groups
    ]
    everything = _joined(groups)
    raw = expected_calibration_error(*everything)
    nested = raw
    if len(groups) > 1:
        scaled = []
        for k, (scores, targets) in enumerate(groups):
            others = _joined(groups[:k] + groups[k + 1 :])
            scaling = TemperatureScaling(fit_temperature(*others))
            scaled.append((scaling(scores), targets))
        nested = expected_calibration_error(*_joined(scaled))
    helps = nested < raw
    temperature = fit_temperature(*everything) if helps else 1.0
    return {"temperature": temperature, "ece_raw": raw, "ece_nested": nested}


def _joined(groups):
    """Log-posteriors and targets of several groups as one."""
    scores, targets = zip(*groups, strict=True)
    return torch.cat(scores), torch.cat(targets)


def calibration_report(
    log_posteriors: torch.Tensor, targets: torch.Tensor, temperature: float
) -> dict[str, float]:
    """Measure the calibration before and after scaling by a temperature.

    The result has ``temperature``, the expected calibration errors
    ``ece_before`` and ``ece_after`` in [0, 1], and the mean negative
    log-likelihoods ``nll_before`` and ``nll_after``.

    Arguments
    ---------
    log_posteriors : [n, K]
        Of data on which the temperature was not fitted.
    targets : [n]
        True classes, int64.
    temperature
        Result of ``fit_temperature``.

    Example
    -------
    >>> sure = torch.tensor([[0.99, 0.01]]).log().repeat(10, 1)
    >>> targets = torch.tensor([0] * 8 + [1] * 2)
    >>> found = calibration_report(sure, targets, 3.3147)
    >>> round(found["ece_before"], 2), round(found["ece_after"], 2)
    (0.19, 0.0)
    """
    log_posteriors = torch.as_tensor(log_posteriors).detach().double().cpu()
    targets = torch.as_tensor(targets).cpu()
    scaled = TemperatureScaling(temperature)(log_posteriors)
    found = {"temperature": float(temperature)}
    for name, values in [("before", log_posteriors), ("after", scaled)]:
        found[f"ece_{name}"] = expected_calibration_error(values, targets)
        loss = torch.nn.functional.nll_loss(values, targets)
        found[f"nll_{name}"] = float(loss)
    return found


def expected_calibration_error(
    log_probs: torch.Tensor, targets: torch.Tensor, n_bins: int = 15
) -> float:
    """Measure the mean gap between confidence and accuracy, in [0, 1].

    Items are put into bins by their confidence; the gaps between a bin's mean
    confidence and its accuracy are averaged, weighted by its number of items.

    Arguments
    ---------
    log_probs : [n, K]
        Log-posteriors, not logits.
    targets : [n]
        Indices of the true classes, int64.
    n_bins
        Number of equally wide bins of the confidence.

    Example
    -------
    >>> log_probs = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    >>> round(expected_calibration_error(log_probs, torch.tensor([0, 1])), 3)
    0.4
    """
    probs = torch.as_tensor(log_probs).detach().double().cpu().exp()
    targets = torch.as_tensor(targets).cpu()
    if probs.dim() != 2 or targets.shape != probs.shape[:1] or not len(probs):
        raise ValueError(
            "expected log_probs [n, K] and targets [n] with n > 0, got "
            f"{list(probs.shape)} and {list(targets.shape)}"
        )
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    # Written so that NaN fails the check, too
    wrong = ~((probs.sum(dim=1) - 1).abs() < 0.01)
    if wrong.any():
        raise ValueError(
            "the probabilities of rows "
            f"{name_some(wrong.nonzero().flatten().tolist())} do not sum to 1; "
            "log-posteriors are expected, not logits"
        )
    to_indices(targets, range(probs.shape[1]), "targets")
    confidence, predicted = probs.max(dim=1)
    correct = (predicted == targets).double()
    # Bin i is (i / n_bins, (i + 1) / n_bins]
    bins = ((confidence * n_bins).ceil() - 1).clamp(0, n_bins - 1).long()
    gaps = torch.zeros(n_bins, dtype=torch.float64)
    gaps.index_add_(0, bins, confidence - correct)
    return float(gaps.abs().sum() / len(probs))
