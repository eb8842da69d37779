"""The whole chain in one file: waveform in, log-posteriors out.

``export_onnx`` writes a graph for whole utterances of any batch size and
length, ``export_step_onnx`` one for the next piece of a stream; both hold the
features, the recurrences as Scan and LSTM operators, and the temperature, and
need nothing of this package where they run. ``quantize_onnx`` makes the weights
8-bit integers. The libraries are those of ``pip install
"speechbrain-dslstm[export]"``.
"""

import json
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from speechbrain_dslstm.export.stream_graph import ExportableStep
from speechbrain_dslstm.export.utterance_graph import ExportableClassifier

__all__ = ["export_onnx", "export_step_onnx", "export_torch", "quantize_onnx"]

OPSET = 20


def export_torch(classifier):
    """Export the chain with ``torch.export``.

    Arguments
    ---------
    classifier : EmotionClassifier
        The model.

    Returns
    -------
    torch.export.ExportedProgram
        Waveforms [batch, samples] and sample counts [batch] in,
        log-posteriors [batch, n_classes] out; of any batch size and length.
        ``torch.export.save`` writes it to a file. Torch notes the trace's
        layout of memory as a guard that a batch of one fails, though the
        answer is right: take ``.module(check_guards=False)``.

    Raises
    ------
    ValueError
        The model has a part that the export does not know.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier, EmotionClassifier
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


def export_onnx(classifier, path):
    """Write the chain for whole utterances as ONNX.

    Inputs: "wavs", float32 [batch, samples] in [-1, 1] at the model's rate;
    "counts", int64 [batch], valid samples. Output: "log_posteriors", float32
    [batch, n_classes], NaN for what is no audio (NaN, infinity, samples above
    1000); ``onnx_model.load_onnx`` has errors instead. The file's metadata holds "labels" (JSON) and
    "sample_rate".

    Arguments
    ---------
    classifier : EmotionClassifier
        The model.
    path : str or pathlib.Path
        The file.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        The model has a part that the export does not know.
    ImportError
        onnx and onnxscript are not installed.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier, EmotionClassifier
    >>> from speechbrain_dslstm.pretrained import make_label_encoder
    >>> classifier = EmotionClassifier.from_model(
    ...     DualLevelClassifier(2, p=0.0), make_label_encoder(["a", "b"]), 16000
    ... )
    >>> import onnxruntime
    >>> path = getfixture("tmp_path") / "model.onnx"
    >>> path = export_onnx(classifier, path)
    >>> session = onnxruntime.InferenceSession(path)
    >>> inputs = {"wavs": torch.randn(1, 9000).numpy()}
    >>> inputs["counts"] = torch.tensor([9000]).numpy()
    >>> session.run(None, inputs)[0].shape
    (1, 2)
    """
    _need_onnx()
    program = _trace(classifier, onnx=True)
    with _quiet():
        onnx_program = torch.onnx.export(
            program,
            input_names=["wavs", "counts"],
            output_names=["log_posteriors"],
            opset_version=OPSET,
            custom_translation_table=_translations(),
            verbose=False,
        )
    return _save(onnx_program, path, classifier, {})


def export_step_onnx(classifier, path):
    """Write one step of a stream as ONNX, with the state in and out.

    Inputs: "chunk", float32 [batch, samples] of exactly "samples_per_step"
    samples, "step", int64 [], which counts from 0, and states, which all begin
    with zeros. Outputs: "log_posteriors" [batch, n_classes] of all that was
    heard, then each state under the name of its input with "_out". The
    metadata holds "labels", "sample_rate" and "samples_per_step". Before every
    branch has had a frame the answer is NaN.

    Arguments
    ---------
    classifier : EmotionClassifier
        A model that ``stream`` accepts; one that centres each utterance
        after ``with_normalization("running")``.
    path : str or pathlib.Path
        The file.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        The model cannot be streamed, or has a part that the export does not
        know.
    ImportError
        onnx and onnxscript are not installed.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier, EmotionClassifier
    >>> from speechbrain_dslstm.pretrained import make_label_encoder
    >>> classifier = EmotionClassifier.from_model(
    ...     DualLevelClassifier(2, resize=[230, 120]),
    ...     make_label_encoder(["a", "b"]),
    ...     16000,
    ... )
    >>> export_step_onnx(classifier, "step.onnx")
    Traceback (most recent call last):
    ValueError: a stream cannot stretch "mel_x" to 230 frames: ...
    """
    _need_onnx()
    model = _on_cpu(classifier)
    module = ExportableStep(model, classifier.mods.classifier).eval()
    states = module.initial_state(batch=2)
    batch = torch.export.Dim.DYNAMIC
    example = (torch.zeros(2, module.samples), torch.tensor(0), states)
    names = module.state_names
    axes = tuple({module.batch_axis(name): batch} for name in names)
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            module,
            example,
            dynamic_shapes=({0: batch}, None, axes),
            strict=False,
        )
        onnx_program = torch.onnx.export(
            program,
            input_names=["chunk", "step", *names],
            output_names=["log_posteriors", *(f"{n}_out" for n in names)],
            opset_version=OPSET,
            custom_translation_table=_translations(),
            verbose=False,
        )
    more = {"samples_per_step": str(module.samples)}
    return _save(onnx_program, path, classifier, more)


def quantize_onnx(path, quantized):
    """Make the weights of an exported graph 8-bit integers.

    Activations are quantised as they come, so that no calibration data is
    needed; features and states stay floats. Measure the unweighted accuracy
    again with ``tests/benchmarks/deployment.py`` or your own data.

    Arguments
    ---------
    path : str or pathlib.Path
        What ``export_onnx`` wrote.
    quantized : str or pathlib.Path
        The new file.

    Returns
    -------
    pathlib.Path
        The new file.

    Raises
    ------
    ImportError
        onnxruntime is not installed.

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
    _need_onnx("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder, _quiet():
        # Weights that are joined in the graph become constants first
        folded = Path(folder, "folded.onnx")
        quant_pre_process(path, folded, skip_symbolic_shape=True)
        quantize_dynamic(
            folded,
            quantized,
            weight_type=QuantType.QInt8,
            # Convolutions as integers are slower, and hold few weights
            op_types_to_quantize=["MatMul", "Gemm", "LSTM"],
            nodes_to_exclude=_feature_nodes(onnx.load(folded).graph),
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
    return Path(quantized)


def _trace(classifier, onnx):
    """The chain for whole utterances, with Scan or ONNX's LSTM."""
    model = _on_cpu(classifier)
    batch = samples = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 16000), torch.tensor([16000, 12000])
    module = ExportableClassifier(model, classifier.mods.classifier, onnx)
    with torch.no_grad():
        return torch.export.export(
            module,
            example,
            dynamic_shapes=({0: batch, 1: samples}, {0: batch}),
            strict=False,
        )


def _on_cpu(classifier):
    model = classifier.mods.embedding_model
    if next(model.parameters()).device.type != "cpu":
        raise ValueError('load the model with run_opts={"device": "cpu"}')
    return model


def _need_onnx(*names):
    for name in names or ("onnx", "onnxscript"):
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(
                f'{name} is missing: pip install "speechbrain-dslstm[export]"'
            ) from error


def _translations():
    """What torch's exporter has no operator for."""
    import onnx
    from onnxscript import opset20

    def hamming_window(length, periodic, **_):
        """The window as a constant; ONNX's own rounds 0.54 differently."""
        window = torch.hamming_window(length, periodic, dtype=torch.float64)
        array = onnx.numpy_helper.from_array(window.numpy())
        return opset20.Constant(value=array)

    return {torch.ops.aten.hamming_window.periodic: hamming_window}


def _feature_nodes(graph):
    """Names of the matrix products before anything that was learnt."""
    learnt, names = set(), []
    for node in graph.node:
        behind = not learnt.isdisjoint(node.input)
        if behind or node.op_type in ("Conv", "LSTM", "Scan"):
            learnt.update(node.output)
        elif node.op_type in ("MatMul", "Gemm"):
            names.append(node.name)
    return names


def _save(onnx_program, path, classifier, more):
    path = Path(path)
    # The exporter notes stack traces, with the paths of this machine
    for node in onnx_program.model.graph.all_nodes():
        node.metadata_props.clear()
    onnx_program.model.metadata_props.update(
        {
            "labels": json.dumps(classifier.labels),
            "sample_rate": str(classifier.hparams.sample_rate),
            **more,
        }
    )
    onnx_program.save(path)
    return path


@contextmanager
def _quiet():
    """Hush what the exporters say of themselves."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
