"""The command ``dslstm export``: the model as one file."""

import io
from pathlib import Path

import click

from speechbrain_dslstm.cli.options import (
    MODEL,
    NORMALIZATION,
    TRUST,
    command,
    load_classifier,
)

EXAMPLES = """
dslstm export model.onnx
dslstm export small.onnx --int8
dslstm export step.onnx --step --normalization running
dslstm export model.pt2
"""


@command("export", EXAMPLES)
@click.argument("output", type=click.Path())
@MODEL
@TRUST
@click.option("--int8", is_flag=True, help="Store weights as 8-bit integers.")
@click.option("--step", is_flag=True, help="Export one step of a stream.")
@click.option("--force", is_flag=True, help="Overwrite OUTPUT.")
@NORMALIZATION
def export(output, model, trusted, int8, step, force, normalization):
    """Write the model to OUTPUT, a new file.

    This is an ONNX file (.onnx) or a torch.export program (.pt2) from the
    waveform to the posteriors.
    """
    from speechbrain_dslstm.utils.files import check_output, new_file

    output = Path(output)
    if output.suffix not in (".onnx", ".pt2"):
        raise click.UsageError(f"{output} must end in .onnx or .pt2")
    if output.suffix == ".pt2" and (int8 or step):
        raise click.UsageError("--int8 and --step require a .onnx file")
    # Before the seconds that the export takes
    check_output(output, force)

    import torch

    from speechbrain_dslstm.export import onnx_export as exporter

    classifier = load_classifier(model, trusted, "cpu").with_normalization(
        normalization
    )
    with new_file(output, force) as whole:
        if output.suffix == ".pt2":
            # In memory first: torch's own writer gives a full disk no name
            program = io.BytesIO()
            torch.export.save(exporter.export_torch(classifier), program)
            whole.write_bytes(program.getbuffer())
        else:
            write = exporter.export_step_onnx if step else exporter.export_onnx
            written = whole.with_suffix(".float.onnx") if int8 else whole
            write(classifier, written)
            if int8:
                exporter.quantize_onnx(written, whole)
    click.echo(f"{output}  {output.stat().st_size / 1e6:.2f} MB")
