"""A temperature brings confidence and accuracy together."""

import pytest
import torch

from speechbrain_dslstm.evaluation import (
    calibration_report,
    cross_fit_temperature,
    expected_calibration_error,
    fit_temperature,
)
from speechbrain_dslstm.models import TemperatureScaling


def sharpened(temperature, n=4000, classes=5):
    """Calibrated log-posteriors, and what an over-confident model says."""
    honest = (2 * torch.randn(n, classes)).log_softmax(1)
    targets = torch.distributions.Categorical(logits=honest).sample()
    return (honest * temperature).log_softmax(1), targets


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0, 3.5])
def test_the_temperature_is_found(temperature):
    log_posteriors, targets = sharpened(temperature)
    found = fit_temperature(log_posteriors, targets)
    assert found == pytest.approx(temperature, rel=0.08)


def test_it_is_the_minimum():
    log_posteriors, targets = sharpened(3.0)
    best = fit_temperature(log_posteriors, targets)
    losses = [
        calibration_report(log_posteriors, targets, best * factor)["nll_after"]
        for factor in (0.95, 1.0, 1.05)
    ]
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_report_on_held_out_data():
    found = calibration_report(
        *sharpened(3.0), fit_temperature(*sharpened(3.0))
    )
    assert found["ece_after"] < 0.03 < 0.1 < found["ece_before"]
    assert found["nll_after"] < found["nll_before"]


def test_a_temperature_that_helps_all_groups_is_taken():
    groups = [sharpened(2.5, 500) for _ in range(4)]
    found = cross_fit_temperature(groups)
    assert found["temperature"] == pytest.approx(2.5, rel=0.1)
    assert found["ece_nested"] < 0.05 < 0.1 < found["ece_raw"]


def test_a_temperature_that_hurts_the_others_is_not_taken():
    """What fits one speaker makes the other one worse: no temperature."""
    groups = [sharpened(2.0, 500), sharpened(0.6, 500)]
    found = cross_fit_temperature(groups)
    assert found["temperature"] == 1.0
    assert found["ece_nested"] > found["ece_raw"]


def test_one_group_shows_nothing():
    found = cross_fit_temperature([sharpened(3.0, 500)])
    assert found["temperature"] == 1.0
    assert found["ece_nested"] == found["ece_raw"] > 0.1


def test_the_order_of_the_classes_stays():
    log_posteriors, _ = sharpened(3.0)
    scaled = TemperatureScaling(3.0)(log_posteriors)
    torch.testing.assert_close(scaled.exp().sum(1), torch.ones(len(scaled)))
    assert torch.equal(scaled.argsort(1), log_posteriors.argsort(1))


def test_one_changes_nothing():
    log_posteriors, _ = sharpened(1.0)
    found = TemperatureScaling(1.0)(log_posteriors)
    torch.testing.assert_close(found, log_posteriors, atol=0, rtol=0)


@pytest.mark.parametrize("right", [True, False])
def test_bounds(right):
    """All right or all wrong: as far as the bounds, not to infinity."""
    log_posteriors = torch.tensor([[0.9, 0.1]]).log().repeat(5, 1)
    targets = torch.full((5,), 0 if right else 1)
    found = fit_temperature(log_posteriors, targets)
    assert 0.5 <= found < 0.51 if right else 3.99 < found <= 4.0


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    """Bins are (0, 1/4], (1/4, 1/2], ...; 1/2 and 3/4 are in those below."""
    probs = [[0.5, 0.5], [0.6, 0.4], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    log_probs = torch.tensor(probs, dtype=torch.float64).log()
    targets = torch.tensor([1, 0, 0, 1, 0])
    assert log_probs.exp()[0, 0] == 0.5 and log_probs.exp()[2, 0] == 0.75
    bins = [abs(0.5 - 0), abs(0.6 + 0.75 + 0.75 - 3), abs(1.0 - 0)]
    found = expected_calibration_error(log_probs, targets, 4)
    assert found == pytest.approx(sum(bins) / 5, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_no_temperature(temperature):
    with pytest.raises(ValueError, match="must be a positive number"):
        TemperatureScaling(temperature)


@pytest.mark.parametrize(
    "log_posteriors", [torch.zeros(0, 2), torch.full((1, 2), float("nan"))]
)
def test_nothing_to_fit(log_posteriors):
    targets = torch.zeros(len(log_posteriors), dtype=torch.int64)
    with pytest.raises(ValueError, match="finite log-posteriors"):
        fit_temperature(log_posteriors, targets)
