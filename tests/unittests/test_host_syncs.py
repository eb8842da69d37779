"""While a CUDA graph is captured, nothing transfers a value to the CPU.

Fake CUDA tensors, which hold no values, show it without a GPU.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
)

from speechbrain_dslstm import DSLSTM, DualLevelClassifier, lengths


@pytest.fixture
def faked(monkeypatch):
    """Replace a module's parameters and buffers by fake CUDA tensors."""
    monkeypatch.setenv("DSLSTM_BACKEND", "fused")

    def replace(module):
        for part in module.modules():
            for values in (part._parameters, part._buffers):
                for name, value in values.items():
                    if value is None:
                        continue
                    fake = torch.empty_like(value, device="cuda:0")
                    if values is part._parameters:
                        fake = torch.nn.Parameter(fake)
                    values[name] = fake
        return module

    return replace


@pytest.mark.parametrize("training", [False, True])
def test_classifier(faked, monkeypatch, training):
    """From waveforms to posteriors."""
    monkeypatch.setattr(lengths, "_is_capturing", lambda x: True)
    net = DualLevelClassifier(4, p=1.0).train(training)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        faked(net)
        wavs = torch.empty(3, 40000, device="cuda:0")
        out = net(wavs, torch.empty(3, device="cuda:0"))
    assert out.shape == (3, 4) and out.device.type == "cuda"


def test_lengths_are_checked_outside_a_capture(faked, monkeypatch):
    """Otherwise the test above could not fail."""
    monkeypatch.setattr(lengths, "_is_capturing", lambda x: False)
    net = DSLSTM(4, 5, 6)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        faked(net)
        x, y = (torch.empty(2, 7, n, device="cuda:0") for n in (4, 5))
        assert net(x, y)[0].shape == (2, 7, 6)
        with pytest.raises(DataDependentOutputException):
            net(x, y, torch.empty(2, device="cuda:0"))
