"""The DS-LSTM layer against torch.nn.LSTM, and with the paper's norms.

nn.LSTM reads x and y concatenated beforehand, with the same hidden size; its
arithmetic is 4/5 of the DS-LSTM's for the inputs and 4/6 for the recurrence.
x 496, y 1008, hidden 200: the paper's sizes. Equally good matrix products
would give 1.26; at batch 1 less is possible only where T is small and
nn.LSTM's fixed cost of a call counts.
"""

import torch
from timing import compare, training_step

from speechbrain_dslstm import DSLSTM
from speechbrain_dslstm.ds_lstm.backends import choose_backend

PARITY = [
    *("ds_lstm/test_layer.py", "ds_lstm/test_kernel_numba.py"),
    "layers/test_batch_norm.py",
]
SIZE_X, SIZE_Y, HIDDEN = 496, 1008, 200
# batch -> largest ratio that is wanted, of training and of inference
TARGETS = {1: (1.05, 1.10), 16: (1.30, 1.40), 128: (1.30, 1.40)}
# T, and the batches that do not take minutes at it
SIZES = {50: (1, 16, 128), 200: (1, 16, 128), 1000: (1, 16)}


def layer_calls(batch, steps, training, hidden=HIDDEN):
    """What is compared at one size.

    Arguments
    ---------
    batch : int
        Utterances.
    steps : int
        Time steps T.
    training : bool
        Forward and backward, or inference.
    hidden : int
        Hidden units.

    Returns
    -------
    dict of str to callable
        The DS-LSTM, named after its backend, and "nn.LSTM".
    """
    x = torch.randn(batch, steps, SIZE_X, requires_grad=training)
    y = torch.randn(batch, steps, SIZE_Y, requires_grad=training)
    both = torch.cat([x, y], -1).detach().requires_grad_(training)
    ours = DSLSTM(SIZE_X, SIZE_Y, hidden)
    lstm = torch.nn.LSTM(SIZE_X + SIZE_Y, hidden, batch_first=True)
    if training:
        return {
            choose_backend().name: training_step(
                ours, [x, y], lambda: ours(x, y)[0]
            ),
            "nn.LSTM": training_step(lstm, [both], lambda: lstm(both)[0]),
        }
    return {
        choose_backend().name: torch.no_grad()(lambda: ours(x, y)),
        "nn.LSTM": torch.no_grad()(lambda: lstm(both)),
    }


def gate_norm_calls(batch, steps=27):
    """A training step of the two layers of ``paper``, and of the plain ones.

    Arguments
    ---------
    batch : int
        Utterances.
    steps : int
        Time steps T; 27 are two seconds.

    Returns
    -------
    dict of str to callable
        "paper" and "plain".
    """
    x = torch.randn(batch, steps, SIZE_X, requires_grad=True)
    y = torch.randn(batch, steps, SIZE_Y, requires_grad=True)
    counts = torch.linspace(steps // 2, steps, batch).long()

    def step(**norms):
        net = DSLSTM(SIZE_X, SIZE_Y, HIDDEN, num_layers=2, **norms)
        return training_step(net, [x, y], lambda: net(x, y, counts)[0])

    norms = {"gate_norm": "batch", "output_norm": "batch"}
    return {"paper": step(**norms), "plain": step()}


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
    print(f"# DS-LSTM backend {choose_backend()[:2]}")
    for steps, batches in SIZES.items():
        for batch in batches:
            for training in (True, False):
                mode = "training" if training else "inference"
                yield compare(
                    "layer",
                    f"{mode}, T {steps}, batch {batch}",
                    layer_calls(batch, steps, training),
                    TARGETS[batch][not training],
                    options.seconds,
                )
    for batch in (32, 128):
        yield compare(
            "layer",
            f"training, paper's norms, T 27, batch {batch}",
            gate_norm_calls(batch),
            2.0,
            options.seconds,
        )
