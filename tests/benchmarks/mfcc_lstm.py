"""The MFCC branch's LSTM over batches of unequal lengths: pad, sort or pack?

A training step of nn.LSTM 39 -> 200, 2 layers, over the same 64 clips of
EMO-DB (their real lengths, random features) in two batches of 32: padded to
the longest of a random batch, padded after sorting by length, and packed.
"""

import soundfile
import torch
from corpus import emodb_clips
from timing import compare

from speechbrain_dslstm import MFCC39

PARITY = ["layers/test_pooling.py", "test_lengths.py"]
CLIPS, BATCH, HIDDEN = 64, 32, 200


def clip_frames():
    """MFCC frames of some clips of EMO-DB.

    Returns
    -------
    torch.Tensor, int64, [CLIPS]
        In random order.
    """
    paths = emodb_clips()
    order = torch.randperm(len(paths))[:CLIPS].tolist()
    extractor = MFCC39()
    seconds = [soundfile.info(paths[k]).duration for k in order]
    return torch.tensor([extractor.num_frames(int(s * 16000)) for s in seconds])


def passes(frames):
    """One pass over all clips in each of the three ways.

    Arguments
    ---------
    frames : torch.Tensor, int64, [CLIPS]
        Lengths.

    Returns
    -------
    dict of str to callable
        "sorted", "packed" and "padded".
    """
    lstm = torch.nn.LSTM(39, HIDDEN, num_layers=2, batch_first=True)

    def batches(order):
        return [
            (torch.randn(len(counts), int(counts.max()), 39), counts)
            for counts in frames[order].split(BATCH)
        ]

    def one_pass(given, pack):
        for feats, counts in given:
            lstm.zero_grad()
            if pack:
                feats = torch.nn.utils.rnn.pack_padded_sequence(
                    feats, counts, batch_first=True, enforce_sorted=False
                )
            out = lstm(feats)[0]
            (out.data if pack else out).sum().backward()

    random = batches(torch.arange(len(frames)))
    by_length = batches(frames.argsort())
    return {
        "sorted": lambda: one_pass(by_length, False),
        "packed": lambda: one_pass(random, True),
        "padded": lambda: one_pass(random, False),
    }


def rows(options):
    """Time the three.

    Arguments
    ---------
    options : argparse.Namespace
        ``seconds`` for each row.

    Yields
    ------
    Row
        Sorted against packed; ``medians`` holds all three.
    """
    frames = clip_frames()
    if len(frames) < CLIPS:
        print("# no mfcc_lstm: set DSLSTM_SPEECH_DATA to the folder of emodb/")
        return
    row = compare(
        "mfcc_lstm",
        f"sorted against packed, {CLIPS} clips",
        passes(frames),
        1.0,
        options.seconds,
    )
    yield row
    print(
        f"# fastest over unequal lengths: {min(row.medians, key=row.medians.get)}"
    )
