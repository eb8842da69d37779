"""The command ``dslstm recipe``: the recipe's files, to be edited."""

import os
import shutil
import tempfile
from pathlib import Path

import click

from speechbrain_dslstm.cli.options import command

EXAMPLES = """
dslstm recipe mine
dslstm train mine/hparams/dual_level.yaml --corpus=emodb --data_folder=EMODB
"""
FOLDERS = {
    "hparams": ("*.yaml", "README.md"),
    "recipes/emotion_recognition": ("*.py", "README.md"),
}


@command("recipe", EXAMPLES)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def recipe(folder: Path) -> None:
    """Write the recipe's YAMLs and scripts to a FOLDER.

    They are yours to edit. Nothing is overwritten.
    """
    from speechbrain_dslstm.hparams import recipe_root

    for name in ("hparams", "recipes"):
        if os.path.lexists(folder / name):
            raise click.ClickException(
                f"{folder / name} exists, and nothing is overwritten: choose "
                "another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".recipe-", dir=folder) as aside:
        for name, patterns in FOLDERS.items():
            place = Path(aside, name)
            place.mkdir(parents=True)
            for pattern in patterns:
                for path in sorted((recipe_root() / name).glob(pattern)):
                    shutil.copyfile(path, place / path.name)
        # Whole or not at all
        for name in ("hparams", "recipes"):
            os.rename(Path(aside, name), folder / name)
    click.echo(f"{folder / 'hparams'}\n{folder / 'recipes'}")
