"""The command ``dslstm mic``: answers while somebody speaks into a microphone."""

import queue
import shutil
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import click

from speechbrain_dslstm.cli.live import (
    Stoppable,
    live_options,
    open_stream,
    print_json,
    to_channel,
)
from speechbrain_dslstm.cli.options import (
    ANY_SOUND,
    JSON,
    MODEL_OF_STREAMS,
    NORMALIZATION,
    TRUST,
    command,
    load_classifier,
)

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = """
dslstm mic
dslstm mic --list-devices
dslstm mic --device 3 --json
"""
LONGEST_QUEUE = 30.0  # seconds that may wait for the model
BLOCK = 0.1  # seconds that the device hands over at a time


@command("mic", EXAMPLES)
@MODEL_OF_STREAMS
@TRUST
@click.option(
    "--device", metavar="NAME|N", help="Microphone, by its number or name."
)
@click.option(
    "--list-devices", is_flag=True, help="Show the devices and do no more."
)
@click.option(
    "--channels",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Channels to record.",
)
@live_options
@NORMALIZATION
@JSON
@ANY_SOUND
def mic(
    model,
    trusted,
    device,
    list_devices,
    channels,
    every,
    window,
    decay,
    whole,
    channel,
    normalization,
    as_json,
    any_sound,
):
    """Classify speech from a microphone until Ctrl-C is pressed.

    One line shows the posteriors, with --json one line for each answer. The
    answer is for the last seconds, or with --whole for all audio so far.
    """
    sounddevice = load_sounddevice()
    if list_devices:
        click.echo(str(sounddevice.query_devices()))
        return
    channel = to_channel(channel)
    classifier = load_classifier(model, trusted)
    live = open_stream(
        classifier, window, decay, whole, normalization, every, any_sound
    )
    line = LiveLine(sys.stdout.isatty())
    write = print_json if as_json else line.write
    with (
        Stoppable() as stop,
        line,
        Microphone(sounddevice, device, channels) as microphone,
    ):
        click.echo("dslstm: listening; Ctrl-C ends", err=True)
        blocks = stop.read(microphone.blocks(stop))
        source = microphone.rate, channels, channel, "the microphone"
        for row in live.rows(blocks, *source):
            write(row)
    if microphone.lost:
        click.echo(
            f"dslstm: {microphone.lost} blocks of audio were lost, because the "
            "machine was too slow; try a larger --every",
            err=True,
        )


def load_sounddevice() -> ModuleType:
    """Import sounddevice, or say which command installs what is missing."""
    try:
        import sounddevice
    except ImportError as error:
        raise click.ClickException(
            'sounddevice is missing: pip install "speechbrain-dslstm[mic]"'
        ) from error
    # The wheels for Linux do not hold the library
    except OSError as error:
        raise click.ClickException(
            f"{error}: apt install libportaudio2 (Debian, Ubuntu), or install "
            "the package portaudio of your system"
        ) from error
    return sounddevice


class Microphone:
    """Records from a device in blocks of 0.1 s, float32 [samples, channels]."""

    def __init__(
        self, sounddevice: ModuleType, device: str | None, channels: int
    ) -> None:
        self.lost = 0
        self._queue = queue.Queue(round(LONGEST_QUEUE / BLOCK))
        if device is not None and device.isdecimal():
            device = int(device)
        try:
            found = sounddevice.query_devices(device, "input")
            self.rate = round(found["default_samplerate"])
            self._stream = sounddevice.InputStream(
                samplerate=self.rate,
                blocksize=round(BLOCK * self.rate),
                device=device,
                channels=channels,
                dtype="float32",
                callback=self._receive,
            )
        except (sounddevice.PortAudioError, ValueError) as error:
            raise click.ClickException(
                f"cannot record: {error}; dslstm mic --list-devices shows the "
                "devices"
            ) from error

    def __enter__(self) -> "Microphone":
        self._stream.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def _receive(self, block, frames, time, status):
        """Queue a block; the device calls this in a thread of its own."""
        if status.input_overflow:
            self.lost += 1
        try:
            # The device uses its memory again
            self._queue.put_nowait(block.copy())
        except queue.Full:
            self.lost += 1

    def blocks(self, stop: Stoppable) -> Iterator["np.ndarray"]:
        """Yield blocks until Ctrl-C is pressed or the device ends."""
        while not stop.stopped:
            try:
                yield self._queue.get(timeout=0.2)
            except queue.Empty:
                if not self._stream.active:
                    return


class LiveLine:
    """Shows the last row: on a terminal in one line, else line by line."""

    def __init__(self, terminal: bool) -> None:
        self.terminal = terminal

    def __enter__(self) -> "LiveLine":
        return self

    def __exit__(self, *error: object) -> None:
        if self.terminal:
            click.echo()

    def write(self, row: dict) -> None:
        """Show a row."""
        text = f"{row['seconds']:7.1f} s  "
        if row.get("reason"):
            text += f"({row['reason']})"
        else:
            ranked = sorted(row["posteriors"].items(), key=lambda one: -one[1])
            text += "  ".join(f"{name} {value:.2f}" for name, value in ranked)
            for name, value in row.get("dimensions", {}).items():
                text += f"  {name} {value:+.2f}"
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            # Back to the first column, and clear the rest of the line
            click.echo(f"\r{text[:width]}\x1b[K", nl=False)
        else:
            click.echo(text)
        sys.stdout.flush()
