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
import sys
import time
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

import speechbrain_dslstm
from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.corpora import prepare
from speechbrain_dslstm.corpora.manifest import write_manifest
from speechbrain_dslstm.inference import EmotionClassifier, save_pretrained
from speechbrain_dslstm.metrics import EmotionStats, format_confusion
from speechbrain_dslstm.models import fusion_loss
from speechbrain_dslstm.plots import plot_confusion
from speechbrain_dslstm.protocols import (
    check_leaks,
    format_leak_table,
    make_split,
    split_hash,
)
from speechbrain_dslstm.training import WeightAverage

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
        self.total_steps = None

    @property
    def trained_model(self):
        """The model that is evaluated and shipped."""
        if self.average is not None:
            return self.average.model
        return self.hparams.model

    def compute_forward(self, batch, stage):
        """Log-posteriors and the logits of each branch."""
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        if stage != sb.Stage.TRAIN:
            return self.trained_model(wavs, lens, return_branches=True)
        if self.hparams.wav_augment is not None:
            wavs, lens = self.hparams.wav_augment(wavs, lens)
        return self.modules.model(
            wavs,
            lens,
            fea_augment=self.hparams.fea_augment,
            return_branches=True,
        )

    def compute_objectives(self, predictions, batch, stage):
        """Weighted cross-entropies of the branches."""
        log_posteriors, logits = predictions
        targets = batch.emotion_encoded.data.squeeze(1)
        if stage == sb.Stage.TRAIN:
            if self.hparams.wav_augment is not None:
                targets = self.hparams.wav_augment.replicate_labels(targets)
            smoothing = self.hparams.label_smoothing
        else:
            smoothing = 0.0
            self.scores["fused"].append(batch.id, log_posteriors, targets)
            for name, value in logits.items():
                log_probs = value.log_softmax(dim=-1)
                self.scores[name].append(batch.id, log_probs, targets)
        weight = self.hparams.fusion_weight
        return fusion_loss(logits, targets, weight, smoothing)

    def init_optimizers(self):
        """The optimiser and its learning-rate schedule."""
        super().init_optimizers()
        schedule = self.hparams.lr_schedule
        options = {}
        if "total_steps" in inspect.signature(schedule).parameters:
            options["total_steps"] = self.total_steps
        self.scheduler = schedule(self.optimizer, **options)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("lr_schedule", self.scheduler)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Advance the schedule and the average of weights."""
        if should_step:
            if self.hparams.lr_interval == "batch":
                self.scheduler.step()
            if self.average is not None:
                self.average.update(self.hparams.model)

    def on_stage_start(self, stage, epoch=None):
        """New statistics for each stage; dynamic batches for each epoch."""
        if stage == sb.Stage.TRAIN:
            sampler = self.hparams.batch_sampler
            if sampler is not None and self.train_sampler is None:
                self.train_sampler = sampler
        else:
            self.trained_model.eval()
            names = ["fused", *self.hparams.model.branches]
            self.scores = {
                name: EmotionStats(self.hparams.labels) for name in names
            }

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log; after validation keep the best and the newest checkpoint."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = float(stage_loss)
            return
        stats = {"loss": float(stage_loss), **self.headline()}
        if stage == sb.Stage.TEST:
            return
        lr = float(self.optimizer.param_groups[0]["lr"])
        if self.hparams.lr_interval == "epoch":
            self.scheduler.step()
        self.hparams.epoch_counter.update_score(stats["ua"])
        score = selection_score(
            stats["ua"],
            epoch,
            self.hparams.number_of_epochs,
            self.hparams.selection_start,
        )
        meta = {"epoch": epoch, "lr": lr}
        train_stats = {"loss": self.train_loss}
        self.hparams.train_logger.log_stats(meta, train_stats, stats)
        if self.hparams.use_tensorboard:
            self.hparams.tensorboard_logger.log_stats(meta, train_stats, stats)
        if if_main_process():
            row = {**meta, "score": score, "valid": stats}
            row["train_loss"] = self.train_loss
            with open(self.hparams.epoch_log, "a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, "score": score, **stats},
                max_keys=["score"],
            )

    def headline(self):
        """Scores of this stage.

        Returns
        -------
        dict of str to float
            WA, UA and macro-F1, and the UA of each branch.
        """
        found = self.scores["fused"].summarize()
        stats = {name: found[name] for name in ("wa", "ua", "macro_f1")}
        for name, one in self.scores.items():
            if name != "fused":
                stats[f"ua_{name}"] = one.summarize("ua")
        return stats


def selection_score(ua, epoch, number_of_epochs, selection_start):
    """What the best epoch is chosen by: UA, once the schedule has annealed.

    The maximum over many epochs of a score on few speakers is mostly luck,
    so the epochs before compete only where there is no later one.

    Arguments
    ---------
    ua : float
        Validation UA, in [0, 1].
    epoch : int
        The epoch, from 1.
    number_of_epochs : int
        Epochs of the whole schedule.
    selection_start : float
        Share of the epochs that must have passed.

    Returns
    -------
    float
        UA, less 1 for an early epoch.

    Example
    -------
    >>> selection_score(0.75, 9, 10, 0.8), selection_score(0.75, 8, 10, 0.8)
    (0.75, -0.25)
    """
    return ua if epoch > selection_start * number_of_epochs else ua - 1.0


def prepare_data(hparams):
    """Read the corpus, split it, and write the manifests of this run.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters.

    Raises
    ------
    ValueError
        The output folder holds a run on another split.
    """
    entries, labels = prepare(
        hparams["corpus"],
        hparams["data_folder"],
        hparams["label_set"],
        **hparams["corpus_options"],
    )
    split = make_split(
        entries,
        hparams["protocol"],
        hparams["fold"],
        hparams["seed"],
        hparams["n_folds"],
        hparams["valid_speakers"],
    )
    leaks = check_leaks(split, entries)
    names = ["corpus", "label_set", "protocol", "fold", "seed", "system"]
    run = {name: hparams[name] for name in names}
    run.update(
        n_folds=split.n_folds,
        labels=labels,
        description=split.description,
        split_hash=split_hash(split),
        clips={
            "train": len(split.train),
            "valid": len(split.valid),
            "test": len(split.test),
            "dropped": split.dropped,
        },
        leaks=leaks,
    )
    folder = Path(hparams["save_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in run:
            if before.get(name) != run[name]:
                raise ValueError(
                    f"{hparams['output_folder']} holds a run with another "
                    f"{name} ({before.get(name)}, now {run[name]}): give "
                    "another --output_folder, or remove that one"
                )
    for side in ("train", "valid", "test"):
        ids = getattr(split, side)
        write_manifest(folder / f"{side}.json", {i: entries[i] for i in ids})
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)
    logger.info(f"split: {split.description}\n{format_leak_table(leaks)}")


def dataio_prep(hparams):
    """Datasets of the three sides, from the manifests.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters.

    Returns
    -------
    dict of str to DynamicItemDataset
        "train", "valid" and "test".
    """
    encoder = CategoricalEncoder()
    for index, label in enumerate(hparams["labels"]):
        encoder.enforce_label(label, index)
    encoder.expect_len(len(hparams["labels"]))
    sample_rate = hparams["features"]["sample_rate"]

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        """Waveform at the model's rate."""
        return load_audio(wav, sample_rate)

    @sb.utils.data_pipeline.takes("emotion")
    @sb.utils.data_pipeline.provides("emotion_encoded")
    def label_pipeline(emotion):
        """Index of the emotion."""
        return encoder.encode_label_torch(emotion)

    return {
        side: DynamicItemDataset.from_json(
            os.path.join(hparams["save_folder"], f"{side}.json"),
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, label_pipeline],
            output_keys=["id", "sig", "emotion_encoded"],
        )
        for side in ("train", "valid", "test")
    }


def loader_options(hparams, dataset):
    """Options of the training loader: batches of similar length.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters.
    dataset : DynamicItemDataset
        The training side.

    Returns
    -------
    dict
        For ``make_dataloader``.
    """
    options = {"num_workers": hparams["num_workers"]}
    if hparams["num_buckets"] <= 1:
        options.update(batch_size=hparams["batch_size"], shuffle=True)
        return options
    durations = [item["duration"] for item in dataset.data.values()]
    shares = np.linspace(0, 1, hparams["num_buckets"] + 1)[1:]
    boundaries = np.unique(np.quantile(durations, shares))
    options["batch_sampler"] = DynamicBatchSampler(
        dataset,
        # Only the number of clips limits a batch
        max_batch_length=hparams["batch_size"] * max(durations),
        max_batch_ex=hparams["batch_size"],
        bucket_boundaries=boundaries.tolist(),
        seed=hparams["seed"],
    )
    return options


def collect_statistics(hparams, dataset):
    """Feature statistics of the training side, before the first epoch.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters.
    dataset : DynamicItemDataset
        The training side.
    """
    logger.info("collecting feature statistics of the training side")
    loader = sb.dataio.dataloader.make_dataloader(dataset, batch_size=8)
    for batch in loader:
        hparams["model"].update_normalization(*batch.sig)


def write_results(brain, hparams, seconds):
    """Write what the test gave, and print it.

    Arguments
    ---------
    brain : EmotionBrain
        After ``evaluate``.
    hparams : dict
        The loaded hyperparameters.
    seconds : float
        Wall time of this process.
    """
    folder = Path(hparams["output_folder"])
    run_file = Path(hparams["save_folder"], "run.json")
    run = json.loads(run_file.read_text(encoding="utf-8"))
    epochs = {}
    for line in Path(hparams["epoch_log"]).read_text().splitlines():
        row = json.loads(line)
        epochs[row["epoch"]] = row
    best = max(epochs, key=lambda epoch: epochs[epoch]["score"])
    test = {name: one.summarize() for name, one in brain.scores.items()}
    found = test["fused"]
    note = ""
    if hparams["protocol"] == "paper":
        # The paper's own rule: two maxima over the epochs of the test fold
        found = {
            **found,
            "wa": max(row["valid"]["wa"] for row in epochs.values()),
            "ua": max(row["valid"]["ua"] for row in epochs.values()),
        }
    if hparams["protocol"] in ("paper", "random"):
        note = "speakers on both sides"
    if hparams["protocol"] == "paper":
        note += "; best epoch chosen on the test fold, WA and UA apart"
    results = {
        **run,
        "note": note,
        "wa": found["wa"],
        "ua": found["ua"],
        "macro_f1": found["macro_f1"],
        "test": test,
        "best_epoch": best,
        "epochs": len(epochs),
        "valid": epochs[best]["valid"],
        "parameters": sum(p.numel() for p in hparams["model"].parameters()),
        "seconds": round(seconds, 1),
        "command": sys.argv,
        "versions": {
            "speechbrain_dslstm": speechbrain_dslstm.__version__,
            "speechbrain": sb.__version__,
            "torch": torch.__version__,
        },
    }
    aside = folder / "results.json.part"
    aside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, folder / "results.json")
    brain.scores["fused"].write_predictions(folder / "predictions.csv")
    plot_confusion(
        test["fused"]["confusion"],
        hparams["labels"],
        folder / "confusion.png",
        f"{run['system']} on {run['corpus']}: {run['protocol']}, "
        f"fold {run['fold']}",
    )
    print(f"\n{run['description']}")
    if note:
        print(f"NOTE: {note}")
    print(
        f"test: WA {found['wa']:.1%}  UA {found['ua']:.1%}  "
        f"macro-F1 {found['macro_f1']:.1%}  ({test['fused']['n']} clips)\n"
    )
    print(format_confusion(test["fused"]["confusion"], hparams["labels"]))
    print(f"\nresults: {folder}")


def save_model(brain, hparams, hparams_file, overrides):
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
    """
    folder = Path(hparams["output_folder"], "model")
    # The number of classes as a number: a model must not ask for its corpus
    overrides = f"{overrides}\nn_classes: {hparams['n_classes']}\n"
    with open(hparams_file, encoding="utf-8") as file:
        text = resolve_references(file, overrides).getvalue()
    save_pretrained(folder, text, brain.trained_model, hparams["labels"])
    classifier = EmotionClassifier.from_hparams(folder)
    manifest = Path(hparams["save_folder"], "test.json")
    item = next(iter(json.loads(manifest.read_text("utf-8")).values()))
    wav = item["wav"].format(data_root=hparams["data_folder"])
    _, score, _, label = classifier.classify_file(wav)
    print(f"model: {folder}")
    print(
        f"held-out file {Path(wav).name} ({item['emotion']}) -> "
        f"{label[0]}, posterior {score.exp().item():.2f}"
    )


def main():
    """Run the recipe."""
    started = time.time()
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    run_on_main(prepare_data, kwargs={"hparams": hparams})
    datasets = dataio_prep(hparams)
    hparams["epoch_log"] = os.path.join(hparams["save_folder"], "epochs.jsonl")
    if hparams["use_tensorboard"]:
        from speechbrain.utils.train_logger import TensorboardLogger

        hparams["tensorboard_logger"] = TensorboardLogger(
            os.path.join(hparams["output_folder"], "tensorboard")
        )
    train_options = loader_options(hparams, datasets["train"])
    hparams["batch_sampler"] = train_options.get("batch_sampler")
    checkpointer = hparams["checkpointer"]
    if checkpointer.find_checkpoint() is None:
        if run_opts.get("test_only"):
            raise FileNotFoundError(
                f"no checkpoint to test in {hparams['save_folder']}: "
                "train first, without --test_only"
            )
        collect_statistics(hparams, datasets["train"])
    brain = EmotionBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=checkpointer,
    )
    eval_options = {
        "batch_size": hparams["batch_size"],
        "num_workers": hparams["num_workers"],
    }
    train_loader = brain.make_dataloader(
        datasets["train"], sb.Stage.TRAIN, **train_options
    )
    steps = max(1, len(train_loader) // brain.grad_accumulation_factor)
    brain.total_steps = steps * hparams["number_of_epochs"]
    brain.fit(
        hparams["epoch_counter"],
        train_loader,
        datasets["valid"],
        valid_loader_kwargs=dict(eval_options),
    )
    brain.evaluate(
        datasets["test"], max_key="score", test_loader_kwargs=dict(eval_options)
    )
    if if_main_process():
        write_results(brain, hparams, time.time() - started)
        save_model(brain, hparams, hparams_file, overrides)


if __name__ == "__main__":
    main()
