"""Two nodes compute what one does, also when one of them is lost.

The nodes are two launchers on two addresses of the loopback, with a file system
in common.
"""

import psutil
import pytest
import step_faults
from nightly import nightly

OPTIONS = ["--number_of_epochs=2", "--ckpt_interval_steps=2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder that the first run fills with the synthetic corpus."""
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture
def nodes(corpus, tmp_path):
    """Start the launcher of a node; all are ended after the test."""
    port, started = step_faults.free_port(), []

    def start(node):
        output = tmp_path / "nodes"
        options = {"node": node, "port": port}
        one = step_faults.start_node(corpus, output, *OPTIONS, **options)
        started.append(one)
        return one

    yield start
    for one in started:
        kill(one)


def kill(launcher):
    """End a launcher and its ranks at once, as a node that loses its power."""
    try:
        family = psutil.Process(launcher.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    launcher.kill()
    for one in family:
        one.kill()
    launcher.wait()


def consoles(output):
    return "".join(one.read_text() for one in sorted(output.glob("console*")))


def finish(launchers, output):
    """Wait for both launchers; return what the run has left."""
    for one in launchers:
        one.wait(300)
    codes = [one.returncode for one in launchers]
    assert codes == [0, 0], consoles(output)
    return step_faults.Result(0, consoles(output), output)


@nightly
@pytest.mark.parametrize("lost", [False, True])
def test_two_nodes_are_one(corpus, tmp_path, nodes, lost):
    """The weights and all else that is saved are equal, bit for bit."""
    one = step_faults.train(corpus, tmp_path / "one", *OPTIONS, ranks=2)
    assert one.code == 0, one.console
    output = tmp_path / "nodes"
    first, second = nodes(0), nodes(1)
    if lost:
        # In epoch 1, with a checkpoint after step 2
        step_faults.at_step(second, output, 4, rank=1)
        kill(second)
        second = nodes(1)
    two = finish([first, second], output)
    assert [row["epoch"] for row in two.epochs] == [1, 2]
    for expected, row in zip(one.epochs, two.epochs, strict=True):
        assert row["train_loss"] == expected["train_loss"]
        assert row["valid"] == expected["valid"]
    for rank in range(2):
        assert two.hashes(rank) == one.hashes(rank)
