"""Name the parts of a model, and keep some of them as they are in training."""

from collections.abc import Iterable

import torch

__all__ = ["FEATURES", "find_parts", "freeze_parts", "keep_frozen", "to_names"]

# The statistics of the feature normalisation, which are no parameters
FEATURES = "features"


def to_names(freeze: str | Iterable[str] | None) -> list[str]:
    """List the names in the option ``freeze``: a list, or text with commas.

    >>> to_names("features, mfcc")
    ['features', 'mfcc']
    """
    if freeze is None:
        return []
    given = freeze.split(",") if isinstance(freeze, str) else freeze
    return [name for name in (str(one).strip() for one in given) if name]


def find_parts(
    model: torch.nn.Module, names: Iterable[str]
) -> list[torch.nn.Module]:
    """Look parts of a model up by name, without ``FEATURES``.

    A name is that of a branch ("mfcc"), of a part in it ("spectrogram.cnn_x"),
    or only of the part ("cnn_x"), which then stands for all parts of that name.
    An unknown name raises a ValueError that lists all names.
    """
    parts = _named_parts(model)
    found = []
    for name in names:
        if name == FEATURES:
            continue
        matching = [
            part
            for path, part in parts.items()
            if path == name or path.endswith(f".{name}")
        ]
        if not matching:
            raise ValueError(
                f"freeze: the model has no part {name!r}; expected one of "
                f"{', '.join([FEATURES, *parts])}"
            )
        found += matching
    return found


def _named_parts(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Branches, their parts and the parts of these, if they have parameters."""
    branches = getattr(model, "branches", None)
    root = model if branches is None else branches
    return {
        path: part
        for path, part in root.named_modules()
        if path
        and path.count(".") <= 2
        and not isinstance(part, torch.nn.ModuleList)
        and not any(step.isdigit() for step in path.split("."))
        and any(True for _ in part.parameters())
    }


def freeze_parts(
    model: torch.nn.Module, names: Iterable[str]
) -> list[torch.nn.Module]:
    """Exclude parts of a model from training; return them for ``keep_frozen``.

    Raises a ValueError for an unknown name, and if no parameter is left.
    """
    names = list(names)
    frozen = find_parts(model, names)
    for part in frozen:
        part.requires_grad_(False)
    if frozen and not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"freeze={','.join(names)} leaves nothing to train: leave a part "
            "out, such as the linear layers (head)"
        )
    return frozen


def keep_frozen(frozen: Iterable[torch.nn.Module]) -> None:
    """Stop dropout and the statistics of batch norm in frozen parts.

    Call it after each ``model.train()``, which would start both again.
    """
    for part in frozen:
        part.eval()
        for module in part.modules():
            # cuDNN computes no gradient of the input in evaluation mode
            if isinstance(module, torch.nn.RNNBase):
                module.train()
                module.dropout = 0.0
