"""A user's own folder of images, one folder for each label: ``<label>/*.jpg`` or ``<split>/<label>/*.jpg``."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Final

from sweeper.data.build import Source
from sweeper.data.columns import IMAGE_SUFFIXES
from sweeper.data.dataset import storable
from sweeper.data.images import StoredImage
from sweeper.data.paths import leaves, split_paths
from sweeper.data.request import DataRequest
from sweeper.data.tables import SPLIT_NAMES
from sweeper.errors import DataError

__all__ = ["read"]

LAYOUT: Final = "Expected is <folder>/<label>/<image>, or <folder>/{train,validation,test}/<label>/<image>."

#: What is counted and left out, and what a person should know of it.
LEFT_OUT: Final = {
    "hidden_files": "",
    "other_files": "",
    "files_outside_of_labels": "Images beside the folders of labels, left out",
    "links_out_of_the_folder": "Links that lead out of the folder or nowhere, left out",
    "linked_folders": "Links to folders, not followed",
    "unreadable_files": "Images or folders that may not be read, left out",
    "empty_labels": "Folders of labels without an image",
}


def read(request: DataRequest) -> Source:
    """List the images below ``dataset.path``, and of ``dataset.validation_path`` and ``dataset.test_path`` if given.

    The first folder below a split's names the label; folders below that one may be nested. Hidden files, files that
    are no images by their ending, and links out of the folder are counted and left out. Linked folders are not entered.

    Raises:
        ConfigError: a folder does not exist.
        DataError: a split has no images, or the folder mixes splits and labels.
    """
    counts: Counter[str] = Counter()
    inputs: list[StoredImage] = []
    labels: list[str] = []
    splits: list[str] = []
    for asked, root in split_paths(request, folder=True).items():
        for folder, split in ((asked == "train" and _splits(root)) or {root: asked}).items():
            images = _labelled(folder, root, counts)
            if not images:
                raise DataError(f"{folder} has no images in folders of labels{_left_out(counts)}", LAYOUT)
            inputs += [StoredImage(path, storable(path.relative_to(root).as_posix())) for path, _ in images]
            labels += [label for _, label in images]
            splits += [split] * len(images)
    return Source(
        inputs=inputs,
        labels=list(labels),
        items=list(range(len(inputs))),
        splits=splits if len(set(splits)) > 1 else [],
        counts={"images": len(inputs), **counts},
        warnings=[f"{LEFT_OUT[name]}: {count}." for name, count in counts.items() if LEFT_OUT[name]],
    )


def _splits(root: Path) -> dict[Path, str]:
    """The folders of splits, where the first level names splits; empty where it names labels.

    Raises:
        DataError: it names some of both.
    """
    folders = [Path(entry.path) for entry in _entries(root) if entry.is_dir(follow_symlinks=False)]
    splits = {path: SPLIT_NAMES[path.name.lower()] for path in folders if path.name.lower() in SPLIT_NAMES}
    others = [storable(path.name) for path in folders if path not in splits]
    train = [path for path, split in splits.items() if split == "train"]
    if not splits or (others and (not train or any(_is_image(entry.name) for entry in _entries(train[0])))):
        return {}  # labels, even if one of them is called train
    if not train:
        raise DataError(f"{root} has the splits {', '.join(path.name for path in splits)} and no train", LAYOUT)
    if others:
        raise DataError(f"{root} has a folder train and others that name no split: {', '.join(others[:5])}", LAYOUT)
    return splits


def _labelled(folder: Path, root: Path, counts: Counter[str]) -> list[tuple[Path, str]]:
    """The images below the folders of labels, with their labels, in the order of their paths."""
    found: list[tuple[Path, str]] = []
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            label = storable(entry.name)
            images = _images(Path(entry.path), root, counts)
            counts.update({"empty_labels": 1} if not images else {})
            found += [(path, label) for path in images]
        elif _is_image(entry.name):
            counts["linked_folders" if entry.is_dir() else "files_outside_of_labels"] += 1
        else:
            counts["linked_folders" if entry.is_dir() else "other_files"] += 1
    return found


def _images(folder: Path, root: Path, counts: Counter[str]) -> list[Path]:
    images = []

    def unreadable(error: OSError) -> None:
        counts["unreadable_files"] += 1

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        hidden = [name for name in folders if name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = [name for name in folders if name not in hidden]
        counts.update({"linked_folders": len(links)} if links else {})
        for name in names:
            path = Path(parent, name)
            if name.startswith("."):
                counts["hidden_files"] += 1
            elif not _is_image(name):
                counts["other_files"] += 1
            elif not path.is_file() or leaves(path, root):
                counts["links_out_of_the_folder"] += 1
            elif not os.access(path, os.R_OK):
                counts["unreadable_files"] += 1
            else:
                images.append(path)
    return sorted(images)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, by name."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _left_out(counts: Counter[str]) -> str:
    found = [f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()]
    return f" ({', '.join(found)})" if found else ""
