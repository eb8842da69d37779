"""From a waveform to an emotion with a pretrained model.

A model folder is loaded from a local place or a hub alike, see ``pretrained``
for what is in it. A model YAML is a program: load one from a stranger with
``safe_loader.load_safe`` instead.
"""

from copy import copy
from pathlib import Path

import torch
from speechbrain.inference.interfaces import Pretrained

from speechbrain_dslstm.audio import LONGEST_CLIP, check_samples, load_audio
from speechbrain_dslstm.inference.files import classify_files
from speechbrain_dslstm.inference.long_recordings import classify_long
from speechbrain_dslstm.inference.speech_activity import check_speech
from speechbrain_dslstm.inference.streaming import (
    EmotionStream,
    with_normalization,
)
from speechbrain_dslstm.models.calibration import TemperatureScaling
from speechbrain_dslstm.pretrained.model_folder import (
    HYPERPARAMS,
    PassThrough,
    make_label_encoder,
)
from speechbrain_dslstm.pretrained.safe_format import load_model
from speechbrain_dslstm.pretrained.sources import (
    check_hub_id,
    claim_folder,
    find_folder,
    release_folder,
)

__all__ = ["EmotionClassifier", "load_safe"]

UNKNOWN = "unknown"


class EmotionClassifier(Pretrained):
    """Classifies the emotion of utterances with a trained model.

    Load one with ``EmotionClassifier.from_hparams(source)``.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        "embedding_model": waveforms and lengths in, log-posteriors out;
        "classifier": scales them with the temperature.
    hparams : dict
        Holds "label_encoder" and "sample_rate".
    run_opts : dict, optional
        Run options of SpeechBrain, such as {"device": "cuda"}.
    freeze_params : bool
        Inference only: no gradients, evaluation mode.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> yaml = '''
    ... sample_rate: 16000
    ... model: !new:speechbrain_dslstm.DualLevelClassifier
    ...     n_classes: 2
    ... '''
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> from speechbrain_dslstm.pretrained import save_pretrained
    >>> model = DualLevelClassifier(n_classes=2)
    >>> save_pretrained(folder, yaml, model, ["anger", "sadness"])
    >>> classifier = EmotionClassifier.from_hparams(folder)
    >>> out_prob, score, index, text_lab = classifier.classify_batch(
    ...     torch.randn(3, 16000)
    ... )
    >>> out_prob.shape, score.shape, len(text_lab)
    (torch.Size([3, 2]), torch.Size([3]), 3)
    """

    MODULES_NEEDED = ["embedding_model", "classifier"]
    HPARAMS_NEEDED = ["label_encoder", "sample_rate"]

    def __init__(
        self, modules=None, hparams=None, run_opts=None, freeze_params=True
    ):
        for name in self.MODULES_NEEDED:
            if name not in (modules or {}):
                raise ValueError(f"the model's YAML has no modules[{name}]")
        if run_opts and isinstance(run_opts.get("device"), torch.device):
            run_opts = {**run_opts, "device": str(run_opts["device"])}
        super().__init__(modules, hparams, run_opts, freeze_params)
        encoder = self.hparams.label_encoder
        encoder.expect_len(len(encoder))

    @classmethod
    def from_hparams(
        cls, source, hparams_file=HYPERPARAMS, savedir=None, **kwargs
    ):
        """Load a pretrained model.

        Arguments
        ---------
        source : str or pathlib.Path
            A local model folder, the name of a model that comes with the
            package such as "pretrained/NAME", or a hub id "user/model".
        hparams_file : str
            Name of the YAML in it.
        savedir : str or pathlib.Path, optional
            Where files of a hub are kept, of one model only; not used for a
            local folder.
        **kwargs : dict
            Passed to SpeechBrain's ``Pretrained.from_hparams``, such as
            ``run_opts`` and ``overrides``.

        Returns
        -------
        EmotionClassifier
            Ready for inference.

        Raises
        ------
        FileNotFoundError
            ``source`` looks like a local path and is none, or is the id of a
            model that was not fetched before and the network is off.
        ValueError
            The weights are not those that the YAML was written with or do
            not fit the architecture, or ``savedir`` holds another model.
        """
        folder = find_folder(source)
        if folder is not None:
            if not (folder / hparams_file).is_file():
                raise FileNotFoundError(f"no {hparams_file} in {folder}")
            # What lies in a savedir is taken as it is, of any model
            source, savedir = str(folder), None
        else:
            check_hub_id(source, hparams_file, savedir)
        if savedir is not None:
            savedir = str(savedir)
            revision = getattr(kwargs.get("fetch_config"), "revision", None)
            claim_folder(Path(savedir), str(source), revision)
        try:
            return super().from_hparams(
                str(source), hparams_file, savedir=savedir, **kwargs
            )
        finally:
            if savedir is not None:
                release_folder(Path(savedir))

    @classmethod
    def from_model(
        cls, model, label_encoder, sample_rate, temperature=1.0, run_opts=None
    ):
        """Make a classifier of a model that is built already.

        Arguments
        ---------
        model : torch.nn.Module
            Waveforms and lengths in, log-posteriors out.
        label_encoder : speechbrain.dataio.encoder.CategoricalEncoder
            The classes in their order.
        sample_rate : int
            In Hz.
        temperature : float
            See ``speechbrain_dslstm.calibration``.
        run_opts : dict, optional
            Run options of SpeechBrain, such as {"device": "cuda"}.

        Returns
        -------
        EmotionClassifier
            Ready for inference.
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
    def labels(self):
        """Names of the classes in the order of their indices."""
        encoder = self.hparams.label_encoder
        return [encoder.ind2lab[k] for k in range(len(encoder))]

    def classify_batch(self, wavs, wav_lens=None, unknown_below=None):
        """Classify a padded batch of waveforms, whatever is to be heard.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples] or [samples]
            Waveforms in [-1, 1] at the model's rate.
        wav_lens : torch.Tensor, [batch], optional
            Relative lengths (floats) or sample counts (integers).
        unknown_below : float, optional
            Where the best posterior is below it, the name is "unknown";
            numbers stay as they are.

        Returns
        -------
        out_prob : torch.Tensor, [batch, n_classes]
            Log-posteriors: their exponentials sum to 1.
        score : torch.Tensor, [batch]
            Log-posterior of the best class.
        index : torch.Tensor, int64, [batch]
            The best class.
        text_lab : list of str, [batch]
            Its name.

        Raises
        ------
        AudioError
            A ValueError: an item with NaN, infinity or samples above 1000.
        """
        if wavs.dim() == 1:
            wavs = wavs.unsqueeze(0)
        if wav_lens is not None:
            wav_lens = torch.as_tensor(wav_lens, device=self.device)
        wavs = wavs.to(self.device)
        if wavs.is_floating_point():
            wavs = wavs.float()
        check_samples(wavs, wav_lens)
        # torch.autocast keeps on itself what it found: one for each call, as
        # there may be several threads
        with copy(self.inference_ctx.context), torch.no_grad():
            out_prob = self.mods.embedding_model(wavs, wav_lens).float()
        return self.label_posteriors(
            self.mods.classifier(out_prob), unknown_below
        )

    def label_posteriors(self, out_prob, unknown_below=None):
        """Take the best class of each row.

        Arguments
        ---------
        out_prob : torch.Tensor, [batch, n_classes]
            Log-posteriors.
        unknown_below : float, optional
            As in ``classify_batch``.

        Returns
        -------
        tuple
            As ``classify_batch``.

        Raises
        ------
        ValueError
            ``unknown_below`` is no probability.
        """
        if unknown_below is not None and not 0 <= unknown_below <= 1:
            raise ValueError(
                f"unknown_below must be in [0, 1], got {unknown_below}"
            )
        score, index = out_prob.max(dim=-1)
        text_lab = self.hparams.label_encoder.decode_torch(index)
        if unknown_below is not None:
            unsure = (score.exp() < unknown_below).tolist()
            text_lab = [
                UNKNOWN if wanting else label
                for label, wanting in zip(text_lab, unsure, strict=True)
            ]
        return out_prob, score, index, text_lab

    def load_audio(self, path, savedir=None):
        """Read an audio file as ``classify_file`` does.

        Arguments
        ---------
        path : str or pathlib.Path
            A local audio file.
        savedir : str, optional
            Not used. The host links files into it by their last name, and
            gives the first one for each other of that name.

        Returns
        -------
        torch.Tensor, [samples]
            Mono, at the model's rate.

        Raises
        ------
        AudioError
            A ValueError: the file cannot be read or holds no audio.
        """
        return load_audio(path, self.hparams.sample_rate).to(self.device)

    def classify_file(
        self,
        path,
        unknown_below=None,
        speech_only=True,
        longest=LONGEST_CLIP,
    ):
        """Classify an audio file of any rate and channel count.

        Arguments
        ---------
        path : str or pathlib.Path
            A local audio file: wav, flac, ogg, mp3.
        unknown_below : float, optional
            As in ``classify_batch``.
        speech_only : bool
            Refuse a file without speech instead of calling it sad.
        longest : float, optional
            Seconds; a longer file is refused before it is decoded, as it is
            held in memory whole: 2 MB and 10 ms a second. None: no limit.

        Returns
        -------
        out_prob : torch.Tensor, [1, n_classes]
            Log-posteriors: their exponentials sum to 1.
        score : torch.Tensor, [1]
            Log-posterior of the best class.
        index : torch.Tensor, int64, [1]
            The best class.
        text_lab : list of str, [1]
            Its name.

        Raises
        ------
        AudioError
            A ValueError: the file cannot be read, holds no audio, or is
            longer than a minute; the message names it.
        NoSpeechError
            An AudioError with ``reason`` "too short", "silence" or "noise".
        """
        wav = load_audio(path, self.hparams.sample_rate, longest)
        if speech_only:
            check_speech(wav, self.hparams.sample_rate, path)
        return self.classify_batch(wav, unknown_below=unknown_below)

    def classify_files(self, paths, **options):
        """Classify many files; one that cannot be read stops nothing.

        Arguments
        ---------
        paths : list of str or pathlib.Path, or one folder
            Audio files; a folder stands for all those below it.
        **options : dict
            See ``speechbrain_dslstm.inference.classify_files``.

        Returns
        -------
        list of FileResult
            In the order of the files.
        """
        return classify_files(self, paths, **options)

    def classify_long(self, path, **options):
        """Classify a long recording window by window, in bounded memory.

        Arguments
        ---------
        path : str or pathlib.Path
            A local audio file.
        **options : dict
            See ``speechbrain_dslstm.inference.classify_long``.

        Returns
        -------
        iterator of Segment
            Start, end, label and posterior of each window.
        """
        return classify_long(self, path, **options)

    def stream(self, normalization=None):
        """Begin a stream of audio in chunks of any size.

        Arguments
        ---------
        normalization : str, optional
            "running" for a model that centres each utterance on its own
            mean, which no stream can know; see ``with_normalization``.

        Returns
        -------
        EmotionStream
            See there for what it answers, and for its look-ahead. It has the
            weights of this classifier, which must stay where it is.

        Raises
        ------
        ValueError
            The model needs the whole utterance; the message says why.
        """
        model = self.mods.embedding_model
        if normalization is not None:
            # Thousands of streams may be open
            model = with_normalization(model, normalization, True)
        return EmotionStream(model, self.mods.classifier)

    def with_normalization(self, normalization):
        """The same weights with another treatment of the features' mean.

        Arguments
        ---------
        normalization : str or None
            "running": what has been heard so far takes the place of the
            utterance's mean; "training": training-set statistics only; None:
            as the model was trained.

        Returns
        -------
        EmotionClassifier
            Whose answers a stream of that normalisation ends with.
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

    def forward(self, wavs, wav_lens=None):
        """The same as ``classify_batch``.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1] at the model's rate.
        wav_lens : torch.Tensor, [batch], optional
            Relative lengths (floats) or sample counts (integers).

        Returns
        -------
        tuple
            As ``classify_batch``.
        """
        return self.classify_batch(wavs, wav_lens)


def load_safe(source, run_opts=None):
    """Load a model folder as data only.

    Arguments
    ---------
    source : str or pathlib.Path
        A local folder with ``model.json`` and ``model.ckpt`` (or, in older
        folders, ``model.safetensors``).
    run_opts : dict, optional
        Run options of SpeechBrain, such as {"device": "cuda"}.

    Returns
    -------
    EmotionClassifier
        The same as ``EmotionClassifier.from_hparams`` gives of the folder.

    Raises
    ------
    FileNotFoundError
        No such folder, or one of the two files is missing.
    ValueError
        The data is not what the schema allows, the weights are not those it
        was written with, or they do not fit. The message says where.

    Example
    -------
    >>> import torch
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> from speechbrain_dslstm.pretrained import write_safe
    >>> folder = getfixture("tmp_path")
    >>> model = DualLevelClassifier(n_classes=2, p=0.0)
    >>> write_safe(folder, model, ["anger", "sadness"])
    >>> classifier = load_safe(folder)
    >>> classifier.classify_batch(torch.randn(1, 16000))[0].shape
    torch.Size([1, 2])
    """
    folder = find_folder(source)
    if folder is None:
        raise FileNotFoundError(
            f"no model folder {source}; the safe loader reads local folders"
        )
    model, data = load_model(folder)
    return EmotionClassifier.from_model(
        model.eval(),
        make_label_encoder(data["labels"]),
        data["sample_rate"],
        data["temperature"],
        run_opts,
    )
