"""A corpus in shards is the corpus: each clip once, in another order each pass."""

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
import soundfile
import torch
from speechbrain.dataio.dataloader import make_dataloader

from speechbrain_dslstm.corpora.clips import load_clip
from speechbrain_dslstm.training import EarlyStoppingEpochCounter, ReliableBrain
from speechbrain_dslstm.training.shards import read_shards, write_shards

pytest.importorskip("webdataset", reason='pip install ".[shards]"')
LABELS = ["anger", "neutral"]


@pytest.fixture(scope="module")
def corpus(speech_files, tmp_path_factory):
    """Clips of several kinds, and a part of one, with their manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    entries = {}
    for k, path in enumerate(speech_files[:10]):
        name = f"{k}.flac"
        shutil.copy(path, folder / name)
        entries[f"clip.{k}"] = {
            "wav": f"{{data_root}}/{name}",
            "emotion": LABELS[k % 2],
            "speaker": f"s{k % 3}",
        }
    samples, _ = soundfile.read(folder / "0.flac")
    soundfile.write(folder / "loud.wav", samples, 22050, subtype="FLOAT")
    entries["part"] = {
        "wav": "{data_root}/loud.wav#t=0.25,0.75",
        "emotion": "anger",
        "speaker": "s0",
    }
    manifest = folder / "train.json"
    manifest.write_text(json.dumps(entries))
    return folder, entries


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory):
    """Four shards."""
    folder = tmp_path_factory.mktemp("shards") / "new"
    return write_shards(corpus[0] / "train.json", folder, corpus[0], clips=3)


def items(batches):
    """Items of batches, by their id."""
    found = {}
    for batch in batches:
        wavs, lens = batch.sig
        for k, key in enumerate(batch.id):
            assert key not in found
            wav = wavs[k, : round(float(lens[k]) * wavs.shape[1])]
            found[key] = (
                wav,
                int(batch.emotion_encoded.data[k]),
                batch.speaker[k],
            )
    return found


def ids(batches):
    return [key for batch in batches for key in batch.id]


def test_each_clip_once(corpus, shards):
    """With the samples, class and speaker of the manifest."""
    folder, entries = corpus
    assert [path.name for path in shards] == [
        f"train-{k:06}.tar" for k in range(4)
    ]
    found = items(islice(read_shards(shards, LABELS, 4), 3))
    assert set(found) == set(entries)
    for key, entry in entries.items():
        wav, index, speaker = found[key]
        path = entry["wav"].format(data_root=folder)
        torch.testing.assert_close(
            wav, load_clip(path, 16000), atol=1e-4, rtol=0
        )
        assert LABELS[index] == entry["emotion"]
        assert speaker == entry["speaker"]


def test_order(shards):
    """Another one in each pass, the same for the same seed."""

    def order(seed):
        return ids(islice(read_shards(shards, LABELS, 4, seed=seed), 6))

    first = order(1)
    assert sorted(first[:11]) == sorted(first[11:]) and first[:11] != first[11:]
    assert order(1) == first != order(2)


def test_patterns_and_addresses(shards, tmp_path):
    pattern = f"{shards[0].parent}/train-{{000000..000003}}.tar"
    address = f"file-of-fsspec://{shards[0]}"
    found = ids(islice(read_shards(pattern, LABELS, 11), 1))
    assert len(found) == 11
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    class Other(LocalFileSystem):
        protocol = "file-of-fsspec"

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("file-of-fsspec://")

    fsspec.register_implementation("file-of-fsspec", Other, clobber=True)
    assert len(ids(islice(read_shards([address], LABELS, 3), 1))) == 3


def test_ranks_and_workers_share_the_shards(shards, monkeypatch):
    found = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        loader = make_dataloader(
            read_shards(shards, LABELS, 3), batch_size=None, num_workers=2
        )
        found.append(set(ids(islice(loader, 8))))
    assert len(found[0] | found[1]) == 11 and not found[0] & found[1]


class Brain(ReliableBrain):
    """Learns whether a clip is loud; counts its steps."""

    def compute_forward(self, batch, stage):
        wavs, _ = batch.to(self.device).sig
        return self.modules.model(wavs.square().mean(1, keepdim=True))

    def compute_objectives(self, predictions, batch, stage):
        truth = batch.emotion_encoded.data.squeeze(1)
        self.seen = [*getattr(self, "seen", []), *batch.id]
        return torch.nn.functional.cross_entropy(predictions, truth)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.loss = stage_loss


def test_a_training(shards):
    """The Brain trains on them, in epochs of a given number of steps."""
    model = torch.nn.Linear(1, 2)
    hparams = {
        "model": model,
        "average_decay": None,
        "on_nonfinite": "skip",
        "number_of_epochs": 2,
        "lr_schedule": None,
        "lr_interval": "batch",
        "encoder_opt_class": None,
        "epoch_counter": EarlyStoppingEpochCounter(2, 2),
    }
    hparams["lr_schedule"] = torch.optim.lr_scheduler.ConstantLR
    brain = Brain(
        {"model": model},
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        hparams,
        {"device": "cpu", "noprogressbar": True},
    )
    loader = brain.make_train_loader(
        read_shards(shards, LABELS, 4),
        looped_nominal_epoch=3,
        batch_size=None,
    )
    assert brain.total_steps == 6
    brain.fit(range(1, 3), loader)
    # Two passes over the corpus
    assert sorted(brain.seen) == sorted(2 * [*set(brain.seen)])
    assert len(brain.seen) == 22


def test_what_is_wrong(corpus, shards, tmp_path):
    manifest = corpus[0] / "train.json"
    with pytest.raises(ValueError, match="below {data_root}: give the folder"):
        write_shards(manifest, tmp_path / "new")
    with pytest.raises(FileExistsError, match="exists already"):
        write_shards(manifest, tmp_path, corpus[0])
    with pytest.raises(FileNotFoundError):
        write_shards(manifest, tmp_path / "new", tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ValueError, match="no clips"):
        write_shards(tmp_path / "empty.json", tmp_path / "new")
    with pytest.raises(ValueError, match="is not among the classes neutral"):
        next(iter(read_shards(shards, ["neutral"], 4)))
    cut = Path(shutil.copy(shards[0], tmp_path))
    cut.write_bytes(cut.read_bytes()[:-9000])
    with pytest.raises(Exception, match="unexpected end of data|ReadError"):
        list(islice(read_shards([str(cut)], LABELS, 1), 4))
