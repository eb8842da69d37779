"""Temperature scaling of a classifier's log-posteriors."""

import math

import torch
from torch import Tensor

__all__ = ["TemperatureScaling"]


class TemperatureScaling(torch.nn.Module):
    """Divide log-posteriors by a temperature and normalise them again.

    Arguments
    ---------
    temperature
        Above 1, posteriors become less confident; 1 leaves them unchanged.

    Raises
    ------
    ValueError
        The temperature is not a positive number.

    Example
    -------
    >>> log_posteriors = torch.tensor([[0.9, 0.1]]).log()
    >>> TemperatureScaling(2.0)(log_posteriors).exp()
    tensor([[0.7500, 0.2500]])
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not (0 < temperature < math.inf):
            raise ValueError(
                f"temperature must be a positive number, got {temperature}"
            )
        self.temperature = float(temperature)

    def forward(self, log_posteriors: Tensor) -> Tensor:
        """Log-posteriors or logits [batch, n_classes] -> log-posteriors."""
        # Unchanged to the last bit for a model without calibration
        if self.temperature == 1.0:
            return log_posteriors
        return (log_posteriors / self.temperature).log_softmax(dim=-1)

    def extra_repr(self) -> str:
        """Return the temperature, for print."""
        return f"{self.temperature:g}"
