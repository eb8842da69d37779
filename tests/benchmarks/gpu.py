"""The DS-LSTM on a GPU against cuDNN's nn.LSTM, at the paper's sizes.

The comparison of ``layer``, with all tensors on the GPU; a call ends when the
GPU has finished. cuDNN would use tf32 for float32 unless told otherwise; the
kernels here never do.
"""

import torch
from layer import layer_calls
from timing import compare

PARITY = ["ds_lstm/test_layer.py", "ds_lstm/test_kernel_triton.py"]
BATCH = 128


def finished(call):
    """A call that waits for the GPU.

    Arguments
    ---------
    call : callable
        Whatever is timed.

    Returns
    -------
    callable
        The same, followed by a synchronisation.
    """

    def run():
        call()
        torch.cuda.synchronize()

    return run


def rows(options):
    """Time everything, where there is a GPU.

    Arguments
    ---------
    options : argparse.Namespace
        ``seconds`` for each row.

    Yields
    ------
    Row
        One for each type, mode and number of steps.
    """
    if not torch.cuda.is_available():
        print("# gpu: not measured, no GPU here")
        return
    print(f"# gpu: {torch.cuda.get_device_name()}")
    usual = torch.get_default_dtype()
    cudnn = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.device("cuda"), cudnn:
        for dtype in (torch.float32, torch.bfloat16):
            for steps in (50, 200):
                for training in (True, False):
                    torch.set_default_dtype(dtype)
                    try:
                        calls = layer_calls(BATCH, steps, training)
                    finally:
                        torch.set_default_dtype(usual)
                    name = str(dtype).removeprefix("torch.")
                    mode = "training" if training else "inference"
                    yield compare(
                        "gpu",
                        f"{mode}, T {steps}, batch {BATCH}, {name}",
                        {key: finished(calls[key]) for key in calls},
                        None,
                        options.seconds,
                    )
