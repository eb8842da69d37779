#!/usr/bin/env python3
"""Train and evaluate a speech emotion recogniser: every corpus, every system.

The system is the YAML, the rest are options:

> python train.py hparams/dual_level.yaml --corpus=emodb --data_folder=...

The same command again resumes a run that was stopped. Several GPUs:

> torchrun --nproc_per_node=2 train.py hparams/dual_level.yaml ...

Results, predictions and a model for ``EmotionClassifier.from_hparams`` stand
in the output folder.
"""

import os

# Read by torch when it is imported: the large activations of the CNNs lie in
# huge pages. Without, page faults take half of a training step on a CPU.
os.environ["THP_MEM_ALLOC_ENABLE"] = os.environ.get("THP_MEM_ALLOC_ENABLE", "1")

import inspect
import json
import shutil
import sys
import time
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.audio import LONGEST_CLIP, load_audio
from speechbrain_dslstm.corpora import vote_names
from speechbrain_dslstm.corpora.manifest import to_scale
from speechbrain_dslstm.corpora.transcripts import load_tokenizer, to_tokens
from speechbrain_dslstm.evaluation import (
    DimensionStats,
    EmotionStats,
    append_row,
    print_results,
    selection_score,
    write_results,
)
from speechbrain_dslstm.features import SpeedCache, change_speed, mixup
from speechbrain_dslstm.hparams import (
    hash_settings,
    load_hparams,
    nest_overrides,
    read_hparams,
    resolve_hparams,
    run_folder,
)
from speechbrain_dslstm.inference import EmotionClassifier
from speechbrain_dslstm.models import (
    SelfSupervisedFrames,
    class_weights,
    dimension_loss,
    fusion_loss,
    mix_targets,
    vote_shares,
)
from speechbrain_dslstm.pretrained import save_pretrained
from speechbrain_dslstm.splits import PROTOCOLS
from speechbrain_dslstm.training import (
    AtomicCheckpointer,
    RandomStates,
    ReproducibleDataset,
    StepGuard,
    StopSignals,
    WeightAverage,
    check_finite,
    collect_statistics,
    extract_batch,
    loader_options,
    open_cache,
    prepare_data,
    shield_worker,
    split_parameters,
    token_sequence,
)
from speechbrain_dslstm.utils.distributed import (
    any_rank,
    ddp_loss_scale,
    init_group,
    mean_over_ranks,
)
from speechbrain_dslstm.utils.files import name_errors

logger = get_logger(__name__)


class EmotionBrain(sb.Brain):
    """Trains a model that maps waveforms to log-posteriors of emotions."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.average = None
        if self.hparams.average_decay is not None:
            self.average = WeightAverage(
                self.hparams.model, self.hparams.average_decay
            ).to(self.device)
            if self.checkpointer is not None:
                self.checkpointer.add_recoverable("average", self.average)
        self.scores = {}
        self.dimensions = None
        self.mix = None
        self.total_steps = None
        self.test_loader = None
        self.random_states = RandomStates()
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable(
                "random_states", self.random_states, optional_load=True
            )
        self.guard = StepGuard(
            self.hparams.model,
            self.hparams.on_nonfinite,
            self.nonfinite_patience,
        )
        self.signals = StopSignals()
        self.stepped = self.stopping = False

    @property
    def trained_model(self):
        """The model that is evaluated and shipped."""
        if self.average is not None:
            return self.average.model
        return self.hparams.model

    def compute_forward(self, batch, stage):
        """Log-posteriors and the outputs of each branch."""
        batch = batch.to(self.device)
        training = stage == sb.Stage.TRAIN
        model = self.modules.model if training else self.trained_model
        # Spectra have a range that half precision has not
        with torch.no_grad(), torch.autocast(self.device_type, enabled=False):
            extracted = self.extract(batch, training)
            speakers = batch.speaker
            if training:
                rows = self.replicate(torch.arange(len(speakers)))
                speakers = [speakers[row] for row in rows.tolist()]
            # Of the model in training also in evaluation
            streams = self.hparams.model.normalize(extracted, speakers)
            if training and self.hparams.fea_augment is not None:
                streams = self.hparams.fea_augment(streams)
            self.mix = None
            if training and self.hparams.mixup is not None:
                streams, *self.mix = mixup(streams, self.hparams.mixup)
        return model(streams=streams, return_branches=True)

    def extract(self, batch, training):
        """Features of a batch.

        Arguments
        ---------
        batch : PaddedBatch
            From a dataset of ``dataio_prep``.
        training : bool
            Whether to augment.

        Returns
        -------
        dict of str to FeatureSequence
            Features by stream name.
        """
        model = self.hparams.model
        augment = self.hparams.wav_augment if training else None
        if augment is None:
            streams = extract_batch(model, batch)
        else:
            streams = model.extract(*augment(*batch.sig))
        if model.reads_text:
            text = token_sequence(batch)
            if augment is not None:
                text = text._make(map(augment.replicate_labels, text))
            streams["text"] = text
        return streams

    def compute_objectives(self, predictions, batch, stage):
        """Weighted losses of the branches: classes, dimensions or both."""
        log_posteriors, outputs = predictions
        n_classes = log_posteriors.shape[1]
        logits = {name: value[:, :n_classes] for name, value in outputs.items()}
        targets = batch.emotion_encoded.data.squeeze(1)
        options = {}
        if stage == sb.Stage.TRAIN:
            options["label_smoothing"] = self.hparams.label_smoothing
            if self.hparams.class_weights is not None:
                options["weight"] = self.hparams.loss_weight.to(self.device)
            soft = None
            if self.hparams.soft_labels > 0:
                soft = self.replicate(batch.emotion_soft.data)
            targets = mix_targets(
                self.replicate(targets),
                n_classes,
                soft,
                self.hparams.soft_labels,
                self.mix,
            )
        else:
            self.scores["fused"].append(batch.id, log_posteriors, targets)
            for name, value in logits.items():
                log_probs = value.log_softmax(dim=-1)
                self.scores[name].append(batch.id, log_probs, targets)
        weights = self.hparams.model.branch_weights
        loss = fusion_loss(logits, targets, weights, **options)
        if stage == sb.Stage.TRAIN:
            amount = len(targets)
            if "weight" in options and targets.dim() == 1:
                amount = options["weight"][targets].sum()
            loss = loss * ddp_loss_scale(amount, self.device)
        if not self.hparams.dimensions:
            return loss
        truth = batch.dimensions.data
        if stage == sb.Stage.TRAIN:
            truth = self.replicate(truth)
            if self.mix is not None:
                partners, weight = self.mix
                truth = torch.lerp(truth[partners], truth, weight)
        else:
            fused = self.hparams.model.fuse(outputs)[:, n_classes:]
            self.dimensions.append(batch.id, fused, truth)
        share = self.hparams.dimension_weight
        together = stage == sb.Stage.TRAIN
        regression = dimension_loss(
            outputs, truth, weights, n_classes, over_ranks=together
        )
        return (1 - share) * loss + share * regression

    def replicate(self, values):
        """Values for each clip that the augmentation made of a batch's.

        Arguments
        ---------
        values : torch.Tensor, [batch, ...]
            One for each clip of the batch, in training.

        Returns
        -------
        torch.Tensor, [clips, ...]
            As they came, where waveforms are not augmented.
        """
        augment = self.hparams.wav_augment
        return values if augment is None else augment.replicate_labels(values)

    def init_optimizers(self):
        """The optimiser, one for a trained encoder, and their schedules."""
        encoder, others = split_parameters(
            self.hparams.model, SelfSupervisedFrames
        )
        if self.hparams.encoder_opt_class is None or not encoder:
            super().init_optimizers()
        else:
            self.optimizer = self.opt_class(others)
            self.optimizers_dict = {
                "optimizer": self.optimizer,
                "encoder_optimizer": self.hparams.encoder_opt_class(encoder),
            }
            if self.checkpointer is not None:
                self.checkpointer.add_recoverables(self.optimizers_dict)
        schedule = self.hparams.lr_schedule
        options = {}
        if "total_steps" in inspect.signature(schedule).parameters:
            options["total_steps"] = self.total_steps
        self.schedulers = [
            schedule(optimizer, **options)
            for optimizer in self.optimizers_dict.values()
        ]
        if self.checkpointer is not None:
            for name, one in zip(
                ("lr_schedule", "encoder_lr_schedule"),
                self.schedulers,
                strict=False,
            ):
                self.checkpointer.add_recoverable(name, one)

    def step_schedules(self):
        """Advance the learning rate of every optimiser."""
        for scheduler in self.schedulers:
            scheduler.step()

    def fit(self, *args, **kwargs):
        """Train; a signal ends it after the next step, with a checkpoint."""
        with self.signals.deferred():
            super().fit(*args, **kwargs)

    def on_fit_batch_start(self, batch, should_step):
        """Note what the model is about to see."""
        self.guard.start(batch.id)

    def check_loss_isfinite(self, loss):
        """Note a loss that is not; the whole step is decided on later."""
        self.guard.check_loss(loss)

    def optimizers_step(self):
        """Take the step, unless the loss or gradients are NaN or Inf."""
        gradients = [
            one.grad
            for one in self.modules.parameters()
            if one.grad is not None
        ]
        bad, self.stopping = any_rank(
            [
                self.guard.is_bad(gradients, self.scaler),
                self.signals.requested,
            ],
            self.device,
        )
        self.stepped = not bad
        if self.stepped:
            super().optimizers_step()
        else:
            self.zero_grad(set_to_none=True)
        epoch = self.hparams.epoch_counter.current
        self.guard.end(bad, f"epoch {epoch}, batch {self.step}")

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Advance the schedule and the average of weights."""
        if should_step:
            if self.hparams.lr_interval == "batch":
                self.step_schedules()
            if self.average is not None and self.stepped:
                self.average.update(self.hparams.model)

    def _should_save_intra_epoch_ckpt(self, *args):
        # Accumulated gradients are not in a checkpoint
        if self.step % self.grad_accumulation_factor:
            return False
        return self.stopping or super()._should_save_intra_epoch_ckpt(*args)

    def _save_intra_epoch_ckpt(self):
        check_finite(self.checkpointer.recoverables, self.device)
        # Only the first rank's is saved
        self.avg_train_loss = mean_over_ranks(self.avg_train_loss, self.device)
        super()._save_intra_epoch_ckpt()
        self.stop_if_asked()

    def stop_if_asked(self):
        """End the process after a checkpoint, where a signal asked for it."""
        if self.stopping:
            logger.info(
                "stopped by a signal; the same command goes on from the "
                "checkpoint"
            )
            self.signals.exit()

    def on_stage_start(self, stage, epoch=None):
        """New statistics for each stage; dynamic batches for each epoch."""
        if stage == sb.Stage.TRAIN:
            sampler = self.hparams.batch_sampler
            if sampler is not None and self.train_sampler is None:
                self.train_sampler = sampler
            self.random_states.start_epoch()
        else:
            self.trained_model.eval()
            names = ["fused", *self.hparams.model.branches]
            self.scores = {
                name: EmotionStats(self.hparams.labels) for name in names
            }
            if self.hparams.dimensions:
                self.dimensions = DimensionStats(self.hparams.dimensions)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log; after validation keep the best and the newest checkpoint."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = mean_over_ranks(stage_loss, self.device)
            return
        if stage == sb.Stage.TEST:
            return
        stats = {"loss": float(stage_loss), **self.headline()}
        lr = float(self.optimizer.param_groups[0]["lr"])
        if self.hparams.lr_interval == "epoch":
            self.step_schedules()
        # Where no class is learnt, the concordance is what is selected on
        regression_only = self.dimensions and self.hparams.dimension_weight == 1
        chosen_by = stats["ccc" if regression_only else "ua"]
        self.hparams.epoch_counter.update_score(chosen_by)
        score = selection_score(
            chosen_by,
            epoch,
            self.hparams.number_of_epochs,
            self.hparams.selection_start,
        )
        meta = {"epoch": epoch, "lr": lr}
        train_stats = {"loss": self.train_loss}
        with name_errors(self.hparams.train_logger.save_file):
            self.hparams.train_logger.log_stats(meta, train_stats, stats)
        if self.hparams.use_tensorboard:
            self.hparams.tensorboard_logger.log_stats(meta, train_stats, stats)
        if if_main_process():
            row = {**meta, "score": score, "train_loss": self.train_loss}
            append_row(self.hparams.epoch_log, {**row, "valid": stats})
        # Before the checkpoint: a run killed in between writes the row again
        if self.test_loader is not None and if_main_process():
            self.log_test_epoch(epoch, stats)
        if self.checkpointer is not None:
            check_finite(self.checkpointer.recoverables, self.device)
            # Two, so that there is another one where the newest is damaged
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, "score": score, **stats},
                num_to_keep=2,
                max_keys=["score"],
            )
        (self.stopping,) = any_rank([self.signals.requested], self.device)
        self.stop_if_asked()

    def headline(self):
        """Scores of this stage.

        Returns
        -------
        dict of str to float
            WA, UA and macro-F1, the UA of each branch, and the concordance
            of each dimension.
        """
        found = self.scores["fused"].summarize()
        stats = {name: found[name] for name in ("wa", "ua", "macro_f1")}
        for name, one in self.scores.items():
            if name != "fused":
                stats[f"ua_{name}"] = one.summarize("ua")
        if self.dimensions is not None:
            stats.update(self.dimensions.summarize())
        return stats

    def log_test_epoch(self, epoch, valid_stats):
        """Score the test side for the reports; nothing selects on it.

        Arguments
        ---------
        epoch : int
            The epoch that has just been validated.
        valid_stats : dict
            Its validation scores, which under some protocols are those of
            the test side already.
        """
        if PROTOCOLS[self.hparams.protocol].valid_is_test:
            stats = valid_stats
        else:
            self.on_stage_start(sb.Stage.TEST)
            losses = [
                float(self.evaluate_batch(batch, sb.Stage.TEST))
                for batch in self.test_loader
            ]
            stats = {"loss": sum(losses) / len(losses), **self.headline()}
        rows = self.scores["fused"].rows()
        predicted = {row["id"]: row["predicted"] for row in rows}
        row = {"epoch": epoch, **stats, "predicted": predicted}
        append_row(self.hparams.test_epoch_log, row)


def dataio_prep(hparams):
    """Datasets of the three sides, from the manifests.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters.

    Returns
    -------
    dict of str to ReproducibleDataset
        "train" (with a random speed for each clip, where the hyperparameters
        have some), "plain" (the same clips as they are), "valid" and "test".
    """
    encoder = CategoricalEncoder()
    for index, label in enumerate(hparams["labels"]):
        encoder.enforce_label(label, index)
    encoder.expect_len(len(hparams["labels"]))
    sample_rate = hparams["features"]["sample_rate"]

    def load(wav, percent):
        """Waveform at the model's rate and at a speed in per cent."""
        sig = load_audio(wav, sample_rate, LONGEST_CLIP)
        return sig if percent == 100 else change_speed(sig, percent)

    def draw_speed(speeds):
        """One of the speeds, drawn anew each time."""
        # Evaluation draws no random number
        choice = int(torch.randint(len(speeds), ())) if speeds[1:] else 0
        return speeds[choice]

    @sb.utils.data_pipeline.takes("emotion")
    @sb.utils.data_pipeline.provides("emotion_encoded")
    def label_pipeline(emotion):
        """Index of the emotion."""
        return encoder.encode_label_torch(emotion)

    names = vote_names(hparams["corpus"], hparams["label_set"])

    @sb.utils.data_pipeline.takes("votes", "emotion")
    @sb.utils.data_pipeline.provides("emotion_soft")
    def vote_pipeline(votes, emotion):
        """Probabilities of the emotions, as listeners voted."""
        return vote_shares(votes, names, hparams["labels"], emotion)

    @sb.utils.data_pipeline.takes(*hparams["dimensions"] or ["id"])
    @sb.utils.data_pipeline.provides("dimensions")
    def dimension_pipeline(*values):
        """Ratings, from -1 to 1."""
        return to_scale(values)

    @sb.utils.data_pipeline.takes("text")
    @sb.utils.data_pipeline.provides("tokens")
    def token_pipeline(text):
        """Token ids of the transcript."""
        return to_tokens(hparams["tokenizer"], text)

    wanted = {
        "emotion_soft": vote_pipeline if hparams["soft_labels"] else None,
        "dimensions": dimension_pipeline if hparams["dimensions"] else None,
        "tokens": token_pipeline if hparams["model"].reads_text else None,
    }
    extra = {key: item for key, item in wanted.items() if item is not None}
    cache = open_cache(hparams)
    streams = list(hparams["model"].streams)

    def dataset(side, speeds):
        """One side; its clips at one of the speeds, in per cent."""
        min_samples = hparams["model"].min_samples
        clips = SpeedCache(cache, load, speeds, sample_rate, min_samples)

        @sb.utils.data_pipeline.takes("wav")
        @sb.utils.data_pipeline.provides("sig")
        def audio_pipeline(wav):
            """Waveform."""
            return load(wav, draw_speed(speeds))

        @sb.utils.data_pipeline.takes("wav", "audio_hash", "duration")
        @sb.utils.data_pipeline.provides(*streams)
        def feature_pipeline(wav, audio_hash, duration):
            """Features of every stream, from the cache."""
            percent = draw_speed(speeds)
            feats = clips.get(wav, audio_hash, duration, percent)
            for stream in streams:
                yield feats[stream]

        audio = audio_pipeline if cache is None else feature_pipeline
        keys = ["sig"] if cache is None else streams
        return ReproducibleDataset.from_json(
            os.path.join(hparams["save_folder"], f"{side}.json"),
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio, label_pipeline, *extra.values()],
            output_keys=["id", "speaker", "emotion_encoded", *extra, *keys],
        )

    datasets = {side: dataset(side, [100]) for side in ("valid", "test")}
    datasets["plain"] = dataset("train", [100])
    datasets["train"] = dataset("train", hparams["speeds"] or [100])
    return datasets


def save_model(brain, hparams, hparams_file, overrides, temperature):
    """Write the model folder, and classify a held-out file with it.

    Arguments
    ---------
    brain : EmotionBrain
        After ``evaluate``, which has loaded the best checkpoint.
    hparams : dict
        The loaded hyperparameters.
    hparams_file : str
        The YAML of this run.
    overrides : str
        YAML text of the overrides on the command line.
    temperature : float
        Of the calibration.
    """
    folder = Path(hparams["output_folder"], "model")
    # Sizes as numbers: a model must not ask for its corpus
    for name in ("n_classes", "n_outputs"):
        overrides += f"\n{name}: {hparams[name]}\n"
    text = resolve_hparams(hparams_file, overrides)
    save_pretrained(
        folder,
        text,
        brain.trained_model,
        hparams["labels"],
        temperature,
        hparams["half_precision_model"],
    )
    print(f"model: {folder}")
    if brain.trained_model.reads_text:
        tokenizer = hparams["tokenizer"].prefix_model_file + ".model"
        shutil.copy(tokenizer, folder / "tokenizer.model")
        return
    # Where the model was trained: a backend may not run elsewhere
    device = {"device": str(brain.device)}
    classifier = EmotionClassifier.from_hparams(folder, run_opts=device)
    manifest = Path(hparams["save_folder"], "test.json")
    item = next(iter(json.loads(manifest.read_text("utf-8")).values()))
    wav = item["wav"].format(data_root=hparams["data_folder"])
    _, score, _, label = classifier.classify_file(wav, speech_only=False)
    print(
        f"held-out file {Path(wav).name} ({item['emotion']}) -> "
        f"{label[0]}, posterior {score.exp().item():.2f}"
    )


def main():
    """Run the recipe; SIGTERM and SIGUSR1 end it with code 143."""
    with StopSignals() as signals:
        run(signals)


def run(signals):
    """Train, evaluate, and write the results.

    Arguments
    ---------
    signals : StopSignals
        In force.
    """
    started = time.time()
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    hparams = read_hparams(hparams_file, overrides)
    init_group(run_opts, hparams["ddp_timeout"])
    hparams = load_hparams(hparams_file, overrides)
    hparams["output_folder"] = run_folder(hparams)
    folder = Path(hparams["output_folder"])
    hparams["save_folder"] = str(folder / "save")
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=nest_overrides(hparams_file, overrides),
    )
    settings = hash_settings(sys.argv[1:])
    run_on_main(prepare_data, args=[hparams, settings])
    if hparams["model"].reads_text:
        hparams["tokenizer"] = load_tokenizer(
            folder / "save" / "tokenizer",
            hparams["text_vocab_size"],
            hparams["text_model_type"],
        )
    datasets = dataio_prep(hparams)
    if hparams["class_weights"] is not None:
        emotions = [item["emotion"] for item in datasets["train"].data.values()]
        hparams["loss_weight"] = class_weights(emotions, hparams["labels"])
    hparams["epoch_log"] = str(folder / "save" / "epochs.jsonl")
    hparams["test_epoch_log"] = str(folder / "save" / "test_epochs.jsonl")
    hparams["train_logger"] = sb.utils.train_logger.FileTrainLogger(
        save_file=str(folder / "train_log.txt")
    )
    if hparams["use_tensorboard"]:
        from speechbrain.utils.train_logger import TensorboardLogger

        hparams["tensorboard_logger"] = TensorboardLogger(
            str(folder / "tensorboard")
        )
    train_options = {
        **loader_options(hparams, datasets["train"]),
        "worker_init_fn": shield_worker,
    }
    hparams["batch_sampler"] = train_options.get(
        "batch_sampler", train_options.get("sampler")
    )
    checkpointer = AtomicCheckpointer(
        hparams["save_folder"],
        recoverables={
            "model": hparams["model"],
            "epoch_counter": hparams["epoch_counter"],
        },
    )
    if checkpointer.find_checkpoint() is None and run_opts.get("test_only"):
        raise FileNotFoundError(
            f"no checkpoint to test in {hparams['save_folder']}: "
            "train first, without --test_only"
        )
    # Those of speakers are in no checkpoint
    by_speaker = hparams["normalization"] == "speaker"
    if by_speaker or checkpointer.find_checkpoint() is None:
        collect_statistics(hparams["model"], datasets, hparams["normalization"])
    brain = EmotionBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=checkpointer,
    )
    brain.signals = signals
    eval_options = {
        "batch_size": hparams["eval_batch_size"],
        "num_workers": hparams["num_workers"],
        "worker_init_fn": shield_worker,
        # Its own: evaluation draws nothing from the one that trains
        "generator": torch.Generator(),
    }
    train_loader = brain.make_dataloader(
        datasets["train"],
        sb.Stage.TRAIN,
        generator=brain.random_states.loader_generator,
        **train_options,
    )
    steps = max(1, len(train_loader) // brain.grad_accumulation_factor)
    brain.total_steps = steps * hparams["number_of_epochs"]
    if hparams["test_every_epoch"]:
        # Not the Brain's, which would resume it in the middle
        brain.test_loader = sb.dataio.dataloader.make_dataloader(
            datasets["test"], **eval_options
        )
    brain.fit(
        hparams["epoch_counter"],
        train_loader,
        datasets["valid"],
        valid_loader_kwargs=dict(eval_options),
    )
    scores = {}
    for side in ("valid", "test"):
        brain.evaluate(
            datasets[side],
            max_key="score",
            test_loader_kwargs=dict(eval_options),
        )
        scores[side] = brain.scores
    if if_main_process():
        results = write_results(hparams, scores, time.time() - started)
        if brain.dimensions is not None:
            brain.dimensions.write(folder / "dimensions.csv")
            print(brain.dimensions.summarize())
        print_results(results, hparams["output_folder"])
        temperature = results["calibration"]["temperature"]
        save_model(brain, hparams, hparams_file, overrides, temperature)


if __name__ == "__main__":
    main()
