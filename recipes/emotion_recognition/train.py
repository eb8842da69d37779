#!/usr/bin/env python3
"""Train and evaluate a speech emotion recogniser, on any corpus.

The YAML defines the system; each of its keys is an option:

> python train.py hparams/dual_level.yaml --corpus=emodb --data_folder=...

The same command again resumes a run that was stopped. On several GPUs:

> torchrun --nproc_per_node=2 train.py hparams/dual_level.yaml ...

The output folder receives the results, the predictions and a model for
``EmotionClassifier.from_hparams``.
"""

import os

# Torch reads this when imported: huge pages halve the time of a CPU step
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import json
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.utils.distributed import (
    if_main_process,
    infer_device,
    run_on_main,
)

from speechbrain_dslstm import pretrained
from speechbrain_dslstm.corpora import Source
from speechbrain_dslstm.corpora.clips import load_clip, split_segment
from speechbrain_dslstm.evaluation import DimensionStats, EmotionStats
from speechbrain_dslstm.evaluation.results import (
    append_row,
    criterion,
    epoch_score,
    headline,
    write_results,
)
from speechbrain_dslstm.evaluation.summary import (
    commands_to_try,
    summarize_results,
)
from speechbrain_dslstm.features import mixup
from speechbrain_dslstm.hparams import (
    load_hparams,
    read_hparams,
    resolve_hparams,
)
from speechbrain_dslstm.inference import EmotionClassifier
from speechbrain_dslstm.models import (
    FeatureSequence,
    class_weights,
    dimension_loss,
    fusion_loss,
    mix_targets,
)
from speechbrain_dslstm.pretrained.initialisation import check_start
from speechbrain_dslstm.settings import RunRecord, parse_arguments
from speechbrain_dslstm.training import (
    AtomicCheckpointer,
    ReliableBrain,
    StopSignals,
    data,
)
from speechbrain_dslstm.training.console import LOG_CONFIG, make_loggers
from speechbrain_dslstm.training.preparation import (
    check_data,
    name_run_folder,
    prepare_data,
)
from speechbrain_dslstm.utils.distributed import (
    ddp_loss_scale,
    init_group,
    mean_over_ranks,
)
from speechbrain_dslstm.utils.threads import adapted_threads

Streams = dict[str, FeatureSequence]
Predictions = tuple[torch.Tensor, dict[str, torch.Tensor]]  # fused, branches


class EmotionBrain(ReliableBrain):
    """Trains a model that maps waveforms to log-posteriors of emotions."""

    mix = class_weights = dimensions = test_loader = None

    def compute_forward(
        self, batch: PaddedBatch, stage: sb.Stage
    ) -> Predictions:
        """Compute log-posteriors and the outputs of each branch."""
        batch = batch.to(self.device)
        training = stage == sb.Stage.TRAIN
        # The range of spectra exceeds half precision
        with torch.no_grad(), torch.autocast(self.device_type, enabled=False):
            extracted = self.extract(batch, training)
            speakers = batch.speaker
            if training:
                rows = self.replicate(torch.arange(len(speakers)))
                speakers = [speakers[row] for row in rows.tolist()]
            streams = self.hparams.model.normalize(extracted, speakers)
            if training and self.hparams.fea_augment is not None:
                streams = self.hparams.fea_augment(streams)
            self.mix = None
            if training and self.hparams.mixup is not None:
                streams, *self.mix = mixup(streams, self.hparams.mixup)
        model = self.modules.model if training else self.trained_model
        return model(streams=streams, return_branches=True)

    def extract(self, batch: PaddedBatch, training: bool) -> Streams:
        """Compute the features of each stream, or take them from the cache."""
        augment = self.hparams.wav_augment if training else None
        return data.extract_batch(self.hparams.model, batch, augment)

    def replicate(self, values: torch.Tensor) -> torch.Tensor:
        """Repeat values [batch, ...] for each augmented copy of a clip."""
        augment = self.hparams.wav_augment
        return values if augment is None else augment.replicate_labels(values)

    def compute_objectives(
        self, predictions: Predictions, batch: PaddedBatch, stage: sb.Stage
    ) -> torch.Tensor:
        """Compute the loss; in evaluation, keep the predictions as well."""
        loss = self.class_loss(predictions, batch, stage)
        if not self.hparams.dimensions:
            return loss
        regression = self.regression_loss(predictions, batch, stage)
        share = self.hparams.dimension_weight
        return (1 - share) * loss + share * regression

    def class_loss(
        self, predictions: Predictions, batch: PaddedBatch, stage: sb.Stage
    ) -> torch.Tensor:
        """Sum the branches' weighted cross-entropies."""
        log_posteriors, outputs = predictions
        n_classes = log_posteriors.shape[1]
        logits = {name: value[:, :n_classes] for name, value in outputs.items()}
        targets = batch.emotion_encoded.data.squeeze(1)
        weights = self.hparams.model.branch_weights
        if stage != sb.Stage.TRAIN:
            self.scores["fused"].append(batch.id, log_posteriors, targets)
            for name, value in logits.items():
                log_probs = value.log_softmax(dim=-1)
                self.scores[name].append(batch.id, log_probs, targets)
            return fusion_loss(logits, targets, weights)
        share, soft = self.hparams.soft_labels, None
        if share > 0:
            soft = self.replicate(batch.emotion_soft.data)
        targets = self.replicate(targets)
        targets = mix_targets(targets, n_classes, soft, share, self.mix)
        smoothing, balance = self.hparams.label_smoothing, self.class_weights
        loss = fusion_loss(logits, targets, weights, smoothing, balance)
        amount = len(targets)
        if balance is not None and targets.dim() == 1:
            amount = balance[targets].sum()
        return loss * ddp_loss_scale(amount, self.device)

    def regression_loss(
        self, predictions: Predictions, batch: PaddedBatch, stage: sb.Stage
    ) -> torch.Tensor:
        """Sum the branches' weighted losses of valence, arousal, dominance."""
        log_posteriors, outputs = predictions
        n_classes = log_posteriors.shape[1]
        truth = batch.dimensions.data
        training = stage == sb.Stage.TRAIN
        if training:
            truth = self.replicate(truth)
            if self.mix is not None:
                partners, weight = self.mix
                truth = torch.lerp(truth[partners], truth, weight)
        else:
            fused = self.hparams.model.fuse(outputs)[:, n_classes:]
            self.dimensions.append(batch.id, fused, truth)
        weights = self.hparams.model.branch_weights
        return dimension_loss(
            outputs, truth, weights, n_classes, over_ranks=training
        )

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Begin with empty statistics."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            names = ["fused", *self.hparams.model.branches]
            labels = self.hparams.labels
            self.scores = {name: EmotionStats(labels) for name in names}
            if self.hparams.dimensions:
                self.dimensions = DimensionStats(self.hparams.dimensions)

    def on_stage_end(
        self,
        stage: sb.Stage,
        stage_loss: float | None,
        epoch: int | None = None,
    ) -> None:
        """After an epoch and its validation, if any, log and save a checkpoint."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = mean_over_ranks(stage_loss, self.device)
        if stage != sb.Stage.VALID:
            return
        stats = {}
        if stage_loss is not None:
            stats = headline(stage_loss, self.scores, self.dimensions)
        lr = float(self.optimizer.param_groups[0]["lr"])
        hparams = self.hparams
        if hparams.lr_interval == "epoch":
            self.step_schedules()
        if stats:
            hparams.epoch_counter.update_score(stats[criterion(vars(hparams))])
        score = epoch_score({**stats, "epoch": epoch}, vars(hparams))
        meta = {"epoch": epoch, "lr": lr}
        self.log_epoch(meta, {"loss": self.train_loss}, stats)
        if if_main_process():
            row = {**meta, "score": score, "train_loss": self.train_loss}
            save = Path(hparams.output_folder, "save")
            append_row(save / "epochs.jsonl", {**row, "valid": stats})
            # Before the checkpoint: a run killed in between repeats both rows
            if self.test_loader is not None:
                row = self.test_epoch(epoch, stats)
                append_row(save / "test_epochs.jsonl", row)
        self.progress.end_epoch(self.train_loss, stats)
        self.save_epoch({"epoch": epoch, "score": score, **stats})

    def test_epoch(self, epoch: int, stats: dict[str, float]) -> dict[str, Any]:
        """Score the test subset after an epoch; the selection does not use it."""
        # Under some protocols the test clips are the validation clips
        tested = self.test_loader.dataset.data_ids
        if not stats or set(tested) != set(self.scores["fused"].ids):
            self.on_stage_start(sb.Stage.TEST)
            losses = [
                float(self.evaluate_batch(batch, sb.Stage.TEST))
                for batch in self.test_loader
            ]
            loss = sum(losses) / len(losses)
            stats = headline(loss, self.scores, self.dimensions)
        rows = self.scores["fused"].rows()
        predicted = {row["id"]: row["predicted"] for row in rows}
        return {"epoch": epoch, **stats, "predicted": predicted}


def show_data(hparams: dict[str, Any]) -> None:
    """Print what is trained, on how many clips, and where."""
    path = Path(hparams["output_folder"], "save", "run.json")
    run = json.loads(path.read_text("utf-8"))
    clips = run["clips"]
    print(
        f"{run['system']} on {run['corpus']}: {clips['train']} clips for "
        f"training, {clips['valid']} for validation, {clips['test']} for the "
        f"test\nlog: {path.parents[1] / 'log.txt'}",
        flush=True,
    )


def save_model(
    brain: EmotionBrain, yaml: str, results: dict[str, Any], tokenizer: Any
) -> Path:
    """Write the model folder, and return its path."""
    hparams = brain.hparams
    folder = Path(hparams.output_folder, "model")
    temperature = results["calibration"]["temperature"]
    pretrained.save_pretrained(
        folder,
        yaml,
        brain.trained_model,
        hparams.labels,
        temperature,
        hparams.half_precision_model,
    )
    pretrained.write_card(folder, results)
    if tokenizer is not None:
        path = f"{tokenizer.prefix_model_file}.model"
        shutil.copy(path, folder / "tokenizer.model")
    return folder


def show_model(brain: EmotionBrain, model: Path) -> None:
    """Load the saved model, print its answers to test clips, and what to try."""
    hparams = vars(brain.hparams)
    folder = model.parent
    # The device of the training: the backend may not run on another
    run_opts = {"device": str(brain.device)}
    classifier = EmotionClassifier.from_hparams(model, run_opts=run_opts)
    clips = first_of_each(hparams, folder / "save" / "test.json")
    names = {label: Path(wav).name for label, wav in clips.items()}
    width, longest = max(map(len, names.values())), max(map(len, clips))
    print("\nThe first test clip of each class, and the saved model's answer:")
    for label, wav in clips.items():
        sig = load_clip(wav, classifier.hparams.sample_rate)
        _, score, _, answer = classifier.classify_batch(sig.unsqueeze(0))[:4]
        print(
            f"  {names[label]:{width}}  {label:{longest}} -> {answer[0]}, "
            f"posterior {score.exp().item():.2f}"
        )
    clip, _ = split_segment(next(iter(clips.values())))
    commands = commands_to_try(sys.argv[1:], __file__, folder, clip)
    print("\nNow try:", *commands, sep="\n  ")


def first_of_each(hparams: dict[str, Any], path: Path) -> dict[str, str]:
    """Path of the first clip of each class in a manifest."""
    items = json.loads(path.read_text("utf-8")).values()
    wavs = {item["emotion"]: item["wav"] for item in reversed(items)}
    root = Source(hparams).data_root
    return {
        label: wavs[label].format(data_root=root)
        for label in hparams["labels"]
        if label in wavs
    }


def main() -> None:
    """Run the recipe; SIGTERM and SIGUSR1 end it with code 143."""
    with StopSignals() as signals:
        run(signals)


def run(signals: StopSignals) -> None:
    """Train, evaluate, and write the results."""
    started = time.time()
    hparams_file, run_opts, overrides = parse_arguments(sys.argv[1:])
    hparams = read_hparams(hparams_file, overrides)
    init_group(run_opts, hparams["ddp_timeout"])
    # Other settings than those of the folder are refused before any writing
    record = RunRecord(hparams_file, overrides, name_run_folder(hparams))
    record.check()
    hparams = load_hparams(hparams_file, overrides)
    folder = record.folder
    hparams["output_folder"] = str(folder)
    check_data(hparams, record)
    if not record.trained:
        check_start(hparams)
    sb.create_experiment_directory(
        experiment_directory=str(folder),
        log_config=run_opts["log_config"] or LOG_CONFIG,
    )
    run_on_main(prepare_data, args=[hparams, record])
    run_on_main(show_data, args=[hparams])
    tokenizer = data.open_tokenizer(hparams)
    datasets = data.make_datasets(
        hparams, tokenizer, run_opts.device or infer_device()
    )
    parts = {name: hparams[name] for name in ("model", "epoch_counter")}
    checkpointer = AtomicCheckpointer(folder / "save", recoverables=parts)
    checkpointer.rescore = partial(epoch_score, hparams=hparams)
    saved = checkpointer.find_checkpoint() is not None
    resumed = saved and not run_opts.debug
    hparams["origin"] = pretrained.initialise(hparams, resumed)
    # No checkpoint holds the speakers' statistics, and --debug loads none
    needed = hparams["normalization"] == "speaker" or not resumed
    # The Brain refuses to test without a checkpoint: nothing to wait for
    if needed and (saved or not run_opts.test_only):
        with adapted_threads(hparams["threads"]):
            data.collect_statistics(
                hparams["model"], datasets, hparams["normalization"]
            )
    brain = EmotionBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=checkpointer,
    )
    brain.signals = signals
    brain.loggers = make_loggers(folder, hparams["use_tensorboard"])
    if hparams["class_weights"] is not None:
        emotions = [item["emotion"] for item in datasets["train"].data.values()]
        weights = class_weights(emotions, hparams["labels"])
        brain.class_weights = weights.to(brain.device)
    if hparams["test_every_epoch"]:
        options = data.evaluation_options(hparams)
        # Not the Brain's loader, which would resume in the middle
        brain.test_loader = make_dataloader(datasets["test"], **options)
    options = data.loader_options(hparams, datasets["train"])
    brain.fit(
        hparams["epoch_counter"],
        brain.make_train_loader(datasets["train"], **options),
        datasets.get("valid"),
        valid_loader_kwargs=data.evaluation_options(hparams),
    )
    scores = {}
    for name in [one for one in ("valid", "test") if one in datasets]:
        options = data.evaluation_options(hparams)
        brain.evaluate(datasets[name], "score", test_loader_kwargs=options)
        scores[name] = brain.scores
    if if_main_process():
        results = write_results(hparams, scores, time.time() - started)
        print(summarize_results(results))
        if brain.dimensions is not None:
            brain.dimensions.write(folder / "dimensions.csv")
            found = brain.dimensions.summarize().items()
            print("  ".join(f"{name} {value:.3f}" for name, value in found))
        # Sizes as numbers: the saved model must load without the corpus
        for name in ("n_classes", "n_outputs"):
            overrides += f"\n{name}: {hparams[name]}\n"
        yaml = resolve_hparams(hparams_file, overrides)
        model = save_model(brain, yaml, results, tokenizer)
        print(f"\nresults: {folder}\nmodel: {model}")
        # A model that reads transcripts answers no audio file
        if tokenizer is None:
            show_model(brain, model)


if __name__ == "__main__":
    main()
