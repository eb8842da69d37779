"""An exported ONNX file behind the same calls, and the same gate, as torch."""

import json

import torch

from speechbrain_dslstm.inference.classifier import EmotionClassifier
from speechbrain_dslstm.lengths import to_counts
from speechbrain_dslstm.pretrained.model_folder import make_label_encoder

__all__ = ["ONNXModel", "load_onnx"]


class ONNXModel(torch.nn.Module):
    """Waveforms and lengths in, log-posteriors out, by onnxruntime.

    Arguments
    ---------
    path : str or pathlib.Path
        What ``export.export_onnx`` or ``export.quantize_onnx`` wrote.
    threads : int, optional
        Of onnxruntime; as many as torch has if left out.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is no model for whole utterances.
    ImportError
        onnxruntime is not installed.

    Example
    -------
    >>> ONNXModel("nowhere.onnx")
    Traceback (most recent call last):
    FileNotFoundError: no model nowhere.onnx
    """

    def __init__(self, path, threads=None):
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "onnxruntime is missing: pip install "
                '"speechbrain-dslstm[export]"'
            ) from error
        path = str(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        state = onnxruntime.capi.onnxruntime_pybind11_state
        try:
            self.session = onnxruntime.InferenceSession(path, options)
        except state.NoSuchFile as error:
            raise FileNotFoundError(f"no model {path}") from error
        except (state.InvalidProtobuf, state.InvalidGraph, state.Fail) as error:
            raise ValueError(f"{path} is no ONNX model: {error}") from error
        meta = self.session.get_modelmeta().custom_metadata_map
        inputs = [value.name for value in self.session.get_inputs()]
        if inputs != ["wavs", "counts"] or not {"labels", "sample_rate"} <= set(
            meta
        ):
            raise ValueError(
                f"{path} is not what export_onnx writes: its inputs are "
                f"{inputs}"
            )
        self.labels = json.loads(meta["labels"])
        self.sample_rate = int(meta["sample_rate"])

    def forward(self, wavs, wav_lens=None):
        """Log-posteriors of a batch.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1].
        wav_lens : torch.Tensor, [batch], optional
            Relative lengths (floats) or sample counts (integers).

        Returns
        -------
        torch.Tensor, float32, [batch, n_classes]
            Log-posteriors, temperature included.

        Raises
        ------
        ValueError
            No waveforms [batch, samples], or lengths that do not fit.
        """
        if wavs.dim() != 2 or not wavs.numel():
            raise ValueError(
                f"expected waveforms [batch, samples], got {list(wavs.shape)}"
            )
        counts = to_counts(wav_lens, wavs.shape[1], len(wavs))
        inputs = {
            "wavs": wavs.cpu().float().numpy(),
            "counts": counts.cpu().numpy(),
        }
        return torch.from_numpy(self.session.run(None, inputs)[0])


def load_onnx(path, threads=None):
    """Load an exported model as a classifier of files, batches and folders.

    Arguments
    ---------
    path : str or pathlib.Path
        What ``export.export_onnx`` or ``export.quantize_onnx`` wrote.
    threads : int, optional
        Of onnxruntime; as many as torch has if left out.

    Returns
    -------
    EmotionClassifier
        On the CPU; ``stream`` excepted, it has all calls, and each refuses
        what is no audio.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is no model for whole utterances.
    ImportError
        onnxruntime is not installed.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> from speechbrain_dslstm.export import export_onnx
    >>> made = EmotionClassifier.from_model(
    ...     DualLevelClassifier(2, p=0.0), make_label_encoder(["a", "b"]), 16000
    ... )
    >>> path = export_onnx(made, getfixture("tmp_path") / "model.onnx")
    >>> load_onnx(path).classify_batch(torch.full((1, 9000), torch.nan))
    Traceback (most recent call last):
    speechbrain_dslstm.audio.AudioError: NaN or infinite samples in the batch
    """
    model = ONNXModel(path, threads)
    return EmotionClassifier.from_model(
        model, make_label_encoder(model.labels), model.sample_rate
    )
