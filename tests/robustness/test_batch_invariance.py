"""Answers depend on no batch, length, thread count or run, and little on precision.

The model is the one that comes with the package.
"""

import copy
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import step_faults
import torch
from nightly import NIGHT, at_night
from real_speech import clips_in
from torch.nn.utils.rnn import pad_sequence

from speechbrain_dslstm import DSLSTM, DualLevelClassifier, EmotionClassifier
from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.inference import EmotionStream, load_safe
from speechbrain_dslstm.inference.streaming import with_normalization
from speechbrain_dslstm.layers import LocalFeatureCNN
from speechbrain_dslstm.models import MFCCBranch, SpectrogramBranch, fusion_loss
from speechbrain_dslstm.pretrained import make_label_encoder

MODEL = "pretrained/emotion-dslstm-emodb"
LOUDER = 100.0
SEED = 20261124
HOUR = 3600


@pytest.fixture(scope="module")
def shipped():
    """The classifier that comes with the package."""
    return load_safe(MODEL)


@pytest.fixture(scope="module")
def files(recordings):
    """32 to 54 files of speech."""
    return recordings[:: max(1, len(recordings) // 50)]


@pytest.fixture(scope="module")
def clips(files):
    """Waveforms of the files."""
    return [load_audio(path) for path in files]


def small(n_classes=3):
    """A dual-level model of few units, with random weights."""
    torch.manual_seed(0)
    cnn_x = LocalFeatureCNN(128, channels=[4, 2], kernel_size=[2, 4])
    cnn_y = LocalFeatureCNN(256, channels=[4, 2], kernel_size=[4, 2])
    sizes = cnn_x.output_size, cnn_y.output_size
    layer = DSLSTM(*sizes, hidden_size=8, num_layers=2)
    branch = SpectrogramBranch(n_classes, cnn_x, cnn_y, ds_lstm=layer)
    return DualLevelClassifier(
        n_classes, spectrogram=branch, mfcc=MFCCBranch(n_classes, hidden_size=8)
    )


def logits(model, wavs, counts=None):
    """Compute fused logits; a softmax could hide a difference."""
    with torch.no_grad():
        return model.fuse(model(wavs, counts, return_branches=True)[1])


def random_sets(draw, clips, number):
    """Yield batches of a clip and partners 100 times louder, in random order."""
    for _ in range(number):
        size = draw.randint(2, 6)
        wavs = []
        for _ in range(size):
            clip = draw.choice(clips)
            length = draw.choice([1, 100, 399, 400, 401, 6000, len(clip)])
            length = min(draw.choice([length, draw.randint(1, 40000)]), 40000)
            start = draw.randint(0, max(0, len(clip) - length))
            wavs.append(clip[start : start + length])
        place = draw.randrange(size)
        yield (
            place,
            [wav if k == place else LOUDER * wav for k, wav in enumerate(wavs)],
        )


def check_sets(model, clips, number, tolerance, dtype, seed):
    """Check that logits of a clip alone equal those in a batch, for any padding."""
    print(f"seed {seed}")
    draw, worst = random.Random(seed), 0.0
    for place, wavs in random_sets(draw, clips, number):
        wavs = [wav.to(dtype) for wav in wavs]
        alone = logits(model, wavs[place].unsqueeze(0))[0]
        counts = torch.tensor([len(wav) for wav in wavs])
        filling = draw.choice([0.0, LOUDER, float("nan")])
        padded = pad_sequence(wavs, True, padding_value=filling)
        found = logits(model, padded, counts)[place]
        worst = max(worst, float((found - alone).abs().max()))
        assert worst <= tolerance, (seed, counts.tolist(), place)
    print(f"{number} sets of {dtype}: largest difference {worst:.2e}")
    # Different clips have different answers
    answers = torch.cat([logits(model, c[None].to(dtype)) for c in clips[:4]])
    assert answers.std(0).max() > 100 * tolerance


def test_batch_invariance(shipped, clips):
    number = 300 if NIGHT else 60
    model = shipped.mods.embedding_model
    check_sets(model, clips, number, 1e-5, torch.float32, SEED)


def test_batch_invariance_in_float64(clips):
    """The difference in float32 is rounding, because float64 has next to none."""
    model = small().double().eval()
    for branch in model.branches.values():
        branch.head.weight.data *= 20
    check_sets(model, clips, 30, 1e-12, torch.float64, SEED + 1)


@pytest.mark.parametrize("training", [False, True])
def test_no_gradient_in_the_padding(clips, training):
    """The gradient is exactly zero, even though batch norm joins a batch's items."""
    model = small().train(training)
    counts = torch.tensor([9000, 20000, 700, 12345])
    wavs = torch.stack(
        [clips[k][:20000] * gain for k, gain in enumerate([1, 100, 1, 0.01])]
    ).requires_grad_()
    targets = torch.tensor([0, 1, 2, 0])
    _, outputs = model(wavs, counts, return_branches=True)
    fusion_loss(outputs, targets).backward()
    for row, count in zip(wavs.grad, counts.tolist(), strict=True):
        assert torch.equal(row[count:], torch.zeros_like(row[count:]))
        assert row[:count].abs().max() > 0 and row.isfinite().all()


def test_parameter_gradients_of_a_batch(clips):
    """Gradients of a padded batch are the sum of its items' gradients."""
    model = small().double().eval()
    wavs = [clips[0][:9000].double(), clips[1][:15000].double() * LOUDER]
    counts = torch.tensor([9000, 15000])
    targets = torch.tensor([0, 2])

    def gradients(batches):
        model.zero_grad()
        for wavs, counts, targets in batches:
            _, outputs = model(wavs, counts, return_branches=True)
            (fusion_loss(outputs, targets) * len(wavs)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    one = gradients([(pad_sequence(wavs, True), counts, targets)])
    two = gradients(
        [(wavs[k][None], counts[k : k + 1], targets[k : k + 1]) for k in (0, 1)]
    )
    torch.testing.assert_close(one, two, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("training", [False, True])
def test_gradcheck_of_the_whole_model(clips, training):
    """Check gradients of the waveforms and of every parameter in float64."""
    model = small().double().train(training)
    # Noise, so that no logarithm is at its floor and no two frames are alike
    wavs = torch.stack([clips[0][2000:9000], clips[1][3000:10000]]).double()
    wavs = (wavs + 0.05 * torch.randn_like(wavs)).requires_grad_()
    for k, stream in enumerate(model.streams.values()):
        stream.normalization.update(
            *stream.extract(wavs.detach(), torch.tensor([7000, 7000]))
        )
        assert k < 3
    counts = torch.tensor([7000, 6000])
    names = [name for name, _ in model.named_parameters()]
    values = tuple(
        value.detach().clone().requires_grad_() for value in model.parameters()
    )
    buffers = {name: b.clone() for name, b in model.named_buffers()}

    def run(wavs, *values):
        state = dict(zip(names, values, strict=True))
        # Running statistics of batch norm must not change
        state |= {name: b.clone() for name, b in buffers.items()}
        return torch.func.functional_call(model, state, (wavs, counts))

    assert torch.autograd.gradcheck(
        run,
        (wavs, *values),
        eps=1e-8,
        atol=1e-4,
        rtol=1e-3,
        fast_mode=True,
        nondet_tol=0.0,
    )


def test_gradcheck_of_the_cell():
    """Check every entry of the layer's Jacobian."""
    layer = DSLSTM(3, 4, hidden_size=3, num_layers=2).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([4, 2])
    names = [name for name, _ in layer.named_parameters()]
    values = tuple(v.detach().requires_grad_() for v in layer.parameters())

    def run(x, y, *values):
        state = dict(zip(names, values, strict=True))
        out, state = torch.func.functional_call(layer, state, (x, y, counts))
        return out, *state

    assert torch.autograd.gradcheck(run, (x, y, *values))


def frames_of_speech(model, files, steps):
    """What the DS-LSTM reads of recordings, again and again for many steps."""
    branch, found = model.branches["spectrogram"], []
    for path in files:
        streams = model.features(load_audio(path).unsqueeze(0))
        x, counts_x = branch.cnn_x(*streams["mel_x"])
        y, counts_y = branch.cnn_y(*streams["mel_y"])
        found.append(branch.alignment(x, y, counts_x, counts_y)[:2])
    for frames in zip(*found, strict=True):
        frames = torch.cat(frames, dim=1)
        times = -(-steps // frames.shape[1])
        yield frames.repeat(1, times, 1)[:, :steps]


def test_an_hour_of_the_recurrence(shipped, files):
    """Compare float32 with float64 over an hour: 28,125 steps of 128 ms."""
    branch = shipped.mods.embedding_model.branches["spectrogram"]
    layer = copy.deepcopy(branch.ds_lstm)
    steps = round(HOUR / 0.128)
    model = shipped.mods.embedding_model
    with torch.no_grad():
        x, y = frames_of_speech(model, files, steps)
        out, state = layer(x, y)
        layer.double()
        exact, exact_state = layer(x.double(), y.double())
    worst = (out - exact).abs().amax(dim=(0, 2))
    print(f"{steps} steps: worst {worst.max():.2e}, last {worst[-1]:.2e}")
    assert exact.std() > 0.05
    assert worst.max() < 1e-4
    assert (state[0] - exact_state[0]).abs().max() < 1e-4
    # A cell whose forget gate stays at 1 is a sum of 28,125 numbers, here of
    # up to 24,000: its own last bits (3e-4 of it) never reach an output
    difference = (state[1] - exact_state[1]).abs()
    assert (difference / exact_state[1].abs().clamp(min=1)).max() < 1e-3
    # Without drift, the end is as exact as the beginning
    tenth = steps // 10
    assert worst[-tenth:].mean() < 2 * worst[:tenth].mean() + 1e-7


def test_an_hour_of_a_stream(shipped, files):
    """Compare streamed posteriors of the whole chain in float32 and float64."""
    minutes = 60 if NIGHT else 1
    model = with_normalization(shipped.mods.embedding_model, "running")
    exact = copy.deepcopy(model).double()
    streams = EmotionStream(model), EmotionStream(exact)
    samples, worst, number = 0, 0.0, 0
    while samples < minutes * 60 * 16000:
        wav = load_audio(files[number % len(files)])
        number, samples = number + 1, samples + len(wav)
        one, two = streams[0].push(wav), streams[1].push(wav.double())
        worst = max(worst, float((one - two).abs().max()))
    end = streams[0].finish() - streams[1].finish()
    print(f"{minutes} min: worst {worst:.2e}, end {end.abs().max():.2e}")
    assert worst < 1e-4 and streams[0].samples == samples


def test_bfloat16(shipped, emodb_folder):
    """Autocast of ``precision: bf16`` gives finite answers, 99 % of them the same."""
    emodb_files = clips_in(emodb_folder)
    model = shipped.mods.embedding_model
    rough = EmotionClassifier.from_model(
        model,
        make_label_encoder(shipped.labels),
        16000,
        run_opts={"precision": "bf16", "eval_precision": "bf16"},
    )
    chosen = emodb_files if NIGHT else emodb_files[::6]
    same, worst = 0, 0.0
    for path in chosen:
        wav = load_audio(path)
        exact = shipped.classify_batch(wav)
        found = rough.classify_batch(wav)
        assert found[0].isfinite().all()
        same += found[3] == exact[3]
        temperature = shipped.mods.classifier.temperature
        plain = (exact[0] * temperature).log_softmax(-1)
        worst = max(worst, float((found[0] - plain).abs().max()))
    print(f"bf16: {same} of {len(chosen)}, largest difference {worst:.3f}")
    assert 1e-4 < worst < 0.5, "not in bf16 at all, or far off"
    assert same >= 0.99 * len(chosen)


RUN = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.models import fusion_loss
from speechbrain_dslstm.inference import load_safe
classifier = load_safe("pretrained/emotion-dslstm-emodb")
wavs = [load_audio(path) for path in sys.argv[2:]]
digest = hashlib.sha256()
counts = torch.tensor([len(wav) for wav in wavs])
padded = torch.nn.utils.rnn.pad_sequence(wavs, True)
for wav in wavs:
    digest.update(classifier.classify_batch(wav)[0].numpy().tobytes())
digest.update(classifier.classify_batch(padded, counts)[0].numpy().tobytes())
print(digest.hexdigest())
model = classifier.mods.embedding_model.train().requires_grad_()
optimizer = torch.optim.Adam(model.parameters())
torch.manual_seed(0)
for _ in range(2):
    optimizer.zero_grad()
    _, outputs = model(padded, counts, return_branches=True)
    loss = fusion_loss(outputs, torch.arange(len(wavs)) % 7)
    loss.backward()
    optimizer.step()
for value in model.state_dict().values():
    digest.update(value.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("threads", [at_night(1), at_night(2)])
def test_the_same_bits_run_to_run(files, threads):
    """Two processes agree in answers and in weights after two training steps."""
    command = [sys.executable, "-c", RUN, str(threads)]
    command += map(str, files[:3])
    root = Path(__file__).resolve().parents[2]
    # Waiting threads must not take processor time from the others
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    found = []
    for _ in range(2):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=root,
            env=environment,
            check=True,
        )
        found.append(done.stdout.split())
    assert found[0] == found[1] and len(set(found[0])) == 2


def random_states():
    """Digests of the states of the random generators."""
    parts = [
        str(random.getstate()),
        str(np.random.get_state()[1].tolist() + [np.random.get_state()[2]]),
        str(torch.get_rng_state().tolist()),
    ]
    return [hashlib.sha256(part.encode()).hexdigest() for part in parts]


def test_evaluation_draws_no_random_number(shipped, files, clips):
    """This holds for files, folders, long files, streams and modules with dropout."""
    model = small().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    padded = pad_sequence(clips[:3], True)
    counts = torch.tensor([len(clip) for clip in clips[:3]])
    before = random_states()
    shipped.classify_file(files[0])
    shipped.classify_batch(padded, counts)
    shipped.classify_files(files[:3])
    list(shipped.classify_long(files[0], window=1.0))
    stream = shipped.stream("running")
    stream.push(clips[0])
    stream.finish()
    logits(model, padded, counts)
    assert random_states() == before
    model.train()
    logits(model, padded, counts)
    assert random_states()[2] != before[2], "the digest sees what is drawn"


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_draws_no_random_number(tmp_path, workers):
    """In the recipe, training must not depend on what is evaluated."""
    options = [f"--num_workers={workers}", "--test_every_epoch=True"]
    result = step_faults.train(tmp_path / "corpus", tmp_path / "run", *options)
    assert result.code == 0, result.console
    assert (tmp_path / "run" / "drawn").read_text() == "False\nFalse\n"
