"""Command lines of the recipe: each value arrives as it was meant, or not at all."""

import math
from pathlib import Path

import pytest

from speechbrain_dslstm.hparams import load_hparams, read_hparams
from speechbrain_dslstm.settings import parse_arguments

YAML = str(Path(__file__).resolve().parents[3] / "hparams" / "dual_level.yaml")


@pytest.mark.parametrize(
    "text",
    [
        *("1234", "1e5", "0x1f", "007", "2024-01-01", "1_000", "12:30", "on"),
        *("No", "true", "a=b", "=", "run #1", "x: y", "*x", "&y", "@z", "%a"),
        *(
            "[x]",
            "{y}",
            "- a",
            "it's",
            'a"b',
            "ümlaut",
            " blank ",
            "a\\b",
            "-1",
        ),
    ],
)
def test_folders_stay_the_text_that_was_typed(text):
    given = [YAML, f"--output_folder={text}", f"--data_folder={text}"]
    path, _, overrides = parse_arguments(given)
    for read in (read_hparams, load_hparams):
        found = read(path, overrides)
        assert found["output_folder"] == found["data_folder"] == text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--lr=1", 1),
        ("--lr=1e-3", 0.001),
        ("--max_grad_norm=.inf", math.inf),
        ("--use_tensorboard", True),
        ("--use_tensorboard=False", False),
        ("--channels=[2, 2]", [2, 2]),
        ("--corpus_options={speakers: 2}", {"speakers": 2}),
        # null is for keys whose comment or default has it
        ("--average_decay=null", None),
        ("--output_folder=null", None),
        ("--label_set=", None),
        ("--label_map=!!x=a,~=b,{}=c", "!!x=a,~=b,{}=c"),
        ("--label_map={a: b}", {"a": "b"}),
        ("--classes=#1,*2", "#1,*2"),
        ("--classes=[a, b]", ["a", "b"]),
        ("--corpus=null", "null"),
        ("--system='on'", "on"),
        ("--patience=3", 3),
        ("--fea_augment=null", None),
        ("--output_folder=!ref runs/<seed>", "runs/1234"),
    ],
)
def test_values(option, value):
    path, _, overrides = parse_arguments([YAML, option])
    key = option[2:].partition("=")[0]
    assert read_hparams(path, overrides)[key] == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--lr=abc", "lr is 'abc', expected a number$"),
        ("--lr=null", "lr is 'null', expected a number$"),
        ("--lr=True", "lr is 'True', expected a number$"),
        ("--batch_size=4.5", "batch_size is '4.5', expected a whole number"),
        ("--channels=3", "channels is '3', expected a list"),
        ("--test_every_epoch=yes", "is 'yes', expected True or False"),
        (
            "--average_decay=x",
            "average_decay is 'x', expected a number or null",
        ),
        ("--lr=[1", "lr is '\\[1', not valid YAML"),
        ("--lr", "--lr has no value: write --lr=VALUE"),
        ("--hiden_size=4", "no key 'hiden_size' .*did you mean hidden_size\\?"),
        ("--prec=bf16", "no key 'prec' .*did you mean precision"),
        ("--recipee=1", "no key 'recipee'"),
        ("--precision=fp8", "invalid choice: 'fp8'"),
        ("--device", "expected one argument"),
        ("lr=4", "unexpected argument 'lr=4': write options as --key=value"),
    ],
)
def test_errors_are_one_line_that_names_the_key(options, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_arguments([YAML, *options.split()])
    assert "\n" not in str(error.value)


def test_options_of_both_kinds_in_any_order():
    given = ["--noprogressbar", "--precision=bf16", "--lr", "0.1", YAML]
    given += ["--device", "cpu", "--fold=2", "--max_grad_norm", "2.5"]
    path, run_opts, overrides = parse_arguments(given)
    assert path == YAML and run_opts["device"] == "cpu"
    assert run_opts["noprogressbar"] and run_opts["max_grad_norm"] == 2.5
    found = read_hparams(path, overrides)
    assert (found["lr"], found["fold"]) == (0.1, 2)
    # Those that change results are settings of the run
    assert (found["precision"], found["max_grad_norm"]) == ("bf16", 2.5)
    assert "device" not in found


def test_a_missing_yaml(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file no.yaml"):
        parse_arguments(["no.yaml"])
