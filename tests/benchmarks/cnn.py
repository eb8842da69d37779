"""The CNN branches against torch's own layers in default memory layout.

Channels 64 and 16, images of 128 x 230 and 256 x 120, both branches together:
the paper's sizes. Convolution, batch norm, ReLU, max pooling: its order.
"""

import torch
from plain import PlainCNN
from timing import compare

from speechbrain_dslstm.layers import LocalFeatureCNN

PARITY = [
    *("layers/test_cnn.py", "kernels/test_conv_pool.py"),
    "layers/test_batch_norm.py",
]
# bins, frames, kernel
IMAGES = [(128, 230, (2, 4)), (256, 120, (4, 2))]
# batch -> largest ratio that is wanted, of inference
INFERENCE = {1: 1 / 4, 8: 1 / 8, 32: None}
TRAINING = {16: 1 / 1.5}


def calls(batch, training):
    """Both ways through both branches.

    Arguments
    ---------
    batch : int
        Clips.
    training : bool
        Forward and backward, or inference.

    Returns
    -------
    dict of str to callable
        "ours" and "plain".
    """
    branches = []
    for bins, frames, kernel in IMAGES:
        cnn = LocalFeatureCNN(bins, kernel_size=kernel, pool_first=False)
        plain = PlainCNN(cnn)
        x, counts = (
            torch.randn(batch, frames, bins),
            torch.full((batch,), frames),
        )
        found = cnn.eval()(x, counts)[0], plain.eval()(x)
        torch.testing.assert_close(*found, atol=1e-4, rtol=0)
        cnn.train(training), plain.train(training)
        branches.append((cnn, plain, x, counts))

    def run(one):
        with torch.set_grad_enabled(training):
            for cnn, plain, x, counts in branches:
                net = plain if one == "plain" else cnn
                net.zero_grad()
                out = plain(x) if one == "plain" else cnn(x, counts)[0]
                if training:
                    out.sum().backward()

    return {"ours": lambda: run("ours"), "plain": lambda: run("plain")}


def rows(options):
    """Time everything.

    Arguments
    ---------
    options : argparse.Namespace
        ``seconds`` for each row.

    Yields
    ------
    Row
        One for each size and mode.
    """
    for training, targets in ((False, INFERENCE), (True, TRAINING)):
        mode = "training" if training else "inference"
        for batch, target in targets.items():
            yield compare(
                "cnn",
                f"{mode}, both branches, batch {batch}",
                calls(batch, training),
                target,
                options.seconds,
            )
