"""An epoch over EMO-DB against that of the same system of plain torch parts.

The training subset of fold 0 (301 clips), batch 32, 2 threads, the features in
the cache, as in the recipe from the second epoch on; neither way augments,
averages weights or validates. The plain way reads the audio, computes the
features, pads batches of random clips. The last rows say where the time of
ours goes.
"""

import functools
import json
import tempfile
from pathlib import Path

import torch
from corpus import emodb_folder
from plain import PlainClassifier
from time_shares import TimeShares, model_parts
from timing import Row, interleave

from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.corpora import prepare
from speechbrain_dslstm.features import FeatureCache
from speechbrain_dslstm.hparams import load_hparams
from speechbrain_dslstm.models import FeatureSequence, fusion_loss
from speechbrain_dslstm.splits import make_split

PARITY = [
    *("models/test_dual_level.py", "models/test_paper.py"),
    "features/test_cache.py",
]
HPARAMS = Path(__file__).resolve().parents[2] / "hparams"
TARGETS = {"dual_level": 1 / 3, "paper": 1 / 2}
BATCH, THREADS, TURNS = 32, 2, 3


@functools.cache
def read_corpus(folder):
    """The clips of EMO-DB and its classes.

    Arguments
    ---------
    folder : pathlib.Path
        EMO-DB.

    Returns
    -------
    entries, labels
        As ``prepare`` gives them.
    """
    return prepare("emodb", folder)


class Epoch:
    """An epoch in both ways.

    Arguments
    ---------
    system : str
        Name of a YAML.
    folder : pathlib.Path
        EMO-DB.
    cache : str
        Folder of cached features.
    device : str
        Where the models are.
    **overrides
        Keys of the YAML.
    """

    def __init__(self, system, folder, cache, device="cpu", **overrides):
        self.device = device
        overrides = json.dumps({"corpus": "emodb", **overrides})
        hparams = load_hparams(HPARAMS / f"{system}.yaml", overrides)
        entries, labels = read_corpus(folder)
        split = make_split(entries, "session", 0, 1234)
        self.clips = [
            (
                entries[key]["wav"].format(data_root=folder),
                entries[key]["audio_hash"],
                labels.index(entries[key]["emotion"]),
            )
            for key in split.train
        ]
        by_length = sorted(
            range(len(self.clips)),
            key=lambda k: entries[split.train[k]]["duration"],
        )
        self.by_length = torch.tensor(by_length).split(BATCH)
        self.model = hparams["model"].train().to(device)
        self.plain = torch.nn.Identity()
        if system in TARGETS:
            self.plain = PlainClassifier(self.model).train().to(device)
        extractors = {n: s.extractor for n, s in self.model.streams.items()}
        self.cache = FeatureCache(cache, extractors, "emodb")
        self.optimizers = {
            net: torch.optim.Adam(net.parameters(), 1e-3)
            for net in (self.model, self.plain)
            if list(net.parameters())
        }

    def targets(self, batch):
        """Classes of a batch of indices."""
        classes = [self.clips[k][2] for k in batch.tolist()]
        return torch.tensor(classes, device=self.device)

    def step(self, net, logits, targets):
        """Backward pass and optimiser."""
        loss = fusion_loss(logits, targets, 0.5)
        optimizer = self.optimizers[net]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def load(self, batch):
        """Cached features of a batch of indices."""
        items = [
            self.cache.get(lambda path=path: load_audio(path), audio_hash=name)
            for path, name, _ in (self.clips[k] for k in batch.tolist())
        ]
        return {
            name: FeatureSequence(
                torch.nn.utils.rnn.pad_sequence(
                    [item[name] for item in items], batch_first=True
                ).to(self.device),
                torch.tensor(
                    [len(item[name]) for item in items], device=self.device
                ),
            )
            for name in items[0]
        }

    def learn(self, extracted, targets):
        """A training step of our modules."""
        streams = self.model.normalize(extracted)
        logits = self.model(streams=streams, return_branches=True)[1]
        self.step(self.model, logits, targets)

    def ours(self):
        """Cached features, batches of like length, our modules."""
        for batch in self.by_length:
            self.learn(self.load(batch), self.targets(batch))

    def by_hand(self):
        """Audio and features anew, batches at random, plain modules."""
        for batch in torch.randperm(len(self.clips)).split(BATCH):
            wavs = [load_audio(self.clips[k][0]) for k in batch.tolist()]
            counts = torch.tensor([len(wav) for wav in wavs])
            padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
            with torch.no_grad():
                streams = self.model.features(
                    padded.to(self.device), counts.to(self.device)
                )
            self.learn_plain(streams, self.targets(batch))

    def learn_plain(self, streams, targets):
        """A training step of the plain modules."""
        spectrogram, mfcc = self.plain(streams)
        logits = {"spectrogram": spectrogram, "mfcc": mfcc}
        self.step(self.plain, logits, targets)


def shares(epoch):
    """Where the time of an epoch in our way goes.

    Arguments
    ---------
    epoch : Epoch
        Its ``ours`` is run once.

    Returns
    -------
    dict of str to float
        Seconds by part.
    """
    optimizer = epoch.optimizers[epoch.model]
    parts = {
        "normalisation": [(epoch.model, "normalize")],
        **model_parts(epoch.model),
        "optimiser": [(optimizer, "step")],
        "the rest": [(epoch, "learn")],
    }
    with TimeShares(parts, outside="loading") as found:
        epoch.ours()
    return found.seconds


def rows(options):
    """Time everything.

    Arguments
    ---------
    options : argparse.Namespace
        ``seconds`` for each row; an epoch is timed ``TURNS`` times at least.

    Yields
    ------
    Row
        One for each system, and one for each part of its epoch.
    """
    folder = emodb_folder()
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as cache:
        for system, target in TARGETS.items():
            epoch = Epoch(system, folder, cache)
            calls = {"ours": epoch.ours, "plain": epoch.by_hand}
            medians = interleave(calls, options.seconds, TURNS)
            ratio = medians["ours"] / medians["plain"]
            yield Row("epoch", system, ratio, target, medians)
            found = shares(epoch)
            total = sum(found.values())
            for part, seconds in found.items():
                name = f"{system}: share of {part}"
                yield Row(
                    "epoch", name, seconds / total, None, {"ms": 1e3 * seconds}
                )
    torch.set_num_threads(threads)
