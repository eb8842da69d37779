"""Hyperparameter files against the script that reads them.

A key nobody reads is a setting that does nothing. As SpeechBrain's own check
does, this one demands of each key at column 0 that it is referred to later
in the file, or stands in the script, or is one of SpeechBrain's run options.
"""

import re
from pathlib import Path

import pytest
from speechbrain.utils.run_opts import RunOptions

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = "recipes/emotion_recognition/train.py"
# Modules that receive the hyperparameters of the script
READERS = [
    *("training/brain.py", "training/data.py", "training/preparation.py"),
    "corpora/sources.py",
    *("evaluation/results.py", "hparams.py", "pretrained/initialisation.py"),
]
RUN_OPTIONS = set(RunOptions().as_dict())
# Positional, so that a prefix does not count as an option
POSITIONAL = {"param_file", "overridden_args", "distributed_launch"}
KEY = re.compile(r"^([A-Za-z_]\w*)\s*:")
INCLUDE = re.compile(r"!include:([^\s{]+)")


def without_comments(text):
    """Remove the comments of a text."""
    return re.sub(r"(^|\s)#.*", "", text, flags=re.M)


TEXTS = {
    path.name: without_comments(path.read_text("utf-8"))
    for path in sorted(REPOSITORY.glob("hparams/*.yaml"))
}


def references(text):
    """Names that a text refers to: !ref <name> or !ref <name[key]>.

    SpeechBrain's check does not see an attribute, <name.attribute>.
    """
    return {
        name
        for line in text.split("\n")
        if "!ref" in line
        for name in re.findall(r"<(\w+)(?:\[[^>]*)?>", line)
    }


def keys(text):
    """Yield each key at column 0 and the text from its line on."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        match = KEY.match(line)
        # !apply acts when the file is loaded; nothing has to read it
        if match and "!apply" not in line:
            yield match[1], "\n".join(lines[i:])


def in_script(key, script):
    """Whether a script reads a hyperparameter or a module."""
    name = re.escape(key)
    return re.search(
        rf"\b(?:hparams|modules)\.{name}\b"
        rf"|\b(?:hparams|modules)\[[\"']{name}[\"']\]"
        rf"|\bhparams\.get\(\s*[\"']{name}[\"']"
        rf"|attr\(\s*(?:self\.)?(?:hparams|modules),\s*[\"']{name}[\"']",
        script,
    )


def unused_keys(text, script):
    """List the keys that nothing reads."""
    return [
        key
        for key, rest in keys(text)
        if key not in references(rest)
        and key not in RUN_OPTIONS
        and not in_script(key, script)
    ]


def unused_in_include(name, texts, script=""):
    """List the keys of an included file that nothing reads.

    Its keys come as one mapping: ``a: !include:name`` makes ``<a[key]>``;
    and ``<a>`` passes them on all together. Those of ``recipe`` the script
    reads beside the file's own.
    """
    includers = []
    for text in texts.values():
        for key, rest in keys(text):
            line = rest.split("\n", 1)[0]
            if name in [Path(f).name for f in INCLUDE.findall(line)]:
                includers.append((key, text))
    if any(re.search(rf"<{key}>", text) for key, text in includers):
        return []
    read = {
        found
        for key, text in includers
        for found in re.findall(rf"<{key}\[(\w+)\]", text)
    }
    return [
        key
        for key, rest in keys(texts[name])
        if key not in references(rest)
        and key not in read
        and key not in RUN_OPTIONS
        and not in_script(key, script)
    ]


def missing_modules(text, script):
    """List modules the script demands and the file does not offer."""
    optional = set(
        re.findall(r"attr\(\s*self\.modules,\s*[\"'](\w+)[\"']", script)
    )
    methods = {"parameters", "keys", "values", "items", "eval", "train"}
    methods |= {"named_parameters", "state_dict", "to"}
    wanted = set(re.findall(r"\bself\.modules\.(\w+)", script))
    block = re.search(r"^modules:.*\n((?:[ \t].*\n|\n)*)", text + "\n", re.M)
    offered = re.findall(r"^\s+(\w+)\s*:", block[1], re.M) if block else []
    return sorted(wanted - optional - methods - set(offered))


# features.yaml is for other YAMLs to include, even if none does
INCLUDED = sorted(
    {Path(f).name for text in TEXTS.values() for f in INCLUDE.findall(text)}
    | {"features.yaml"}
)
TRAINING = [name for name in TEXTS if name not in INCLUDED]


@pytest.fixture(scope="module")
def script():
    """Text of the training script and of its helpers."""
    path = REPOSITORY / SCRIPT
    assert path.is_file(), f"{SCRIPT} is not there"
    paths = [path, *(REPOSITORY / "speechbrain_dslstm" / n for n in READERS)]
    return "\n".join(one.read_text("utf-8") for one in paths)


@pytest.mark.parametrize("name", TRAINING)
def test_every_key_is_read(name, script):
    unused = unused_keys(TEXTS[name], script)
    assert not unused, (
        f"hparams/{name}: neither a later !ref nor {SCRIPT} "
        f"(as hparams.KEY, hparams['KEY'] or modules.KEY) reads {unused}"
    )


@pytest.mark.parametrize("name", TRAINING)
def test_training_files_have_folders(name):
    missing = {"data_folder", "output_folder"} - {
        key for key, _ in keys(TEXTS[name])
    }
    assert not missing, f"hparams/{name} lacks the keys {sorted(missing)}"


@pytest.mark.parametrize("name", TRAINING)
def test_modules_of_the_script_are_there(name, script):
    missing = missing_modules(TEXTS[name], script)
    assert not missing, (
        f"{SCRIPT} uses self.modules.KEY unconditionally, but modules: in "
        f"hparams/{name} lacks {missing}"
    )


@pytest.mark.parametrize("name", INCLUDED)
def test_included_files_are_used(name, script):
    assert name in TEXTS, f"!include of hparams/{name}, which is not there"
    # Only what is included as `recipe` stands beside the file's own keys
    beside = script if name == "recipe.yaml" else ""
    unused = unused_in_include(name, TEXTS, beside)
    assert not unused, f"hparams/{name}: no including file reads {unused}"


@pytest.mark.parametrize("name", TEXTS)
def test_keys_are_no_swallowed_options(name):
    """No key is a prefix of an option of SpeechBrain's parser.

    Of several options: it refuses the prefix as ambiguous.
    """
    swallowed = [
        (key, option)
        for key, _ in keys(TEXTS[name])
        for option in sorted(RUN_OPTIONS - POSITIONAL)
        if option.startswith(key) and option != key
    ]
    assert not swallowed, (
        f"hparams/{name}: on the command line --KEY would be taken for a "
        f"run option, or be ambiguous: {swallowed}"
    )


GOOD_SCRIPT = 'hparams["epochs"]\nself.hparams.loss()\nself.modules.model(x)'
GOOD_YAML = """\
# Comment: not a key
seed: 1
__set_seed: !apply:torch.manual_seed [!ref <seed>]
data_folder: !PLACEHOLDER
output_folder: !ref results/<seed>/<data_folder>
precision: fp32
features: !include:features.yaml
    size: 3
epochs: 10
loss: !name:torch.nn.NLLLoss
size: 3
model: !new:torch.nn.Linear
    in_features: !ref <size>
    out_features: !ref <features[mel]>
modules:
    model: !ref <model>
save: !ref <output_folder>/save
"""
INCLUDED_YAML = "rate: 16000\nmel: !ref <rate> // 2\n"


@pytest.mark.parametrize(
    "old, new, unused",
    [
        ("", "", ["modules", "save"]),
        ("<size>", "3", ["size", "modules", "save"]),
        ("epochs", "epoch", ["epoch", "modules", "save"]),
        ("loss:", "los:", ["los", "modules", "save"]),
        # Only a LATER reference counts
        ("seed: 1", "seed: !ref <save>", ["modules", "save"]),
        ("precision", "precise", ["precise", "modules", "save"]),
        ("<features[mel]>", "2 # !ref <features>", ["features"]),
    ],
)
def test_the_check_of_keys(old, new, unused):
    text = without_comments(GOOD_YAML.replace(old, new))
    found = unused_keys(text, GOOD_SCRIPT)
    assert [key for key in unused if key not in found] == []
    if "modules" in unused:
        assert found == unused


def test_the_check_of_includes_and_modules():
    texts = {"a.yaml": GOOD_YAML, "features.yaml": INCLUDED_YAML}
    assert unused_in_include("features.yaml", texts) == []
    texts["a.yaml"] = GOOD_YAML.replace("[mel]", "[other]")
    assert unused_in_include("features.yaml", texts) == ["mel"]
    assert missing_modules(GOOD_YAML, GOOD_SCRIPT) == []
    assert missing_modules(GOOD_YAML, "self.modules.norm(x)") == ["norm"]
    optional = 'hasattr(self.modules, "norm")\nself.modules.norm(x)'
    assert missing_modules(GOOD_YAML, optional) == []
