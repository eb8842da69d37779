"""Run an exported ONNX file as an ``EmotionClassifier``, with the same checks."""

import json
from pathlib import Path

import torch

from speechbrain_dslstm.features.active_speech import ActiveSpeech
from speechbrain_dslstm.inference.classifier import EmotionClassifier
from speechbrain_dslstm.lengths import to_counts
from speechbrain_dslstm.pretrained.model_folder import make_label_encoder
from speechbrain_dslstm.utils.threads import count_cpus

__all__ = ["load_onnx"]


def require(*names: str) -> None:
    """Raise ``ImportError`` with a remedy if one of these libraries is missing."""
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(
                f'{name} is missing: pip install "speechbrain-dslstm[export]"'
            ) from error


class ONNXModel(torch.nn.Module):
    """Waveforms and lengths -> log-posteriors, computed by onnxruntime."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        require("onnxruntime")
        import onnxruntime

        path = str(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or min(
            torch.get_num_threads(), count_cpus()
        )
        state = onnxruntime.capi.onnxruntime_pybind11_state
        try:
            self.session = onnxruntime.InferenceSession(path, options)
        except state.NoSuchFile as error:
            raise FileNotFoundError(f"no model file {path}") from error
        except (state.InvalidProtobuf, state.InvalidGraph, state.Fail) as error:
            raise ValueError(f"{path} is no ONNX model: {error}") from error
        meta = self.session.get_modelmeta().custom_metadata_map
        inputs = [value.name for value in self.session.get_inputs()]
        known = {"labels", "sample_rate"} <= meta.keys()
        if inputs != ["wavs", "counts"] or not known:
            raise ValueError(
                f"{path} was not written by export_onnx: expected the inputs "
                "wavs and counts and the metadata labels and sample_rate, got "
                f"the inputs {inputs} and the metadata {sorted(meta)}"
            )
        self.labels = json.loads(meta["labels"])
        self.sample_rate = int(meta["sample_rate"])
        self.dimensions = json.loads(meta.get("dimensions", "[]"))
        self.active_speech = None
        if "active_speech" in meta:
            settings = json.loads(meta["active_speech"])
            self.active_speech = ActiveSpeech(**settings)

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Waveforms [batch, samples] in [-1, 1] -> log-posteriors [batch, n_classes].

        ``wav_lens``, [batch], are relative lengths (floats) or sample counts
        (integers). The temperature is applied already.
        """
        return self._run(wavs, wav_lens)[0]

    def predict(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-posteriors, and values [batch, dimensions]; see ``forward``."""
        found, values = self._run(wavs, wav_lens)
        return found, values

    def _run(self, wavs, wav_lens):
        if wavs.dim() != 2 or not wavs.numel():
            raise ValueError(
                f"expected waveforms [batch, samples], got {list(wavs.shape)}"
            )
        counts = to_counts(wav_lens, wavs.shape[1], len(wavs))
        if self.active_speech is not None:
            wavs, counts = self.active_speech(wavs, counts)
        values = {"wavs": wavs.float(), "counts": counts}
        inputs = {name: value.cpu().numpy() for name, value in values.items()}
        return [torch.from_numpy(v) for v in self.session.run(None, inputs)]


def load_onnx(
    path: str | Path, threads: int | None = None
) -> EmotionClassifier:
    """Load an exported model as a classifier of files, batches and folders.

    It runs on the CPU and has the same checks of the audio and all methods but
    ``stream``.

    Arguments
    ---------
    path
        A file that ``export_onnx`` or ``quantize_onnx`` wrote.
    threads
        Threads of onnxruntime; if left out, those of torch, at most the CPUs.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        There is no such file; it is no model of whole utterances; onnxruntime
        is not installed.

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
    speechbrain_dslstm.audio.checks.AudioError: NaN or infinite samples in the batch
    """
    model = ONNXModel(path, threads)
    return EmotionClassifier.from_model(
        model, make_label_encoder(model.labels), model.sample_rate
    )
