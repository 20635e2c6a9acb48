"""Stored images of every kind, what models read of them, augmentation, and image datasets from file to floor."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from strategies import Frozen, Full
from sweeper.data import load_dataset
from sweeper.data.build import Source, build
from sweeper.data.floors import floors
from sweeper.data.images import ImageEncoder, StoredImage, unreadable
from sweeper.data.request import DataRequest
from sweeper.errors import DataError
from sweeper.models.preprocessing import preprocessing_of, with_image_size
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from tests.cli import run, runs
from tests.tasks import SETTINGS


def encoded(image: Image.Image, kind: str, **options: Any) -> StoredImage:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return StoredImage(buffer.getvalue())


def colours(image: StoredImage) -> list[tuple[int, int, int]]:
    """The colours of the first row."""
    opened = image.open()
    assert opened.mode == "RGB"
    return [opened.getpixel((x, 0)) for x in range(opened.width)]  # type: ignore[misc]


# --- what is stored ----------------------------------------------------------------------------------------------


def test_transparent_parts_are_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (10, 20, 30, 255))
    assert colours(encoded(rgba, "PNG")) == [(255, 255, 255), (10, 20, 30)]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert colours(encoded(grey, "PNG")) == [(255, 255, 255)]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert colours(encoded(palette, "PNG")) == [(0, 0, 0), (200, 100, 50)]
    assert colours(encoded(palette, "PNG", transparency=0)) == [(255, 255, 255), (200, 100, 50)]


def test_sixteen_bits_become_eight() -> None:
    wide = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert colours(encoded(Image.fromarray(wide), "PNG")) == [(0,) * 3, (100,) * 3, (255,) * 3]
    narrow = np.array([[0, 100, 255]], dtype=np.int32)
    assert colours(encoded(Image.fromarray(narrow), "TIFF")) == [(0,) * 3, (100,) * 3, (255,) * 3]


def test_grey_cmyk_and_bilevel_images_become_rgb() -> None:
    assert colours(encoded(Image.new("L", (1, 1), 77), "PNG")) == [(77,) * 3]
    assert colours(encoded(Image.new("1", (1, 1), 1), "PNG")) == [(255,) * 3]
    assert colours(encoded(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF")) == [(0,) * 3]
    assert colours(StoredImage(np.full((1, 1), 7, dtype=np.uint8))) == [(7,) * 3]
    assert StoredImage(np.zeros((4, 6, 3), dtype=np.uint8)).size == (6, 4)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    lying = Image.new("RGB", (2, 1), "red")
    lying.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned by 90 degrees
    stored = encoded(lying, "PNG", exif=exif)
    upright = stored.open()
    assert upright.size == (1, 2)
    assert [upright.getpixel((0, y)) for y in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    (tmp_path / "a.png").write_bytes(stored.source)  # type: ignore[arg-type]
    file = StoredImage(tmp_path / "a.png")
    assert file.digest() == stored.digest()
    assert str(file) == str(tmp_path / "a.png")
    assert file.open().size == (1, 2)


def test_what_is_no_image_is_found_before_it_matters(tmp_path: Path) -> None:
    good = encoded(Image.new("RGB", (8, 8)), "PNG")
    cut = StoredImage(good.source[:40])  # type: ignore[index]
    found = unreadable([good, StoredImage(tmp_path / "none.png"), StoredImage(b"text"), cut])
    assert sorted(found) == [1, 2, 3]
    assert "none.png" in found[1]


def shaded(count: int, *, broken: tuple[int, ...] = ()) -> Source:
    """Dark and light images, by turns."""
    images = [
        StoredImage(b"no image" if i in broken else np.full((12, 12, 3), 40 + 160 * (i % 2), np.uint8), name=f"{i}.png")
        for i in range(count)
    ]
    return Source(images, [("dark", "light")[i % 2] for i in range(count)], list(range(count)))


def test_unreadable_images_are_counted_and_left_out() -> None:
    request = DataRequest(name="mine", source="image_folder", modality="image")
    dataset = build(request, shaded(60, broken=(3, 10)))
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sum(map(len, splits)) == 58
    assert not {3, 10} & {item for split in splits for item in split.items.tolist()}
    assert dataset.summary["source"]["unreadable_images"] == 2
    (warning,) = [line for line in dataset.summary["warnings"] if "cannot be read" in line]
    assert warning.startswith("Images that cannot be read, left out: 2, such as ") and ".png (" in warning
    with pytest.raises(DataError, match=r"no image of the \w+ split can be read"):
        build(request, shaded(60, broken=tuple(range(60))))


def test_the_floor_of_images_tells_dark_from_light() -> None:
    dataset = build(DataRequest(name="mine", source="image_folder", modality="image"), shaded(60))
    majority, pixels = floors(dataset)
    assert (majority.name, pixels.name) == ("majority", "pixels_logreg")
    assert (majority.test_accuracy, pixels.test_accuracy) == (0.5, 1.0)
    assert pixels.trainable_params == 16 * 16 * 3 + 1


# --- what models read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resnet", "vit", "clip-with-text"])
@pytest.mark.parametrize("image_size", [None, 48])
def test_two_steps_give_what_the_models_own_processor_gives(
    kind: str, image_size: int | None, checkpoint: Callable[[str], Path]
) -> None:
    processor = AutoImageProcessor.from_pretrained(checkpoint(kind))
    if image_size is not None:
        processor = with_image_size(processor, image_size)
    preprocessing = preprocessing_of(processor)
    assert preprocessing.size == ((image_size or 32),) * 2
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    geometry = preprocessing.geometry(image)
    assert geometry.dtype == torch.uint8
    whole = processor([image], return_tensors="pt")["pixel_values"]
    # Rounding to 8 bits between the steps is at most one level.
    tolerance = 1.01 / 255 / min(preprocessing.std)
    torch.testing.assert_close(preprocessing.normalise(geometry[None]), whole, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def preprocessing(checkpoint: Callable[[str], Path]) -> Any:
    return preprocessing_of(AutoImageProcessor.from_pretrained(checkpoint("resnet")))


def noisy(count: int) -> list[StoredImage]:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 40, 40, 3), dtype=np.uint8)
    return [StoredImage(image) for image in pixels]


@pytest.mark.parametrize("augmentation", ["light", "strong"])
def test_augmentation_depends_on_seed_item_and_epoch_alone(augmentation: str, preprocessing: Any) -> None:
    encoder = ImageEncoder(preprocessing, augmentation)
    split = encoder.encode(noisy(4), np.arange(4), by_length=False)

    def epochs(seed: int, *, draw: bool) -> list[torch.Tensor]:
        examples = encoder.training(split, seed)
        found = []
        for _ in range(2):
            if draw:
                torch.rand(7)  # as dropout does, a different number of times in each strategy
            found.append(torch.stack([examples[index]["pixel_values"] for index in (2, 0, 3, 1)]))
        return found

    first, same, other = epochs(1, draw=False), epochs(1, draw=True), epochs(2, draw=False)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], first[1]), "another epoch, another crop"
    assert not torch.equal(first[0], other[0])
    state = torch.get_rng_state()
    encoder.training(split, 1)[0]
    assert torch.equal(torch.get_rng_state(), state), "what trains draws the same numbers with it and without"
    assert [row["labels"] for row in encoder.training(split, 1)] == [0, 1, 2, 3]


def test_augmented_images_are_normalised_as_the_model_wants_and_others_stay(preprocessing: Any) -> None:
    encoder = ImageEncoder(preprocessing, "strong")
    split = encoder.encode(noisy(3), np.arange(3), by_length=True)
    plain = ImageEncoder(preprocessing).encode(noisy(3), np.arange(3), by_length=True)
    for mine, theirs in zip(split.examples, plain.examples, strict=True):  # what validation and test are scored on
        assert torch.equal(mine["pixel_values"], theirs["pixel_values"])
    row = encoder.training(split, 0)[0]
    assert row["pixel_values"].dtype == torch.uint8
    batch = encoder.collate([row])
    torch.testing.assert_close(batch["pixel_values"][0], (row["pixel_values"] / 255 - 0.5) / 0.5)
    assert batch["labels"].tolist() == [0]


# --- training ----------------------------------------------------------------------------------------------------


def load(folder: Path, dataset: Any, *, image_size: int | None = None, **settings: Any) -> Task:
    return Task.load(
        dataset,
        folder,
        head="linear",
        pooling="mean",
        revision=None,
        settings=dataclasses.replace(SETTINGS, **settings),
        image_size=image_size,
    )


def digits(train: int, test: int) -> Any:
    return load_dataset("digits", modality="image", train_size=train, validation_size=20, test_size=test)


def test_a_saved_image_model_reads_and_predicts_the_same(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    dataset = digits(40, 30)
    task = load(checkpoint("resnet"), dataset, image_size=48)
    assert task.settings.length_grouping is False
    assert task.test.examples[0]["pixel_values"].shape == (3, 48, 48)
    finished = task.run(StrategySpec(Full, {"learning_rate": 1e-3}, {}), {}, seed=0)
    scores = task.score_test(finished)
    task.save(finished, tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True).eval()
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(
        [image.open() for image in dataset.test.inputs], return_tensors="pt"
    )["pixel_values"]
    assert pixels.shape[2:] == (48, 48)
    with torch.no_grad():
        highest = model(pixel_values=pixels).logits.softmax(-1).max(-1)
    assert highest.indices.tolist() == scores.predictions["prediction"].tolist()
    assert highest.values.numpy() == pytest.approx(scores.predictions["probability"].to_numpy(), abs=0.01)
    assert model.config.id2label == dict(enumerate(dataset.label_names))


def unbalanced() -> Any:
    """Noise, a little lighter in a tenth of the images: without weights the rare class is hardly ever predicted."""
    generator = np.random.default_rng(0)
    images, labels = [], []
    for index in range(300):
        rare = index % 10 == 0
        images.append(StoredImage(generator.normal(150 if rare else 120, 60, (8, 8)).clip(0, 255).astype(np.uint8)))
        labels.append("rare" if rare else "common")
    request = DataRequest(name="unbalanced", source="image_folder", modality="image")
    return build(request, Source(images, labels, list(range(300)), label_names=["common", "rare"]))


def test_class_weights_find_more_of_a_rare_class(checkpoint: Callable[[str], Path]) -> None:
    dataset, recall = unbalanced(), {}
    for weights in ("none", "balanced"):
        task = load(checkpoint("resnet"), dataset, class_weights=weights, epochs=4)
        task = dataclasses.replace(
            task, settings=dataclasses.replace(task.settings, metric="validation_loss", maximize=False)
        )
        finished = task.run(StrategySpec(Frozen, {"learning_rate": 1e-2}, {}), {}, seed=0)
        table = task.score_test(finished).predictions
        recall[weights] = (table["prediction"] == 1)[table["label"] == 1].mean()
    assert recall["balanced"] > recall["none"] + 0.2, recall


def test_the_weighted_loss_is_torchs_and_does_not_grow_with_accumulation(checkpoint: Callable[[str], Path]) -> None:
    dataset = unbalanced()
    task = load(checkpoint("resnet"), dataset, class_weights="balanced", batch_size=len(dataset.train))
    counts = np.bincount(dataset.train.labels)
    weights = torch.tensor(len(dataset.train) / (2 * counts), dtype=torch.float32)
    spec = StrategySpec(Frozen, {"learning_rate": 1e-9}, {})
    finished = task.run(spec, {}, seed=0)
    model = finished.model.eval()
    rows = [task.validation.examples[index] for index in range(len(task.validation))]
    batch = task.encoder.collate(rows)
    with torch.no_grad():
        logits = model(pixel_values=batch["pixel_values"]).logits
    expected = torch.nn.CrossEntropyLoss(weight=weights)(logits, batch["labels"])
    assert finished.fit.best.validation_loss == pytest.approx(float(expected), rel=1e-3)

    accumulated = dataclasses.replace(task.settings, batch_size=21, gradient_accumulation_steps=10)
    parts = dataclasses.replace(task, settings=accumulated).run(spec, {}, seed=0)
    assert parts.fit.best.train_loss == pytest.approx(finished.fit.best.train_loss, rel=0.2)


@pytest.mark.slow
def test_images_with_pseudo_labels_augmentation_and_weights_go_through_the_command(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    text = run(
        tmp_path,
        *("sweep", "strategy=full", "model=local", "model.modality=image", f"model.path={checkpoint('resnet')}"),
        *("dataset=digits", "dataset.train_size=40", "dataset.validation_size=20", "dataset.test_size=30"),
        *("dataset.augmentation=strong", "dataset.image_size=48", "trainer.class_weights=balanced"),
        *("pseudo_label.rounds=1", "pseudo_label.size=30", "pseudo_label.threshold=0.05"),
        *("trainer.epochs=1", "trainer.precision=fp32", "study.n_trials=1", "final.seeds=1"),
    )
    assert "pixels + logistic" in text
    assert (runs(tmp_path, kind="final")["metrics.pseudo_labelled"] > 0).all()
