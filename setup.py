"""The only home of the package's metadata, pins and extras."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def read_description() -> str:
    """The README; links into the repository become their text, pictures go."""
    readme = Path(__file__).parent / "README.md"
    text = readme.read_text("utf-8") if readme.exists() else ""
    local = r"\[([^\]]+)\]\((?!\w+:)[^)]+\)"
    return re.sub(local, r"\1", re.sub(rf"!{local}\n\n", "", text))


# The recipe travels with the wheel, in the layout of the checkout
FILES = "speechbrain_dslstm.recipe_files"
RECIPE = {
    f"{FILES}.hparams": "hparams",
    f"{FILES}.recipes.emotion_recognition": "recipes/emotion_recognition",
    f"{FILES}.results": "results",
}

setup(
    name="speechbrain-dslstm",
    version="0.1.0",
    description=(
        "The Dual-Sequence LSTM for speech emotion recognition, "
        "as a SpeechBrain plugin"
    ),
    long_description=read_description(),
    long_description_content_type="text/markdown",
    author="The speechbrain-dslstm authors",
    license="Apache-2.0",
    project_urls={"Paper": "https://arxiv.org/abs/1910.08874"},
    keywords="speech emotion recognition lstm speechbrain pytorch",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[*find_packages(include=["speechbrain_dslstm*"]), *RECIPE],
    package_dir=RECIPE,
    package_data={
        f"{FILES}.hparams": ["*.yaml", "README.md"],
        f"{FILES}.recipes.emotion_recognition": ["README.md"],
        f"{FILES}.results": ["baselines.yaml"],
        "speechbrain_dslstm": [
            "py.typed",
            "**/*.pyi",
            "report/templates/*.j2",
            "server/page/*",
            "shipped/*/*",
            "training/log.yaml",
        ],
    },
    python_requires=">=3.10",
    install_requires=[
        # The tests pass with 2.10 and 2.11 (tests/torch_range.py). There is no
        # torchaudio for a newer torch; with 2.9 the Triton kernel does not compile.
        "torch>=2.10,<2.12",
        "torchaudio>=2.10,<2.12",
        "speechbrain>=1.1.2,<1.2",
        "click>=8.1",
        "hyperpyyaml>=1.2.3",
        "jinja2>=3.1",
        "joblib>=1.3",
        "jsonschema>=4.20",
        "lazy_loader>=0.4",
        # Not imported: the reference that the mel-spectrograms equal
        "librosa>=0.11",
        "matplotlib>=3.8",
        "numba>=0.61",
        "numpy>=1.26",
        "psutil>=5.9",
        "pyyaml>=6",
        "ruamel.yaml>=0.17.28",
        "safetensors>=0.4",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "sentencepiece>=0.2",
        "soundfile>=0.12.1",
        "soxr>=0.3.7",
        "tqdm>=4.66",
    ],
    entry_points={
        "console_scripts": ["dslstm = speechbrain_dslstm.cli.app:main"]
    },
    extras_require={
        "export": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
        # FFmpeg, 36 MB to download and 104 MB installed: m4a, mp4, webm, ...
        "media": ["av>=14"],
        # Self-supervised encoders, through SpeechBrain's wrappers
        "ssl": ["transformers>=4.40"],
        "serve": [
            "fastapi>=0.115",
            "prometheus-client>=0.20",
            "python-multipart>=0.0.18",
            "uvicorn>=0.30",
        ],
        # 79 MB to download and 240 MB installed, without pyarrow
        "ray": ["ray[data]>=2.49,<3"],
        # Its wheels for macOS and Windows hold PortAudio, those for Linux do not
        "mic": ["sounddevice>=0.4.6"],
        # A corpus as tar files, for training
        "shards": ["webdataset>=1.0,<2"],
        "tensorboard": ["tensorboard>=2.15"],
        # Tables of audformat databases, as own data
        "audformat": ["audformat>=1.3"],
        "docs": [
            "furo>=2024.8",
            "myst-nb>=1.3",
            "sphinx>=8",
            "sphinx-copybutton>=0.5",
        ],
        "test": [
            "audformat>=1.3",
            "av>=14",
            "build>=1.2",
            "codespell>=2.3",
            "fastapi>=0.115",
            "furo>=2024.8",
            "httpx>=0.27",
            "hypothesis>=6.100",
            "import-linter>=2.1",
            # The tutorial notebook is run, and shown by the site
            "ipykernel>=6.29",
            "myst-nb>=1.3",
            "nbclient>=0.10",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "onnxscript>=0.5",
            # The reference of the MFCCs; tests only
            "opensmile>=2.5",
            "prometheus-client>=0.20",
            "pytest>=8.2",
            "pytest-xdist>=3.7",
            "python-multipart>=0.0.18",
            "ray[data]>=2.49,<3",
            # The version SpeechBrain's own checks run
            "ruff==0.12.4",
            "setuptools>=68",
            "sphinx>=8",
            "sphinx-copybutton>=0.5",
            "transformers>=4.40",
            "twine>=6",
            "uvicorn>=0.30",
            "webdataset>=1.0,<2",
            "yamllint>=1.35",
        ],
    },
)
