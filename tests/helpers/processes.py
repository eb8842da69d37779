"""Processes forked from a server that has imported everything.

Python's fork server imports torch and SpeechBrain once, so that a process
costs a tenth of a second and a test can kill thirty.
"""

import atexit
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed

from speechbrain_dslstm import DSLSTM

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "recipes" / "emotion_recognition"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["processes"])
TIMEOUT = 120
SMALL = [
    "--corpus=synthetic",
    "--corpus_options={speakers: 6, sentences: 1}",
    "--channels=[2, 2]",
    "--hidden_size=8",
    "--batch_size=2",
    "--number_of_epochs=3",
    "--test_every_epoch=False",
    "--ckpt_interval_minutes=0",
    "--ckpt_interval_steps=2",
    "--device=cpu",
    "--noprogressbar",
]


def warm_up():
    """Have the server import and compile what the first step needs."""
    import train  # noqa: F401

    net = DSLSTM(2, 2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    torch.optim.lr_scheduler.LambdaLR(optimizer, float)
    net(torch.rand(1, 3, 2), torch.rand(1, 3, 2))[0].sum().backward()
    optimizer.step()


class Process:
    """A process from the fork server, with the interface of ``Popen``.

    Its output goes to files, so that no full pipe can stop it.
    """

    def __init__(self, process, out, err):
        self._process, self._out, self._err = process, Path(out), Path(err)
        self.pid = process.pid

    @property
    def returncode(self):
        """Exit code, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def poll(self):
        """Return ``returncode``."""
        return self.returncode

    def wait(self, timeout=None):
        """Wait for the end, and return the exit code."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for the end, and return what was written to both streams."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self._out.read_text(), self._err.read_text()

    def send_signal(self, number):
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self):
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self):
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def script(path, *options, cwd=None, log=None, group=False, **environment):
    """Start a Python script as ``__main__``, with all imports done.

    Arguments
    ---------
    path : str or pathlib.Path
        The script.
    *options : str
        Its command line.
    cwd : str or pathlib.Path, optional
        Where it runs.
    log : str or pathlib.Path, optional
        File that gets both streams; they are apart without it.
    group : bool
        Whether it gets a process group of its own.
    **environment : str
        More environment variables.

    Returns
    -------
    Process
        It runs.
    """
    out = err = log
    if log is None:
        folder = tempfile.mkdtemp(prefix="streams-")
        out, err = Path(folder, "out"), Path(folder, "err")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for stream in {out, err}:
        Path(stream).touch()
    argv = [str(path), *map(str, options)]
    place = str(cwd or Path.cwd())
    process = start(
        run_script, argv, place, group, log=out, errors=err, more=environment
    )
    return Process(process, out, err)


def call(path, *options, code=0, timeout=300, **kwargs):
    """Run a script to its end (see ``script``), and return both streams."""
    process = script(path, *options, **kwargs)
    out, err = process.communicate(timeout)
    assert process.returncode == code, out + err
    return out, err


def run_script(argv, place, group):
    """In the new process, run a script as Python itself would."""
    # As from a terminal; a background job ignores SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if group:
        os.setsid()
    os.chdir(place)
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")


def start(
    target,
    *args,
    log=os.devnull,
    errors=None,
    rank=None,
    ranks=1,
    more=None,
):
    """Start a function in a process of its own.

    Arguments
    ---------
    target : callable
        Of a module in this folder.
    *args : tuple
        Its arguments.
    log : str or pathlib.Path
        Gets what it prints.
    errors : str or pathlib.Path, optional
        Gets its errors, instead of ``log``.
    rank : int, optional
        Its rank; every rank is started on its own.
    ranks : int
        How many there are.
    more : dict, optional
        More environment variables.

    Returns
    -------
    multiprocessing.Process
        It runs.
    """
    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": _search_path(),
        # Inherited by the server, which is started with the first process
        "DSLSTM_TEST_SERVER": "1",
    }
    if rank is not None:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
        }
    before = dict(os.environ)
    os.environ.update(environment)
    environment |= more or {}
    logs = str(log), str(errors or log)
    try:
        process = SERVER.Process(
            target=_run, args=(logs, environment, target, args)
        )
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def _search_path():
    paths = [str(REPOSITORY), str(RECIPE), str(Path(__file__).parent)]
    return os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])


def _run(logs, environment, target, args):
    """In the new process, redirect both streams and call the target."""
    os.environ.update(environment)
    for stream, path in zip((1, 2), logs, strict=True):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    torch.set_num_threads(1)
    # The default without a server; a test of other methods names them
    multiprocessing.set_start_method("fork", force=True)
    try:
        target(*args)
    except SystemExit:
        raise
    except BaseException:
        # SpeechBrain replaces the hook to log the error
        sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()


def finish(process, seconds=TIMEOUT):
    """Wait for the end of a process, and return its exit code, -9 if killed."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"not finished after {seconds} s")
    return process.exitcode


def wait_for(condition, process, seconds=TIMEOUT):
    """Wait until a condition holds while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None, "ended before it could be killed"
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.001)


def join_group(meeting):
    """Join the group of all ranks, if there are several."""
    if "RANK" in os.environ:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )


def command_line(corpus, output, options):
    """The arguments of a small run of train.py."""
    given = {one.split("=")[0] for one in options}
    return [
        str(RECIPE / "train.py"),
        str(REPOSITORY / "hparams" / "dual_level.yaml"),
        f"--data_folder={corpus}",
        f"--output_folder={output}",
        *(one for one in SMALL if one.split("=")[0] not in given),
        *options,
    ]


def prepare(corpus, output, options):
    """Run the preparation of train.py without the training."""
    import train

    arguments = command_line(corpus, output, options)[1:]
    hparams_file, _, overrides = train.parse_arguments(arguments)
    hparams = train.load_hparams(hparams_file, overrides)
    train.prepare_data(hparams)


def run_recipe(corpus, output, options, kill_at=None, meeting=None):
    """Run train.py, and kill it at a given moment if wanted.

    Arguments
    ---------
    corpus : str or pathlib.Path
        Data folder.
    output : str or pathlib.Path
        Output folder.
    options : list of str
        More options of the command line.
    kill_at : tuple, optional
        ("step", epoch, step) or ("boundary", epoch): after that step, or
        after the checkpoint at the end of that epoch.
    meeting : str or pathlib.Path, optional
        File through which ranks find each other.
    """
    import train

    sys.argv = command_line(corpus, output, options)
    if meeting is not None:
        sys.argv.append("--distributed_backend=gloo")
        # Instead of the rendezvous of torchrun
        train.init_group = lambda run_opts, timeout: join_group(meeting)
    # Skip seconds of drawing and listing that no test reads
    train.sb.utils.logger.get_environment_description = str
    for name in ("save_model", "show_model", "summarize_results"):
        setattr(train, name, lambda *args: None)
    train.write_results = lambda *args: {"calibration": {"temperature": 1}}
    if kill_at is not None:
        train.EmotionBrain = _killed(train.EmotionBrain, kill_at)
    train.main()


def _killed(brain, kill_at):
    """Derive a Brain that kills its process at a given moment."""
    what, epoch, *step = kill_at

    class Killed(brain):
        def on_fit_batch_start(self, batch, should_step):
            now = self.hparams.epoch_counter.current
            # By now the checkpoint of the step before is saved
            if what == "step" and [now, self.step - 1] == [epoch, *step]:
                os.kill(os.getpid(), 9)
            super().on_fit_batch_start(batch, should_step)

        def on_stage_end(self, stage, stage_loss, epoch_now=None):
            super().on_stage_end(stage, stage_loss, epoch_now)
            valid = stage == train_stage("VALID")
            if what == "boundary" and valid and epoch_now == epoch:
                os.kill(os.getpid(), 9)

    return Killed


def train_stage(name):
    """A stage of SpeechBrain's Brain."""
    import train

    return train.sb.Stage[name]


if os.environ.get("DSLSTM_TEST_SERVER"):
    warm_up()
