"""Classify emotions from waveforms or files with a trained model.

``EmotionClassifier.from_hparams`` loads a model folder of any source; its YAML
is a program that may run any code. ``load_safe`` loads a folder from an
untrusted source as data only.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.interfaces import Pretrained

from speechbrain_dslstm.audio.channels import Channel
from speechbrain_dslstm.audio.checks import (
    LONGEST_CLIP,
    check_samples,
)
from speechbrain_dslstm.audio.inputs import AudioInput, check_batch, to_source
from speechbrain_dslstm.audio.reading import load_audio
from speechbrain_dslstm.features.normalization import RunningNormalization
from speechbrain_dslstm.inference.adaptation import Adaptation, adapt
from speechbrain_dslstm.inference.answer import Answer
from speechbrain_dslstm.inference.files import (
    LONGEST_FILE,
    FileResults,
    classify_files,
)
from speechbrain_dslstm.inference.long_recordings import (
    Segment,
    check_threshold,
    classify_long,
)
from speechbrain_dslstm.inference.speech_activity import (
    NoSpeechError,
    check_speech,
    measure_activity,
)
from speechbrain_dslstm.inference.streaming import (
    EmotionStream,
    centres_utterances,
    with_normalization,
)
from speechbrain_dslstm.inference.windowed_stream import (
    HOP,
    WINDOW,
    WindowedStream,
)
from speechbrain_dslstm.models.calibration import TemperatureScaling
from speechbrain_dslstm.pretrained.architecture import to_yaml
from speechbrain_dslstm.pretrained.card import log_licence
from speechbrain_dslstm.pretrained.model_folder import (
    HYPERPARAMS,
    PassThrough,
    make_label_encoder,
    save_pretrained,
)
from speechbrain_dslstm.pretrained.safe_format import load_model
from speechbrain_dslstm.pretrained.sources import (
    check_hub_id,
    claim_folder,
    find_folder,
)
from speechbrain_dslstm.utils.evaluation_mode import evaluation_mode
from speechbrain_dslstm.utils.processes import (
    default_dtype,
    survive_forks,
)

__all__ = ["EmotionClassifier", "load_safe"]

UNKNOWN = "unknown"


class EmotionClassifier(Pretrained):
    """Classifies the emotion of utterances with a trained model.

    ``EmotionClassifier.from_hparams(source)`` loads one.

    Arguments
    ---------
    modules
        "embedding_model" maps waveforms and lengths to log-posteriors,
        "classifier" scales them with the temperature.
    hparams
        Holds "label_encoder" and "sample_rate".
    run_opts
        Run options of SpeechBrain, such as {"device": "cuda"}.
    freeze_params
        Set ``requires_grad=False``. Without it the parameters can be trained
        through ``mods``; the classify methods evaluate all the same.

    Example
    -------
    >>> source = "pretrained/emotion-dslstm-emodb"
    >>> classifier = EmotionClassifier.from_hparams(source)
    >>> out_prob, score, index, text_lab = classifier.classify_batch(
    ...     torch.randn(3, 16000)
    ... )
    >>> out_prob.shape, score.shape, len(text_lab)
    (torch.Size([3, 7]), torch.Size([3]), 3)
    """

    MODULES_NEEDED = ["embedding_model", "classifier"]
    HPARAMS_NEEDED = ["label_encoder", "sample_rate"]
    # Set by ``adapt``
    adaptation: Adaptation | None = None

    def __init__(
        self,
        modules: dict[str, torch.nn.Module] | None = None,
        hparams: dict[str, Any] | None = None,
        run_opts: dict[str, Any] | None = None,
        freeze_params: bool = True,
    ) -> None:
        for name in self.MODULES_NEEDED:
            if name not in (modules or {}):
                raise ValueError(f"the model's YAML has no modules[{name}]")
        if run_opts and isinstance(run_opts.get("device"), torch.device):
            run_opts = {**run_opts, "device": str(run_opts["device"])}
        super().__init__(modules, hparams, run_opts, freeze_params)
        # Not frozen, the modules would be in training mode from the start
        self.mods.eval()
        survive_forks()
        if self.precision == "fp16" and self.device_type == "cpu":
            raise ValueError(
                "the precision fp16 requires a GPU, but the device is "
                f'{self.device}: use run_opts={{"precision": "fp32"}} or "bf16", '
                "or another device"
            )
        encoder = self.hparams.label_encoder
        encoder.expect_len(len(encoder))

    @classmethod
    def from_hparams(
        cls,
        source: str | Path,
        hparams_file: str = HYPERPARAMS,
        savedir: str | Path | None = None,
        **kwargs: Any,
    ) -> "EmotionClassifier":
        """Load a pretrained model.

        ``source`` is a local model folder, "pretrained/NAME" for a model that
        comes with the package, or a hub id "user/model"; ``hparams_file`` is
        the YAML in it. ``savedir`` keeps the files of one hub model and is not
        used for a local folder. Other arguments, such as ``run_opts`` and
        ``overrides``, go to SpeechBrain's ``Pretrained.from_hparams``.

        Raises FileNotFoundError if ``source`` is no local folder and no hub id,
        or if the network is off and the model was never downloaded; ValueError
        if the weights do not fit the architecture or are not those that the
        YAML was written with, or if ``savedir`` holds another model.
        """
        folder = find_folder(source)
        if folder is not None:
            if not (folder / hparams_file).is_file():
                raise FileNotFoundError(f"no {hparams_file} in {folder}")
            log_licence(folder)
            # SpeechBrain would load the files in savedir, even another model's
            source, savedir = str(folder), None
        else:
            check_hub_id(source, hparams_file, savedir)
        source = str(source)
        with ExitStack() as stack:
            stack.enter_context(default_dtype(torch.float32))
            if savedir is not None:
                config = kwargs.get("fetch_config")
                revision = getattr(config, "revision", None)
                claim = claim_folder(Path(savedir), source, revision)
                stack.enter_context(claim)
                kwargs["savedir"] = str(savedir)
            return super().from_hparams(source, hparams_file, **kwargs)

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        label_encoder: CategoricalEncoder,
        sample_rate: int,
        temperature: float = 1.0,
        run_opts: dict[str, Any] | None = None,
    ) -> "EmotionClassifier":
        """Make a classifier from a model in memory.

        The model maps waveforms of ``sample_rate`` Hz and lengths to
        log-posteriors of the classes in the encoder's order. The temperature
        divides them, see ``evaluation.fit_temperature``.
        """
        modules = {
            "compute_features": torch.nn.Identity(),
            "mean_var_norm": PassThrough(),
            "embedding_model": model,
            "classifier": TemperatureScaling(temperature),
        }
        hparams = {"label_encoder": label_encoder, "sample_rate": sample_rate}
        return cls(modules, hparams, run_opts)

    @property
    def labels(self) -> list[str]:
        """Names of the classes in the order of their indices."""
        encoder = self.hparams.label_encoder
        return [encoder.ind2lab[k] for k in range(len(encoder))]

    @property
    def dimensions(self) -> list[str]:
        """Names of the dimensions that the model predicts besides the classes."""
        return list(getattr(self.mods.embedding_model, "dimensions", ()))

    def classify_batch(
        self,
        wavs: torch.Tensor | np.ndarray,
        wav_lens: torch.Tensor | list[float] | None = None,
        unknown_below: float | None = None,
    ) -> Answer:
        """Classify a padded batch of waveforms, speech or not.

        The model is evaluated without gradients, and stays as it is. ``wavs``,
        [batch, samples] or [samples], are floats in [-1, 1] at the model's
        rate; ``wav_lens``, [batch], are relative lengths (floats) or sample
        counts (integers). Where the best posterior is below ``unknown_below``
        the class is named "unknown"; the numbers stay as they are. NaN,
        infinity or samples above 1000 raise AudioError.

        The ``Answer`` is a tuple of four, as in SpeechBrain: ``out_prob``,
        log-posteriors [batch, n_classes]; ``score``, that of the best class
        [batch]; ``index``, the best class [batch]; ``text_lab``, its name, for
        each item.
        """
        wavs = check_batch(wavs)
        if wav_lens is not None:
            wav_lens = torch.as_tensor(wav_lens, device=self.device)
        wavs = wavs.to(self.device)
        if wavs.is_floating_point():
            wavs = wavs.float()
        check_samples(wavs, wav_lens)
        # torch.autocast stores the state to restore on itself: use one for each
        # call, as several threads may call
        with (
            evaluation_mode(self.mods),
            copy(self.inference_ctx.context),
            torch.no_grad(),
        ):
            out_prob, values = self._predict(wavs, wav_lens)
        with torch.no_grad():
            out_prob = self.mods.classifier(out_prob.float())
        return self.label_posteriors(out_prob, unknown_below, values)

    def _predict(self, wavs, wav_lens):
        """Log-posteriors [batch, n_classes], and the dimensions by their names."""
        model = self.mods.embedding_model
        if not self.dimensions:
            return model(wavs, wav_lens), {}
        out_prob, values = model.predict(wavs, wav_lens)
        columns = values.float().unbind(dim=1)
        return out_prob, dict(zip(self.dimensions, columns, strict=True))

    def label_posteriors(
        self,
        out_prob: torch.Tensor,
        unknown_below: float | None = None,
        dimensions: dict[str, torch.Tensor] | None = None,
    ) -> Answer:
        """Answer of ``classify_batch`` for log-posteriors [batch, n_classes].

        ``dimensions`` are the values [batch] by their names.
        """
        check_threshold(unknown_below)
        score, index = out_prob.max(dim=-1)
        text_lab = self.hparams.label_encoder.decode_torch(index)
        if unknown_below is not None:
            for k in (score.exp() < unknown_below).nonzero().flatten().tolist():
                text_lab[k] = UNKNOWN
        return Answer(out_prob, score, index, text_lab, dimensions)

    def load_audio(
        self,
        path: AudioInput,
        savedir: str | None = None,
        channel: Channel = "mix",
        sample_rate: float | None = None,
    ) -> torch.Tensor:
        """Read audio as ``classify_file`` does: mono, at the model's rate.

        ``savedir`` is ignored: SpeechBrain links files into it by their last
        name, and returns the first file for all others of that name. With
        ``channel="each"`` the result is [channels, samples]. ``sample_rate`` is
        that of an array.
        """
        rate = self.hparams.sample_rate
        wav = load_audio(path, rate, channel=channel, input_rate=sample_rate)
        return wav.to(self.device)

    def classify_file(
        self,
        path: AudioInput,
        unknown_below: float | None = None,
        speech_only: bool = True,
        longest: float | None = LONGEST_CLIP,
        channel: Channel = "mix",
        sample_rate: float | None = None,
    ) -> Answer:
        """Classify one recording, of any rate and channels.

        ``path`` is an audio file, its bytes, a binary file object, or an array
        or tensor, with its rate as ``sample_rate`` or as ``(samples, rate)``;
        see ``audio.load_audio``. ``channel`` is "mix", an index, or "each".

        The answer is that of ``classify_batch`` for a batch of one, or of all
        channels. A file without audio raises AudioError, and so does one of
        more than ``longest`` seconds (None: no limit), before it is decoded:
        each second takes 2 MB and 10 ms. With ``speech_only`` a file without
        speech, for which any answer would be wrong, raises NoSpeechError with
        its ``reason``: "too short", "silence" or "noise". With "each" it is
        raised if no channel holds speech; the row of a single channel without
        speech is NaN, its index -1 and its label None.
        """
        source, rate = to_source(path, sample_rate), self.hparams.sample_rate
        wav = load_audio(source, rate, longest, channel)
        if channel == "each":
            return self._classify_each(wav, source, unknown_below, speech_only)
        if speech_only:
            check_speech(wav, rate, source)
        return self.classify_batch(wav, unknown_below=unknown_below)

    def _classify_each(self, wavs, source, unknown_below, speech_only):
        """Answer for each of the channels [channels, samples] with speech."""
        rate = self.hparams.sample_rate
        reasons = [
            measure_activity(wav, rate).reason if speech_only else None
            for wav in wavs
        ]
        kept = [k for k, reason in enumerate(reasons) if reason is None]
        if not kept:
            raise NoSpeechError(reasons[0], source)
        found = self.classify_batch(wavs[kept], unknown_below=unknown_below)
        return found.spread(kept, len(wavs))

    def classify_files(
        self,
        paths: AudioInput | Iterable[AudioInput],
        unknown_below: float | None = None,
        speech_only: bool = True,
        progress: bool | None = None,
        longest: float | None = LONGEST_FILE,
        channel: Channel = "mix",
        sample_rate: float | None = None,
        threads: int | None = None,
    ) -> FileResults:
        """Classify many files, see ``inference.classify_files``."""
        return classify_files(
            self,
            paths,
            unknown_below,
            speech_only,
            progress,
            longest,
            channel,
            sample_rate,
            threads,
        )

    def classify_long(
        self,
        path: AudioInput,
        window: float = 6.0,
        hop: float | None = None,
        unknown_below: float | None = None,
        speech_only: bool = True,
        channel: Channel = "mix",
        sample_rate: float | None = None,
        longest: float | None = None,
    ) -> Iterator[Segment]:
        """Classify a long recording by windows, see ``inference.classify_long``."""
        return classify_long(
            self,
            path,
            window,
            hop,
            unknown_below,
            speech_only,
            channel,
            sample_rate,
            longest,
        )

    def stream(
        self,
        normalization: str | None = None,
        window: float | None = None,
        decay: float | None = None,
        hop: float = HOP,
        speech_only: bool = True,
    ) -> EmotionStream | WindowedStream:
        """Start a stream of audio in chunks of any size.

        By default the posterior is that of all audio so far, as of one whole
        utterance: right for a clip that arrives in pieces. With ``window`` (in
        seconds, 4 is a good value) it follows the speaker: every ``hop`` seconds
        the last seconds are classified as a recording of their own. ``decay``
        (a time constant in seconds) averages these answers; alone, it implies a
        window of 4 seconds. ``speech_only`` leaves windows without speech out.

        A model that centres each utterance on its own mean, which no stream of
        a whole utterance can know, subtracts the mean so far instead
        (``normalization="running"``), or none ("training"); see
        ``with_normalization``. A window has its own mean, as in training.

        The stream uses the weights of this classifier, which must stay on its
        device. Without a window, a model that needs the whole utterance raises
        ``ValueError``.
        """
        if window is not None or decay is not None:
            if normalization is not None:
                raise ValueError(
                    "a window is normalised as the model was trained: leave "
                    "normalization out, or use classifier.with_normalization("
                    f'"{normalization}").stream(window=...)'
                )
            window = WINDOW if window is None else window
            return WindowedStream(self, window, decay, hop, speech_only)
        model = self.mods.embedding_model
        if normalization is None and centres_utterances(model):
            normalization = "running"
        if normalization is not None:
            # Thousands of streams may be open
            model = with_normalization(model, normalization, share_weights=True)
        return EmotionStream(model, self.mods.classifier)

    def with_normalization(
        self, normalization: str | None
    ) -> "EmotionClassifier":
        """Copy the classifier with another normalisation of the features.

        "running": the mean of the audio so far replaces the utterance's mean,
        as in a stream of that normalisation; "training": only the statistics
        of the training set; None: this classifier, as it was trained.
        """
        if normalization is None:
            return self
        return self.from_model(
            with_normalization(self.mods.embedding_model, normalization),
            self.hparams.label_encoder,
            self.hparams.sample_rate,
            self.mods.classifier.temperature,
            {"device": self.device},
        )

    def adapt(
        self,
        recordings: str | Path | Iterable[str | Path | torch.Tensor],
        blend: float = 1.0,
        seconds: float = 60.0,
    ) -> "EmotionClassifier":
        """Adapt to recordings without labels, see ``inference.adapt``."""
        return adapt(self, recordings, blend, seconds)

    def save(self, folder: str | Path) -> None:
        """Write a model folder; see ``pretrained.save_pretrained``.

        Raises ValueError for a model that ``load_safe`` could not load, or of
        the normalization "running", which no folder records.
        """
        model = self.mods.embedding_model
        for stream in getattr(model, "streams", {}).values():
            if isinstance(stream.normalization, RunningNormalization):
                raise ValueError(
                    'a model folder cannot record the normalization "running": '
                    "save the classifier that it was made from"
                )
        yaml = f"{to_yaml(model)}sample_rate: {self.hparams.sample_rate}\n"
        temperature = self.mods.classifier.temperature
        save_pretrained(folder, yaml, model, self.labels, temperature)

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> Answer:
        """The same as ``classify_batch``."""
        return self.classify_batch(wavs, wav_lens)


def load_safe(
    source: str | Path, run_opts: dict[str, Any] | None = None
) -> EmotionClassifier:
    """Load a model folder as data only, so that it cannot run code.

    Arguments
    ---------
    source
        A local folder with ``model.json`` and ``model.ckpt`` (or, in older
        folders, ``model.safetensors``).
    run_opts
        Run options of SpeechBrain, such as {"device": "cuda"}.

    Raises
    ------
    FileNotFoundError
        There is no such folder, or one of the two files is missing.
    ValueError
        The schema does not allow the data, or the weights have another hash or
        do not fit. The message names the place.

    Example
    -------
    >>> load_safe("pretrained/emotion-dslstm-emodb").labels[:2]
    ['anger', 'boredom']
    """
    folder = find_folder(source)
    if folder is None:
        raise FileNotFoundError(
            f"no model folder {source}; the safe loader reads local folders"
        )
    log_licence(folder)
    with default_dtype(torch.float32):
        model, data = load_model(folder)
    return EmotionClassifier.from_model(
        model.eval(),
        make_label_encoder(data["labels"]),
        data["sample_rate"],
        data["temperature"],
        run_opts,
    )
