"""Runs a script of the recipe as the command ``dslstm``, from any folder."""

import logging
import sys
import types
from collections.abc import Callable, Sequence

import click


def script_command(name: str, help_line: str) -> Callable:
    """Make the decorator of a command whose arguments all go to a script."""
    settings = {"ignore_unknown_options": True, "help_option_names": []}
    make = click.command(name, context_settings=settings, help=help_line)
    argument = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    return lambda function: make(argument(function))


def run_script(
    script: str, command: str, arguments: Sequence[str], examples: str = ""
) -> None:
    """Run a script of the recipe as ``__main__``, named as the ``command``.

    An error is one line; the run's log.txt, if there is one, has the traceback.
    The script's help is followed by the examples.
    """
    # Not at the top, as "dslstm --help" need not load it
    from speechbrain_dslstm.hparams import recipe_root

    folder = recipe_root() / "recipes" / "emotion_recognition"
    path = folder / script
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    # A module in its place, as workers load the file of the main module
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    sys.modules["__main__"] = module
    # Not runpy, which would put the path in place of the command
    sys.argv = [command, *arguments]
    # As Python does for a script: its neighbours can be imported
    sys.path.insert(0, str(folder))
    try:
        exec(code, module.__dict__)
    except (ValueError, OSError, ImportError):
        logging.getLogger(__name__).debug("the run failed", exc_info=True)
        raise
    except SystemExit as stop:
        if examples and {"-h", "--help"} & {*arguments}:
            lines = "\n  ".join(examples.strip().splitlines())
            click.echo(f"\nExamples:\n  {lines}")
        if isinstance(stop.code, str):
            raise click.ClickException(stop.code) from stop
        raise
