"""Probabilities that mean what they say: a temperature, fitted afterwards.

A network trained to the end is over-confident. Dividing its log-posteriors by
one number, the temperature, before they are normalised again leaves the order
of the classes as it is and brings confidence and accuracy together.

Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural
Networks", ICML 2017, arXiv:1706.04599.
"""

import math

import torch
from scipy.optimize import minimize_scalar

from speechbrain_dslstm.metrics import expected_calibration_error

__all__ = ["TemperatureScaling", "fit_temperature", "calibration_report"]

COLDEST, HOTTEST = 0.05, 20.0


class TemperatureScaling(torch.nn.Module):
    """Divide log-posteriors by a temperature and normalise them again.

    Arguments
    ---------
    temperature : float
        Above 1: less confident; 1: unchanged.

    Raises
    ------
    ValueError
        A temperature that is not a positive number.

    Example
    -------
    >>> log_posteriors = torch.tensor([[0.9, 0.1]]).log()
    >>> TemperatureScaling(2.0)(log_posteriors).exp()
    tensor([[0.7500, 0.2500]])
    """

    def __init__(self, temperature=1.0):
        super().__init__()
        if not (0 < temperature < math.inf):
            raise ValueError(
                f"temperature must be a positive number, got {temperature}"
            )
        self.temperature = float(temperature)

    def forward(self, log_posteriors):
        """Scale a batch.

        Arguments
        ---------
        log_posteriors : torch.Tensor, [batch, n_classes]
            Log-posteriors or logits.

        Returns
        -------
        torch.Tensor, [batch, n_classes]
            Log-posteriors.
        """
        # Left alone, so that an uncalibrated model stays bit by bit itself
        if self.temperature == 1.0:
            return log_posteriors
        return (log_posteriors / self.temperature).log_softmax(dim=-1)

    def extra_repr(self):
        """The temperature, for print."""
        return f"{self.temperature:g}"


def fit_temperature(log_posteriors, targets):
    """Find the temperature of the smallest negative log-likelihood.

    Arguments
    ---------
    log_posteriors : torch.Tensor, [n, n_classes]
        Of validation data: never of training or test data.
    targets : torch.Tensor, int64, [n]
        True classes.

    Returns
    -------
    float
        In [0.05, 20].

    Raises
    ------
    ValueError
        No items, or values that are not finite.

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

    def loss(log_temperature):
        """Negative log-likelihood."""
        scaled = log_posteriors / math.exp(log_temperature)
        return float(torch.nn.functional.cross_entropy(scaled, targets))

    bounds = math.log(COLDEST), math.log(HOTTEST)
    found = minimize_scalar(
        loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(found.x)


def calibration_report(log_posteriors, targets, temperature):
    """Compare before and after.

    Arguments
    ---------
    log_posteriors : torch.Tensor, [n, n_classes]
        Log-posteriors of data the temperature was not fitted on, best.
    targets : torch.Tensor, int64, [n]
        True classes.
    temperature : float
        What ``fit_temperature`` found.

    Returns
    -------
    dict of str to float
        ``temperature``, and ``ece_before``, ``ece_after`` (expected
        calibration error, in [0, 1]), ``nll_before``, ``nll_after``.

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
