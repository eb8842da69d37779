"""The group of commands, and errors as one line.

Exit status 0: each file has an emotion, or a reason why it has none. 1: a file
could not be read, or the output was closed. 2: a wrong command line, a missing
model or another error, which is one line on standard error.
"""

import codecs
import sys

import click

from speechbrain_dslstm.cli.adapt import adapt
from speechbrain_dslstm.cli.classify import classify
from speechbrain_dslstm.cli.classify_dataset import classify_dataset
from speechbrain_dslstm.cli.cross_validate import cross_validate
from speechbrain_dslstm.cli.explain import explain
from speechbrain_dslstm.cli.export import export
from speechbrain_dslstm.cli.info import info
from speechbrain_dslstm.cli.mic import mic
from speechbrain_dslstm.cli.recipe import recipe
from speechbrain_dslstm.cli.report import report
from speechbrain_dslstm.cli.serve import serve
from speechbrain_dslstm.cli.shards import shards
from speechbrain_dslstm.cli.stream import stream
from speechbrain_dslstm.cli.train import train


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    commands=[
        *(classify, classify_dataset, stream, mic, serve),
        *(adapt, export, info, explain),
        *(train, cross_validate, shards, report, recipe),
    ],
    epilog="Each command has its own --help with examples.",
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(package_name="speechbrain-dslstm")
@click.pass_context
def dslstm(context: click.Context) -> None:
    """Speech emotion recognition with the Dual-Sequence LSTM."""
    codecs.register_error("dslstm", print_anyway)
    sys.stdout.reconfigure(errors="dslstm")
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def print_anyway(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace letters that the console's code page lacks by escape codes.

    Bytes of file names that are not valid UTF-8 are printed as they were given.
    """
    letters = error.object[error.start : error.end]
    number = ord(letters[0])
    if 0xDC80 <= number <= 0xDCFF:
        return bytes([number - 0xDC00]), error.start + 1
    escaped = letters[0].encode("ascii", "backslashreplace").decode()
    return escaped, error.start + 1


def main() -> None:
    """Run the command line, with errors as one line and without a traceback."""
    try:
        status = dslstm.main(prog_name="dslstm", standalone_mode=False)
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "dslstm"
        status = _complain(f"{error.format_message()} (see {command} --help)")
    except click.ClickException as error:
        status = _complain(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        status = 130
    except (ValueError, OSError, ImportError) as error:
        status = _complain(str(error))
    sys.exit(status)


def _complain(message: str) -> int:
    """Print an error as one line; return the exit status."""
    click.echo(f"dslstm: {' '.join(message.split())}", err=True)
    return 2
