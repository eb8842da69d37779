"""The command ``dslstm info``: what a model folder holds."""

import click

from speechbrain_dslstm.cli.options import command
from speechbrain_dslstm.pretrained.names import DEFAULT_MODEL

EXAMPLES = """
dslstm info runs/dual_level/emodb/session/training/fold0_seed1234/model
"""


@command("info", EXAMPLES)
@click.argument("model", default=DEFAULT_MODEL)
def info(model):
    """Show the classes, branches and sizes of a MODEL folder."""
    from speechbrain_dslstm.inference.classifier import load_safe
    from speechbrain_dslstm.inference.streaming import centres_utterances
    from speechbrain_dslstm.pretrained.card import read_card
    from speechbrain_dslstm.pretrained.safe_format import read_description
    from speechbrain_dslstm.pretrained.sources import find_folder

    folder = find_folder(model)
    if folder is None:
        raise click.ClickException(f"no model folder {model}")
    data = read_description(folder)
    classifier = load_safe(folder)
    loaded = classifier.mods.embedding_model
    parameters = sum(p.numel() for p in loaded.parameters())
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    branches = {
        type(branch).__name__: loaded.branch_weights[name]
        for name, branch in loaded.branches.items()
    }
    rows = {
        "folder": folder,
        "licence": read_card(folder).get("licence") or "see its README.md",
        "classes": ", ".join(data["labels"]),
        "sample rate": f"{data['sample_rate']} Hz",
        "branches": ", ".join(f"{n} ({w:g})" for n, w in branches.items()),
        "parameters": f"{parameters:,}",
        "size": f"{size / 1e6:.1f} MB",
        "temperature": f"{data['temperature']:.3f}",
        "utterance mean": (
            "subtracted (a stream without window: the running mean)"
            if centres_utterances(loaded)
            else "kept"
        ),
        "active speech": (
            "off (pauses count)"
            if loaded.active_speech is None
            else loaded.active_speech.extra_repr()
        ),
        "shortest clip": f"{loaded.min_samples / data['sample_rate']:.2f} s",
        "sha256": data["sha256"],
    }
    for name, value in rows.items():
        click.echo(f"{name:15} {value}")
