"""The command ``dslstm train``: train and evaluate a system."""

import textwrap

import click

from speechbrain_dslstm.cli.scripts import run_script, script_command

HELP = """\
Usage: dslstm train SYSTEM [--key=value ...]

  Train and evaluate a system on a corpus. SYSTEM is one of those below, or a
  YAML of your own, which may include the package's recipe.yaml ("dslstm recipe"
  writes all files out). The same command again resumes a run that was stopped.
  The output folder, runs/SYSTEM/CORPUS/PROTOCOL/NORMALIZATION/foldN_seedS,
  receives the results, the predictions and model/ for "dslstm classify -m".

Examples:
  dslstm train dual_level
  dslstm train dual_level --corpus=emodb --data_folder=EMODB --fold=1
  torchrun --nproc_per_node=2 -m speechbrain_dslstm.cli train dual_level ...

Options of SpeechBrain, such as --device=cuda:1, --precision=bf16, --test_only,
--debug, --noprogressbar and --grad_accumulation_factor=4, can be given, too.
"""
WIDTH = 79
COLUMN = 34


@script_command("train", "Train and evaluate a system on a corpus.")
def train(arguments: tuple[str, ...]) -> None:
    """Train and evaluate a system on a corpus."""
    given = [one for one in arguments if one not in ("-h", "--help")]
    if len(given) < len(arguments):
        show_help(given)
        return
    if all(one.startswith("--") for one in given):
        raise click.UsageError(
            "name a system, such as dual_level, or a YAML",
            click.get_current_context(),
        )
    run_script("train.py", "dslstm train", arguments)


def show_help(given: list[str]) -> None:
    """Print the systems and keys, or those of the system that is given."""
    from speechbrain_dslstm.hparams import included_file, recipe_root
    from speechbrain_dslstm.settings.documentation import (
        describe_keys,
        find_systems,
        find_yaml,
        is_plain,
        summarize,
    )

    click.echo(HELP)
    names = [one for one in given if not one.startswith("--")]
    if names:
        path = find_yaml(names[0])
        keys = describe_keys(path, included_file(path))
        click.echo(f"Keys of {path.stem} and their values:")
    else:
        click.echo("Systems:")
        for name, path in find_systems().items():
            _show(f"  {name}", summarize(path), 22)
        path = recipe_root() / "hparams" / "recipe.yaml"
        keys = describe_keys(find_systems()["dual_level"], path)
        click.echo('\nKeys, as in dual_level ("dslstm train SYSTEM --help"):')
    section = None
    for key in sorted(keys.values(), key=lambda key: bool(key.section)):
        if not is_plain(key):
            continue
        if key.section != section:
            section = key.section
            click.echo(f"\n{textwrap.fill(section, WIDTH)}")
        _show(f"  --{key.name}={key.value}", key.comment, COLUMN)
    others = [key.name for key in keys.values() if not is_plain(key)]
    text = "Objects, which a YAML builds: " + ", ".join(others)
    click.echo(f"\n{textwrap.fill(text, WIDTH)}")


def _show(left: str, right: str, column: int) -> None:
    """Print a name and its text, wrapped into a column."""
    indent = " " * column
    text = textwrap.fill(
        right, WIDTH, initial_indent=indent, subsequent_indent=indent
    )
    if len(left) < column - 1:
        click.echo((left.ljust(column) + text[column:]).rstrip())
    else:
        click.echo(left)
        if right:
            click.echo(text)
