"""A corpus as shards: tar files in the layout of WebDataset, and batches of them.

Shards are read from beginning to end, so that a corpus may lie on a file system
or behind an address that is slow to open a file. A clip has two members:
``00000042.flac`` is its audio, as it was, and ``00000042.json`` its entry in the
manifest, with its ``id``.
"""

import io
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import soundfile
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_dslstm.audio.checks import LONGEST_CLIP
from speechbrain_dslstm.audio.reading import load_audio
from speechbrain_dslstm.corpora.clips import open_clip, split_segment
from speechbrain_dslstm.utils.files import new_folder

__all__ = ["read_shards", "write_shards"]

ROOT = "{data_root}"


def write_shards(
    manifest: str | Path,
    folder: str | Path,
    data_root: str | Path | None = None,
    clips: int = 1000,
    seed: int = 0,
) -> list[Path]:
    """Write the clips of a manifest, in random order, to a new folder of shards.

    ``manifest`` is one that the recipe has written, such as save/train.json;
    ``data_root`` stands for {data_root} in it. A shard has at most ``clips``
    clips. The folder appears when it is complete.
    """
    wds = _webdataset()
    entries = json.loads(Path(manifest).read_text(encoding="utf-8"))
    if not entries:
        raise ValueError(f"{manifest}: no clips")
    needs_root = any(ROOT in entry["wav"] for entry in entries.values())
    if needs_root and data_root is None:
        raise ValueError(
            f"{manifest} has paths below {ROOT}: give the folder of the corpus "
            "(--data-root)"
        )
    ids = sorted(entries)
    random.Random(seed).shuffle(ids)
    with new_folder(folder) as temporary:
        pattern = f"{temporary}/{Path(manifest).stem}-%06d.tar"
        with wds.ShardWriter(pattern, maxcount=clips, verbose=0) as writer:
            for number, key in enumerate(ids):
                entry = {**entries[key], "id": key}
                wav = entry.pop("wav").replace(ROOT, str(data_root))
                ending, audio = _audio(wav)
                sample = {"__key__": f"{number:08}", ending: audio}
                writer.write({**sample, "json": json.dumps(entry).encode()})
    return sorted(Path(folder).iterdir())


def _audio(wav: str) -> tuple[str, bytes]:
    """Ending and bytes of a clip's file; a part of a file is decoded."""
    path, segment = split_segment(wav)
    if segment is None:
        return Path(path).suffix[1:].lower(), Path(path).read_bytes()
    with open_clip(path, segment, LONGEST_CLIP) as (pieces, rate):
        (samples,) = pieces
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return "wav", file.getvalue()


def read_shards(
    shards: str | Sequence[str],
    labels: Sequence[str],
    batch_size: int,
    sample_rate: int = 16000,
    buffer: int = 1000,
    seed: int = 0,
) -> Iterable[PaddedBatch]:
    """Endless random batches for ``speechbrain.dataio.dataloader.make_dataloader``.

    Every rank and every worker of a loader reads other shards, of which there
    must be as many, and draws from a ``buffer`` of clips. Batches have "id",
    "speaker", "sig" and "emotion_encoded", the index in ``labels``, as in the
    recipe.

    Arguments
    ---------
    shards
        Paths or addresses, or a pattern such as "train-{000000..000009}.tar".
    labels
        Names of the classes in their order.
    batch_size
        Clips in a batch of one rank.
    sample_rate
        Of "sig", in Hz.
    buffer
        Number of clips, encoded, that are held to draw from.
    seed
        Of the order; each rank, worker and pass has another order.
    """
    wds = _webdataset()
    # A dependency of webdataset
    from braceexpand import braceexpand

    urls = [shards] if isinstance(shards, str) else list(map(str, shards))
    urls = [one for url in urls for one in braceexpand(url)]
    for protocol in {url.partition("://")[0] for url in urls if "://" in url}:
        wds.gopen_schemes.setdefault(protocol, _open)
    indices = {label: index for index, label in enumerate(labels)}
    to_item = partial(_to_item, indices=indices, sample_rate=sample_rate)
    return (
        wds.WebDataset(
            urls,
            shardshuffle=len(urls),
            detshuffle=True,
            nodesplitter=wds.split_by_node,
            seed=seed,
        )
        .compose(wds.detshuffle(buffer, seed=seed))
        .map(to_item)
        .repeat()
        .batched(batch_size, collation_fn=PaddedBatch)
    )


def _to_item(
    sample: Mapping[str, Any], indices: Mapping[str, int], sample_rate: int
) -> dict[str, Any]:
    """Item of a sample of WebDataset, as the recipe's datasets have it."""
    import torch

    entry = json.loads(sample["json"])
    (audio,) = (
        value
        for name, value in sample.items()
        if name != "json" and not name.startswith("__")
    )
    if entry["emotion"] not in indices:
        raise ValueError(
            f"{entry['id']}: {entry['emotion']} is not among the classes "
            f"{', '.join(indices)}"
        )
    return {
        "id": entry["id"],
        "speaker": entry["speaker"],
        "sig": load_audio(audio, sample_rate),
        "emotion_encoded": torch.tensor([indices[entry["emotion"]]]),
    }


def _open(url: str, mode: str = "rb", bufsize: int = 8192) -> BinaryIO:
    """Open an address of any protocol that fsspec knows."""
    return fsspec.open(url, mode).open()


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ImportError(
            'webdataset is missing: pip install "speechbrain-dslstm[shards]"'
        ) from error
    return webdataset
