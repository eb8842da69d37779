"""Export of a trained model from the waveform to the log-posteriors.

``export_onnx`` writes a graph for whole utterances of any batch size and
length, ``export_step_onnx`` one for the next piece of a stream. Both hold the
features, the recurrences as Scan and LSTM operators, and the temperature, and
run without this package. ``quantize_onnx`` makes the weights 8-bit integers.
All need the libraries of ``pip install "speechbrain-dslstm[export]"``.
"""

import json
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from speechbrain_dslstm.export.onnx_runtime import require
from speechbrain_dslstm.export.stream_graph import ExportableStep
from speechbrain_dslstm.export.utterance_graph import ExportableClassifier
from speechbrain_dslstm.inference.classifier import EmotionClassifier
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.utils.files import check_output, new_file

__all__ = ["export_onnx", "export_step_onnx", "export_torch", "quantize_onnx"]

OPSET = 20


def export_torch(classifier: EmotionClassifier) -> ExportedProgram:
    """Export a model of whole utterances with ``torch.export``.

    The program maps waveforms [batch, samples] and sample counts [batch] of any
    batch size and length to log-posteriors [batch, n_classes];
    ``torch.export.save`` writes it to a file. Torch adds a guard on the memory
    layout that rejects a batch of one, though the result is right: use
    ``.module(check_guards=False)``.

    Arguments
    ---------
    classifier
        The model, on the CPU.

    Raises
    ------
    ValueError
        The model is not on the CPU, or the export does not support a part of it.

    Example
    -------
    >>> from speechbrain_dslstm.pretrained import make_label_encoder
    >>> classifier = EmotionClassifier.from_model(
    ...     DualLevelClassifier(2, p=0.0), make_label_encoder(["a", "b"]), 16000
    ... )
    >>> program = export_torch(classifier)
    >>> wavs, counts = torch.randn(3, 20000), torch.tensor([20000, 9000, 400])
    >>> program.module(check_guards=False)(wavs, counts).shape
    torch.Size([3, 2])
    """
    return _trace(classifier, onnx=False)


def export_onnx(
    classifier: EmotionClassifier, path: str | Path, overwrite: bool = False
) -> Path:
    """Write a model of whole utterances as ONNX, and return the path.

    Inputs: "wavs", float32 [batch, samples] in [-1, 1] at the model's rate;
    "counts", int64 [batch], valid samples. Output: "log_posteriors", float32
    [batch, n_classes]; NaN for an item with NaN, infinity or samples above
    1000, for which ``load_onnx`` raises an error. A model with dimensions has
    the output "dimensions", [batch, dimensions], too. The file's metadata holds
    "labels" and "dimensions" (JSON) and "sample_rate". A model with
    ``active_speech`` has its settings there, too: the graph expects waveforms
    that are cut already, as ``features.ActiveSpeech(**settings)`` and
    ``load_onnx`` do.

    Arguments
    ---------
    classifier
        The model, on the CPU.
    path
        The file to write; it appears whole or not at all.
    overwrite
        Replace a file of that name.

    Raises
    ------
    FileExistsError, ValueError, ImportError
        There is such a file; as ``export_torch``; onnx or onnxscript is not installed.

    Example
    -------
    >>> from speechbrain_dslstm.pretrained import make_label_encoder
    >>> classifier = EmotionClassifier.from_model(
    ...     DualLevelClassifier(2, p=0.0), make_label_encoder(["a", "b"]), 16000
    ... )
    >>> path = export_onnx(classifier, getfixture("tmp_path") / "model.onnx")
    >>> import onnxruntime
    >>> [put.name for put in onnxruntime.InferenceSession(path).get_inputs()]
    ['wavs', 'counts']
    """
    require("onnx", "onnxscript")
    check_output(path, overwrite)
    program = _trace(classifier, onnx=True)
    inputs = ["wavs", "counts"]
    return _write(program, path, classifier, inputs, [], overwrite)


def export_step_onnx(
    classifier: EmotionClassifier, path: str | Path, overwrite: bool = False
) -> Path:
    """Write one step of a stream as ONNX, and return the path.

    Inputs: "chunk", float32 [batch, samples] of exactly "samples_per_step"
    samples; "step", int64 [], which counts from 0; and the states, which start
    as zeros. Outputs: "log_posteriors" [batch, n_classes] of all audio so far,
    NaN until every branch has received a frame; "dimensions", if the model has
    any; then each state under the name of its input with "_out". The metadata
    holds "labels", "sample_rate" and "samples_per_step", and "active_speech" as
    in ``export_onnx``: the chunks must hold active speech only, as
    ``inference.active_stream.ActiveFront`` passes it on.

    Arguments
    ---------
    classifier
        A model on the CPU that ``stream`` accepts; a model that centres each
        utterance after ``with_normalization("running")``.
    path
        The file to write; it appears whole or not at all.
    overwrite
        Replace a file of that name.

    Raises
    ------
    FileExistsError, ValueError, ImportError
        There is such a file; as ``export_onnx``; or the model cannot be streamed.

    Example
    -------
    >>> from speechbrain_dslstm.inference import load_safe
    >>> classifier = load_safe("pretrained/emotion-dslstm-emodb")
    >>> export_step_onnx(classifier, "step.onnx")
    Traceback (most recent call last):
    ValueError: this model subtracts each utterance's own mean, which a stream ...
    """
    require("onnx", "onnxscript")
    check_output(path, overwrite)
    model = _on_cpu(classifier)
    module = ExportableStep(model, classifier.mods.classifier).eval()
    states = module.initial_state(batch=2)
    batch = Dim.DYNAMIC
    example = (torch.zeros(2, module.samples), torch.tensor(0), states)
    names = module.state_names
    axes = tuple({module.batch_axis(name): batch} for name in names)
    with _quiet():
        program = _export(module, example, ({0: batch}, None, axes))
    inputs = ["chunk", "step", *names]
    outputs = [f"{name}_out" for name in names]
    samples = str(module.samples)
    return _write(
        program,
        path,
        classifier,
        inputs,
        outputs,
        overwrite,
        samples_per_step=samples,
    )


def quantize_onnx(
    path: str | Path, quantized: str | Path, overwrite: bool = False
) -> Path:
    """Make the weights of an exported graph 8-bit integers; return the path.

    Activations are quantised on the fly, so no calibration data is needed;
    features and states stay floats. Measure the unweighted accuracy again, on
    your own data or with ``tests/benchmarks/deployment.py``.

    Arguments
    ---------
    path
        A file that ``export_onnx`` wrote.
    quantized
        The file to write; it appears whole or not at all.
    overwrite
        Replace a file of that name.

    Raises
    ------
    FileExistsError, ImportError
        There is such a file; onnx or onnxruntime is not installed.

    Example
    -------
    >>> import onnx.parser
    >>> text = '''<ir_version: 9, opset_import: ["" : 20]>
    ... small (float[1, 1, n, n] x, float[1, 1, 1, 1] w) => (float[1, 1, n, 1] y)
    ... <float[1, 1] two = {2.0}> { z = Conv(x, w)  y = MatMul(z, two) }'''
    >>> folder = getfixture("tmp_path")
    >>> onnx.save(onnx.parser.parse_model(text), folder / "a.onnx")
    >>> path = quantize_onnx(folder / "a.onnx", folder / "b.onnx")
    >>> "MatMulInteger" in [n.op_type for n in onnx.load(path).graph.node]
    True
    """
    require("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with new_file(quantized, overwrite) as temporary, _quiet():
        # Weights that the graph concatenates become constants first
        folded = temporary.with_name("folded.onnx")
        quant_pre_process(path, folded, skip_symbolic_shape=True)
        quantize_dynamic(
            folded,
            temporary,
            weight_type=QuantType.QInt8,
            # Integer convolutions are slower, and hold few of the weights
            op_types_to_quantize=["MatMul", "Gemm", "LSTM"],
            nodes_to_exclude=_feature_nodes(onnx.load(folded).graph),
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
    return Path(quantized)


def _trace(classifier: EmotionClassifier, onnx: bool) -> ExportedProgram:
    """Trace the graph of whole utterances, with ONNX's LSTM or a scan."""
    model = _on_cpu(classifier)
    batch = samples = Dim.DYNAMIC
    module = ExportableClassifier(model, classifier.mods.classifier, onnx)
    samples_traced = module.traced_samples
    counts = torch.tensor([samples_traced, samples_traced - 4000])
    example = torch.zeros(2, samples_traced), counts
    return _export(module, example, ({0: batch, 1: samples}, {0: batch}))


@torch.no_grad()
def _export(module, example, shapes):
    return torch.export.export(
        module, example, dynamic_shapes=shapes, strict=False
    )


def _on_cpu(classifier: EmotionClassifier) -> DualLevelClassifier:
    model = classifier.mods.embedding_model
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ValueError(
            f"the model to export is on {device}; load it with "
            'run_opts={"device": "cpu"}'
        )
    return model


def _translations():
    """ONNX forms of operators that torch's exporter lacks."""
    import onnx
    from onnxscript import opset20

    def hamming_window(length, periodic, **_):
        """Write the window as a constant: ONNX's own rounds 0.54 differently."""
        window = torch.hamming_window(length, periodic, dtype=torch.float64)
        array = onnx.numpy_helper.from_array(window.numpy())
        return opset20.Constant(value=array)

    return {torch.ops.aten.hamming_window.periodic: hamming_window}


def _feature_nodes(graph):
    """Names of the matrix products before the first learnt operator."""
    learnt, names = set(), []
    for node in graph.node:
        behind = not learnt.isdisjoint(node.input)
        if behind or node.op_type in ("Conv", "LSTM", "Scan"):
            learnt.update(node.output)
        elif node.op_type in ("MatMul", "Gemm"):
            names.append(node.name)
    return names


def _write(
    program, path, classifier, inputs, outputs, overwrite, **metadata: str
) -> Path:
    """Convert a traced program to ONNX and write it with its metadata.

    ``outputs`` are the names after those of the predictions.
    """
    predictions = ["log_posteriors"]
    if classifier.dimensions:
        predictions.append("dimensions")
        metadata["dimensions"] = json.dumps(classifier.dimensions)
    with _quiet():
        converted = torch.onnx.export(
            program,
            input_names=inputs,
            output_names=[*predictions, *outputs],
            opset_version=OPSET,
            custom_translation_table=_translations(),
            verbose=False,
        )
    # The exporter stores stack traces with the paths of this machine
    for node in converted.model.graph.all_nodes():
        node.metadata_props.clear()
    converted.model.metadata_props.update(
        labels=json.dumps(classifier.labels),
        sample_rate=str(classifier.hparams.sample_rate),
        **_active_speech(classifier),
        **metadata,
    )
    with new_file(path, overwrite) as temporary:
        converted.save(temporary)
    return Path(path)


def _active_speech(classifier):
    """Metadata of the cut that the caller of the graph must do."""
    speech = getattr(classifier.mods.embedding_model, "active_speech", None)
    if speech is None:
        return {}
    return {"active_speech": json.dumps(speech.get_config())}


@contextmanager
def _quiet():
    """Silence the warnings and logs of the exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
