"""Run the recipe with faults in its training steps; a script and its caller.

As a script it is ``train.py`` up to the end of the training, with the faults
that the environment variable FAULTS lists as JSON, such as
``[{"kind": "loss", "step": 3, "rank": 1, "value": "nan"}]``. Steps are counted
from 1, in batches since the start of the process; without "rank" all ranks
are hit. At the end each rank writes hashes of all that a checkpoint holds.
"""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import processes

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "recipes" / "emotion_recognition"
# Nothing random in a step, so that runs can be compared bit for bit
SMALL = [
    "--corpus=synthetic",
    "--corpus_options={speakers: 10, sentences: 1}",
    "--channels=[2, 2]",
    "--hidden_size=4",
    "--batch_size=4",
    "--device=cpu",
    "--noprogressbar",
    "--test_every_epoch=False",
    "--speeds=null",
    "--fea_augment=null",
    "--dropout=0.0",
    "--number_of_epochs=2",
    "--ckpt_interval_minutes=0",
]


class Result:
    """Exit code, console, log, epochs and hashes of a finished run.

    Arguments
    ---------
    code : int
        Exit code.
    console : str
        Both streams.
    output : pathlib.Path
        Output folder.
    """

    def __init__(self, code, console, output):
        self.code = code
        self.console = console
        self.output = output

    @property
    def log(self):
        """Text of the log file."""
        return (self.output / "log.txt").read_text(encoding="utf-8")

    @property
    def epochs(self):
        """Rows of the log of epochs."""
        path = self.output / "save" / "epochs.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    @property
    def checkpoints(self):
        """Hash of all files of each checkpoint, by its folder's name."""
        return {
            folder.name: {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(folder.iterdir())
            }
            for folder in (self.output / "save").glob("CKPT*")
        }

    def hashes(self, rank=0):
        """Hashes at the end of the training.

        Arguments
        ---------
        rank : int
            Whose.

        Returns
        -------
        dict of str to str
            By the name of what a checkpoint holds.
        """
        path = self.output / f"final{rank}.json"
        return json.loads(path.read_text())


def start(
    corpus, output, *options, faults=(), ranks=1, launcher=False, group=False
):
    """Start a run.

    Arguments
    ---------
    corpus : pathlib.Path
        Data folder.
    output : pathlib.Path
        Output folder.
    *options : str
        Of the recipe, as on its command line.
    faults : list of dict
        See the head of this file.
    ranks : int
        Number of ranks.
    launcher : bool
        Whether torchrun starts the ranks, anew; else the fork server does.
    group : bool
        Whether a single process gets a process group of its own.

    Returns
    -------
    processes.Process, Ranks or subprocess.Popen
        The process, the ranks, or torchrun; the console goes to a file.
    """
    arguments, console = _arguments(corpus, output, options)
    faults = json.dumps(list(faults))
    if ranks > 1:
        arguments.append("--distributed_backend=gloo")
    if launcher:
        arguments = ["--standalone", f"--nproc_per_node={ranks}", *arguments]
        return _torchrun(arguments, faults, console)
    if ranks == 1:
        return processes.script(
            *arguments, log=console, group=group, FAULTS=faults
        )
    port = free_port()
    return Ranks(
        processes.script(
            *arguments,
            log=console,
            FAULTS=faults,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            MASTER_ADDR="localhost",
            MASTER_PORT=str(port),
        )
        for rank in range(ranks)
    )


def start_node(corpus, output, *options, node, port, faults=()):
    """Start the launcher of one of two nodes, which has one rank.

    Arguments
    ---------
    corpus : pathlib.Path
        Data folder.
    output : pathlib.Path
        Output folder; both nodes share it.
    *options : str
        Of the recipe, as on its command line.
    node : int
        0, where the nodes meet, or 1.
    port : int
        Where they meet.
    faults : list of dict
        See the head of this file.

    Returns
    -------
    subprocess.Popen
        torchrun; its console goes to a file for each node.
    """
    arguments, console = _arguments(corpus, output, options)
    launcher = [
        "--nnodes=2",
        "--nproc_per_node=1",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        f"--rdzv-conf=is_host={1 - node}",
        # An address of the loopback for each node
        f"--local-addr=127.0.0.{1 + node}",
    ]
    return _torchrun(
        [*launcher, *arguments, "--distributed_backend=gloo"],
        json.dumps(list(faults)),
        console.with_name(f"console{node}.txt"),
        # Else a launcher that stays never tells a new one where to meet
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
    )


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _arguments(corpus, output, options):
    """Script and options of a small run, and the file for its console."""
    output.mkdir(parents=True, exist_ok=True)
    given = {option.split("=")[0] for option in options}
    small = [one for one in SMALL if one.split("=")[0] not in given]
    yaml = REPOSITORY / "hparams" / "dual_level.yaml"
    folders = [f"--data_folder={corpus}", f"--output_folder={output}"]
    console = output / "console.txt"
    console.write_text("")
    return [__file__, yaml, *small, *folders, *options], console


def _torchrun(arguments, faults, console, **environment):
    """Start the ranks as a user does."""
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--signals-to-handle=SIGTERM,SIGUSR1", *map(str, arguments)]
    with open(console, "a") as stream:
        return subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "FAULTS": faults,
                **environment,
                "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{RECIPE}",
            },
        )


class Ranks:
    """Forked ranks, waited for and ended together."""

    def __init__(self, members):
        self.members = list(members)

    def wait(self, timeout):
        """Wait for all; the exit code of the first that failed, or 0."""
        codes = [one.wait(timeout) for one in self.members]
        return next((code for code in codes if code), 0)

    def kill(self):
        """Send SIGKILL to all."""
        for one in self.members:
            one.kill()

    terminate = kill


def finish(process, output, seconds=300):
    """Wait for a run.

    Arguments
    ---------
    process : processes.Process or subprocess.Popen
        From ``start``.
    output : pathlib.Path
        Its output folder.
    seconds : float
        It has hung after these.

    Returns
    -------
    Result
        What it left.
    """
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        # torchrun passes SIGTERM on to its ranks; a SIGKILL would leave them
        process.terminate()
        process.wait(60)
        raise
    finally:
        process.kill()
    return Result(code, (output / "console.txt").read_text(), output)


def at_step(process, output, count, rank=0, seconds=300):
    """Wait until a run is at a step.

    Arguments
    ---------
    process : processes.Process or subprocess.Popen
        From ``start``.
    output : pathlib.Path
        Its output folder.
    count : int
        Batches since its start.
    rank : int
        Whose.
    seconds : float
        It has hung after these.

    Returns
    -------
    int
        Process id of the rank.
    """
    marker = output / f"step{rank}"
    deadline = time.monotonic() + seconds
    while True:
        if marker.exists():
            found, pid = map(int, marker.read_text().split())
            if found >= count:
                return pid
        console = (output / "console.txt").read_text()
        assert process.poll() is None, console
        assert time.monotonic() < deadline, console
        time.sleep(0.005)


def train(corpus, output, *options, **kwargs):
    """Run to the end.

    Arguments
    ---------
    corpus : pathlib.Path
        Data folder.
    output : pathlib.Path
        Output folder.
    *options : str
        Of the recipe.
    **kwargs : dict
        Of ``start``.

    Returns
    -------
    Result
        What it left.
    """
    return finish(start(corpus, output, *options, **kwargs), output)


def _digest(state):
    """Hash of a state, tensor by tensor."""
    import torch

    if isinstance(state, torch.Tensor):
        data = state.detach().cpu().contiguous().view(-1)
        return hashlib.sha256(data.view(torch.uint8).numpy()).hexdigest()
    if isinstance(state, dict):
        state = {str(key): _digest(value) for key, value in state.items()}
    elif isinstance(state, list | tuple):
        state = [_digest(value) for value in state]
    text = json.dumps(state, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _random_states():
    """Digest of the random generators of this process."""
    import numpy as np
    import torch

    found = [random.getstate(), np.random.get_state(legacy=False)]
    return _digest([*map(str, found), torch.get_rng_state()])


def main():
    """Run the recipe with faults, to the end of the training."""
    import speechbrain as sb
    import torch
    import train as recipe

    # Skip seconds of listing packages that no test reads
    sb.utils.logger.get_environment_description = str
    rank = int(os.environ.get("RANK", 0))
    faults = [
        fault
        for fault in json.loads(os.environ["FAULTS"])
        if fault.get("rank", rank) == rank
    ]

    class Faulty(recipe.EmotionBrain):
        """The recipe's Brain, with faults."""

        count = 0

        def active(self, *kinds):
            """The fault of one of these kinds that is due, if any."""
            for fault in faults:
                last = fault.get("last", fault.get("step"))
                due = last is None or fault["step"] <= self.count <= last
                if fault["kind"] in kinds and due:
                    return fault
            return None

        def fit_batch(self, batch):
            """Train on a batch, unless it is left out."""
            self.count += 1
            folder = Path(self.hparams.output_folder)
            marker = folder / f"step{rank}.part"
            marker.write_text(f"{self.count} {os.getpid()}")
            marker.rename(folder / f"step{rank}")
            fault = self.active("omit")
            if fault is not None:
                # The batch is dropped, but the schedule counts it
                if self.step % self.grad_accumulation_factor == 0:
                    self.step_schedules()
                return torch.tensor(float("nan"))
            fault = self.active("process")
            if fault is not None:
                {
                    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
                    "raise": lambda: 1 / 0,
                    "hang": lambda: time.sleep(3600),
                }[fault["how"]]()
            fault = self.active("signal")
            if fault is not None:
                os.kill(os.getpid(), getattr(signal, fault["name"]))
            return super().fit_batch(batch)

        def extract(self, batch, training):
            """Extract features, those of one clip with a NaN."""
            streams = super().extract(batch, training)
            if training and self.active("features"):
                streams["mel_x"].feats[0, 3, 5] = float("nan")
            return streams

        def compute_objectives(self, predictions, batch, stage):
            """Compute the loss, with a loss or gradient that is not finite."""
            loss = super().compute_objectives(predictions, batch, stage)
            if stage != sb.Stage.TRAIN:
                return loss
            fault = self.active("loss")
            if fault is not None:
                loss = loss * float(fault["value"])
            fault = self.active("gradient")
            if fault is not None:
                weight = next(iter(self.hparams.model.parameters())).flatten()
                # A term of zero with an infinite slope
                loss = loss + (weight[0] - weight[0].detach()).sqrt()
            return loss

        def on_stage_start(self, stage, epoch=None):
            """Change a weight or send a signal before validation."""
            super().on_stage_start(stage, epoch)
            if stage == sb.Stage.VALID:
                self.before = _random_states()
                fault = self.active("weight")
                if fault is not None:
                    weight = next(iter(self.hparams.model.parameters()))
                    with torch.no_grad():
                        weight.flatten()[0] = float(fault["value"])
                fault = self.active("signal in validation")
                if fault is not None:
                    os.kill(os.getpid(), signal.SIGTERM)

        def on_stage_end(self, stage, *args):
            """Record whether the evaluation has drawn random numbers."""
            super().on_stage_end(stage, *args)
            if stage == sb.Stage.VALID:
                # The test subset has been scored, too, and a checkpoint saved
                drawn = self.before != _random_states()
                folder = Path(self.hparams.output_folder)
                with open(folder / "drawn", "a") as file:
                    file.write(f"{drawn}\n")

        def on_fit_start(self):
            """Arrange signals during the save of the weights."""
            super().on_fit_start()

            def trap(*_):
                if self.active("signal in save"):
                    os.kill(os.getpid(), signal.SIGTERM)
                    os.kill(os.getpid(), signal.SIGUSR1)

            self.hparams.model.register_state_dict_post_hook(trap)

        def fit(self, *args, **kwargs):
            """Train, write the hashes, and end the process."""
            if any(fault["kind"] == "signal before" for fault in faults):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            super().fit(*args, **kwargs)
            found = {
                name: _digest(one.state_dict())
                for name, one in self.checkpointer.recoverables.items()
                if hasattr(one, "state_dict")
            }
            path = Path(self.hparams.output_folder, f"final{rank}.json")
            path.write_text(json.dumps(found))
            sys.exit(0)

    if any(fault["kind"] == "unguarded" for fault in faults):
        # Use SpeechBrain's own methods
        for name in ("check_loss_isfinite", "on_fit_batch_start"):
            setattr(Faulty, name, getattr(sb.Brain, name))

        def step(self):
            sb.Brain.optimizers_step(self)
            self.stepped = True

        Faulty.optimizers_step = step
    for fault in faults:
        if fault["kind"] == "global batch":
            _fix_batches(recipe, fault["sizes"])
    recipe.EmotionBrain = Faulty
    recipe.main()


def _fix_batches(recipe, sizes):
    """Fix the global batches, for any number of ranks."""
    import torch

    load, world = recipe.load_hparams, int(os.environ.get("WORLD_SIZE", 1))
    sizes = [sum(sizes)] if world == 1 else sizes

    def load_unshuffled(*args):
        # The Brain reads whether to shuffle the batches between the ranks
        return {**load(*args), "sorting": "ascending"}

    def options(hparams, dataset):
        batches, first = [], 0
        while first + sum(sizes) <= len(dataset):
            for size in sizes:
                batches.append(list(range(first, first + size)))
                first += size
        return {"num_workers": 0, "batch_sampler": batches}

    recipe.load_hparams, recipe.data.loader_options = load_unshuffled, options
    # In the corpus all classes are as frequent
    recipe.class_weights = lambda _, labels: 1.0 + torch.arange(len(labels))


if __name__ == "__main__":
    main()
