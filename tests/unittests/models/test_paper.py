"""paper.yaml against the paper's rules, written again in float64 NumPy.

The NumPy computation uses nothing of the package but the weights and the
features before they are stretched.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from speechbrain_dslstm.hparams import load_hparams

HPARAMS = Path(__file__).resolve().parents[3] / "hparams"
EPS = 1e-5
WIDTHS = {"mel_x": (230, "cnn_x"), "mel_y": (120, "cnn_y")}


@pytest.fixture(scope="module")
def hparams():
    """The official configuration, on the paper's four classes."""
    return load_hparams(HPARAMS / "paper.yaml", "corpus: iemocap")


@pytest.fixture(scope="module")
def model(hparams):
    """In evaluation, with weights and running statistics that matter."""
    net = hparams["model"].double().eval()
    generator = torch.Generator().manual_seed(5)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif "norm" in name and value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.add_(0.3 * noise.to(value))
        elif name.endswith("steps_seen"):
            # Fewer than the 27 steps that follow: the last ones share one
            value.fill_(20)
    return net


@pytest.fixture(scope="module")
def wavs():
    """Three clips of 1.2, 3 and 4.5 seconds, one above 230 frames."""
    generator = torch.Generator().manual_seed(6)
    lengths = torch.tensor([19200, 48000, 72000])
    noise = 0.1 * torch.randn(3, 72000, generator=generator).double()
    return noise.cumsum(1) * 0.05, lengths


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def batch_norm(x, state, name):
    scale = state[f"{name}.weight"] / np.sqrt(
        state[f"{name}.running_var"] + EPS
    )
    return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]


def block(x, state, name):
    """[time, frequency, channel]: conv, batch norm, ReLU, max pool of 2."""
    weight = state[f"{name}.conv.weight"]
    high, wide = weight.shape[2:]
    rows, columns = (high - 1) // 2, (wide - 1) // 2
    x = np.pad(x, ((rows, rows), (columns, columns), (0, 0)))
    windows = sliding_window_view(x, (high, wide), axis=(0, 1))
    x = np.einsum("tfcij,ocij->tfo", windows, weight, optimize=True)
    x = np.maximum(batch_norm(x, state, f"{name}.norm"), 0)
    time, bins = x.shape[0] // 2, x.shape[1] // 2
    x = x[: 2 * time, : 2 * bins]
    return x.reshape(time, 2, bins, 2, -1).max(axis=(1, 3))


def cnn(x, state, name):
    x = x[:, :, None]
    for index in range(2):
        x = block(x, state, f"branches.spectrogram.{name}.blocks.{index}")
    return x.reshape(len(x), -1)


def ds_lstm(x, y, state):
    """Two layers with gate norm and output norm; H rows a block."""
    for layer in range(2):
        at = "branches.spectrogram.ds_lstm."
        w_x, w_y, w_h, bias = (
            state[f"{at}{kind}_l{layer}"]
            for kind in ("weight_x", "weight_y", "weight_h", "bias")
        )
        norm = f"{at}gate_norms.l{layer}"
        hidden = w_h.shape[1]
        h, c, out = np.zeros(hidden), np.zeros(hidden), []
        for t in range(len(x)):
            step = min(t, int(state[f"{norm}.steps_seen"]) - 1)
            from_x, from_y, from_h = w_x @ x[t], w_y @ y[t], w_h @ h
            cut = 4 * hidden
            gates = from_x[:cut] + from_y[:cut] + from_h[:cut] + bias[:cut]
            variance = state[f"{norm}.running_var"][step]
            scale = state[f"{norm}.weight"] / np.sqrt(variance + EPS)
            mean = state[f"{norm}.running_mean"][step]
            gates = (sigmoid(gates) - mean) * scale + state[f"{norm}.bias"]
            f, i_time, i_frequency, o = np.split(gates, 4)
            end = cut + hidden
            c_time = np.tanh(from_x[cut:] + from_h[cut:end] + bias[cut:end])
            c_frequency = np.tanh(from_y[cut:] + from_h[end:] + bias[end:])
            c = f * c + i_time * c_time + i_frequency * c_frequency
            h = o * np.tanh(c)
            out.append(h)
        x = batch_norm(np.array(out), state, f"{at}output_norms.{layer}")
    return x


def lstm(x, state):
    for layer in range(2):
        at = "branches.mfcc.lstm."
        w_in, w_h, b_in, b_h = (
            state[f"{at}{kind}_l{layer}"]
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = np.zeros(w_h.shape[1])
        out = []
        for frame in x:
            i, f, g, o = np.split(w_in @ frame + w_h @ h + b_in + b_h, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out.append(h)
        x = np.array(out)
    return x


def head(x, state, name):
    mean = x.mean(axis=0)
    at = f"branches.{name}.head"
    return state[f"{at}.weight"] @ mean + state[f"{at}.bias"]


def stretch(x, frames):
    """Nearest neighbour."""
    return x[np.arange(frames) * len(x) // frames]


def test_whole_forward_pass(model, wavs):
    found = model(*wavs).detach().numpy()
    raw = model.extract(*wavs)
    state = {name: v.numpy() for name, v in model.state_dict().items()}
    for row in range(3):
        feats = {}
        for name, (values, counts) in raw.items():
            feats[name] = values[row, : counts[row]].numpy()
        x, y = (
            cnn(stretch(feats[name], frames), state, cnn_name)
            for name, (frames, cnn_name) in WIDTHS.items()
        )
        assert x.shape == (56, 496) and y.shape == (29, 1008)
        steps = len(x) // 2 - 1
        x = np.array([x[2 * i : 2 * i + 3].mean(axis=0) for i in range(steps)])
        spectrogram = head(ds_lstm(x, y[:steps], state), state, "spectrogram")
        mfcc = head(lstm(feats["mfcc"], state), state, "mfcc")
        logits = 0.5 * spectrogram + 0.5 * mfcc
        expected = logits - np.log(np.exp(logits).sum())
        np.testing.assert_allclose(found[row], expected, atol=1e-5, rtol=0)


def test_features_have_the_level_of_16_bit_integers(model, hparams, wavs):
    """MFCCs scaled by 32767; mel power of the integers, and no statistics."""
    from librosa.feature import melspectrogram

    signal = wavs[0][1, :48000].numpy()
    for name, n_fft in (("mel_x", 512), ("mel_y", 1024)):
        power = melspectrogram(
            y=np.round(signal * 32768),
            sr=16000,
            n_fft=n_fft,
            hop_length=n_fft // 2,
            n_mels=n_fft // 4,
        )
        expected = 10 * np.log10(power.T)
        wav = torch.from_numpy(np.round(signal * 32768) / 32768)[None]
        feats, counts = model.features(wav)[name]
        frames = WIDTHS[name][0]
        assert counts.tolist() == [frames]
        np.testing.assert_allclose(
            feats[0].numpy(), stretch(expected, frames), atol=1e-3, rtol=0
        )


def test_training_is_that_of_the_paper(hparams):
    """Adam 1e-3 halved at 10, 20, 30; batch 128; 50 epochs; nothing else."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = hparams["opt_class"]([weight])
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["weight_decay"] == 0
    schedule = hparams["lr_schedule"](optimizer)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == rates[9] == 1e-3
    assert rates[10] == rates[19] == 5e-4
    assert rates[20] == rates[29] == 2.5e-4
    assert rates[30] == rates[39] == 1.25e-4
    assert hparams["batch_size"] == 128 and hparams["number_of_epochs"] == 50
    assert hparams["max_grad_norm"] == float("inf")
    for name in ("speeds", "fea_augment", "wav_augment", "average_decay"):
        assert hparams[name] is None
    assert hparams["label_smoothing"] == 0
    dropouts = [
        module.p
        for module in hparams["model"].modules()
        if isinstance(module, torch.nn.Dropout)
    ]
    assert dropouts and set(dropouts) == {0.0}
    assert hparams["model"].branches["mfcc"].lstm.dropout == 0
    n = sum(p.numel() for p in hparams["model"].parameters())
    assert 3.7e6 <= n <= 6.4e6
