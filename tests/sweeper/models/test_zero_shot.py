"""Zero-shot probabilities, against what the models themselves compute."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from strategies import NotApplicable, ZeroShot
from sweeper.assets import fetch
from sweeper.data.images import StoredImage
from sweeper.models.zero_shot import BATCH_SIZE, check_zero_shot, zero_shot
from tests.cli import run, runs

TEXTS = ["a triumph from the first frame to the last", "dull", "neither good nor bad"]
DESCRIPTIONS = ["a bad film, really", "a good film"]


def test_sentence_vectors_are_compared_by_their_cosine(tiny_checkpoint: Path) -> None:
    found = zero_shot(tiny_checkpoint, TEXTS, DESCRIPTIONS, modality="text", pooling="mean")
    model, tokenizer = AutoModel.from_pretrained(tiny_checkpoint).eval(), AutoTokenizer.from_pretrained(tiny_checkpoint)

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer([text], return_tensors="pt")).last_hidden_state.mean(1)[0]

    for row, text in enumerate(TEXTS):
        cosines = torch.stack([torch.cosine_similarity(vector(text), vector(d), dim=0) for d in DESCRIPTIONS])
        torch.testing.assert_close(found[row], (20 * cosines).softmax(0), atol=1e-4, rtol=1e-3)


def test_order_and_batches_do_not_matter(tiny_checkpoint: Path) -> None:
    many = [f"film number {index}" for index in range(BATCH_SIZE + 3)]
    forward = zero_shot(tiny_checkpoint, many, DESCRIPTIONS, modality="text")
    backward = zero_shot(tiny_checkpoint, many[::-1], DESCRIPTIONS[::-1], modality="text")
    torch.testing.assert_close(forward, backward.flip(0, 1), atol=1e-4, rtol=1e-3)


def test_minilm_knows_good_from_bad() -> None:
    lines = ["one of the best films of the year", "a boring, badly acted waste of time"]
    found = zero_shot(
        fetch("minilm", progress=False),
        lines,
        ["a negative review of a bad film", "a positive review of a good film"],
        modality="text",
    )
    assert found.argmax(-1).tolist() == [1, 0]


def test_models_of_inference_take_the_description_as_hypothesis(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    torch.manual_seed(1)
    config = BertConfig(vocab_size=len(tokenizer), **sizes, id2label=labels, label2id={v: k for k, v in labels.items()})
    config.initializer_range = 0.5
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = zero_shot(tmp_path, TEXTS, DESCRIPTIONS, modality="text")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for row, text in enumerate(TEXTS):
        pairs = tokenizer([text] * 2, DESCRIPTIONS, padding=True, return_tensors="pt")
        with torch.no_grad():
            entailment = model(**pairs).logits[:, 2]
        torch.testing.assert_close(found[row], entailment.softmax(0), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(found, torch.full_like(found, 0.5), atol=0.01)


def siglip(folder: Path) -> Path:
    """SigLIP with both towers, small and random; its vision tower pools with attention, its texts are padded."""
    tokenizer = AutoTokenizer.from_pretrained(fetch("minilm", progress=False))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    torch.manual_seed(0)
    config = SiglipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16})
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def shades(*values: int) -> list[StoredImage]:
    return [StoredImage(np.full((40, 30, 3), value, dtype=np.uint8)) for value in values]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_towers_compare_images_with_texts(kind: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("clip-with-text") if kind == "clip" else siglip(tmp_path)
    images = shades(0, 120, 255)
    check_zero_shot(folder, images[0])
    found = zero_shot(folder, images, DESCRIPTIONS, modality="image")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(DESCRIPTIONS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(folder)([image.open() for image in images], return_tensors="pt")
    with torch.no_grad():  # as the model's own forward pass compares them, but for its scale
        logits = model(**tokens, pixel_values=pixels["pixel_values"]).logits_per_image
    bias = getattr(model, "logit_bias", torch.zeros(1))
    cosines = (logits - bias) / model.logit_scale.exp()
    torch.testing.assert_close(found, (20 * cosines).softmax(-1).detach(), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_images_are_decoded_one_after_the_other(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[Image.Image]] = []
    decode, alive = StoredImage.open, []

    def counting(self: StoredImage) -> Image.Image:
        opened.append(weakref.ref(image := decode(self)))
        alive.append(sum(image() is not None for image in opened))
        return image

    monkeypatch.setattr(StoredImage, "open", counting)
    found = zero_shot(checkpoint("clip-with-text"), shades(*range(100)), DESCRIPTIONS, modality="image")
    assert len(opened) == len(found) == 100
    assert max(alive) <= 3, "large photographs would fill the memory"


def test_what_cannot_be_scored_says_so_beforehand(checkpoint: Callable[[str], Path]) -> None:
    (image,) = shades(0)
    with pytest.raises(NotApplicable, match="needs a text tower"):
        check_zero_shot(checkpoint("resnet"), image)
    with pytest.raises(NotApplicable, match="needs the tokenizer"):
        check_zero_shot(checkpoint("clip"), image)
    with pytest.raises(NotApplicable, match="pairs of texts"):
        check_zero_shot(checkpoint("bert"), ("one", "two"))
    check_zero_shot(checkpoint("bert"), "one")


@pytest.mark.parametrize(
    ("template", "images", "sentence"),
    [(None, True, "a photo of {}"), (None, False, "{}"), ("a scan of {}", True, "a scan of {}")],
)
def test_bare_names_of_image_classes_become_captions(template: str | None, images: bool, sentence: str) -> None:
    assert ZeroShot(template=template).sentence(names_of_images=images) == sentence


def test_a_template_without_its_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must hold \{\} once"):
        ZeroShot(template="a photo")


@pytest.mark.slow
def test_zero_shot_on_images_is_a_row_of_the_report(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    data = ["dataset=digits", "dataset.train_size=20", "dataset.validation_size=20", "dataset.test_size=30"]
    small = [*data, "model=local", "model.modality=image", "trainer.epochs=1", "study.n_trials=1", "final.seeds=1"]
    path = f"model.path={checkpoint('clip-with-text')}"
    text = run(tmp_path, "compare", "strategy=zero_shot,frozen", *small, path)
    assert re.search(r"zero-shot +0 +0\.\d{3} ", text), text
    (row,) = runs(tmp_path, strategy="zero_shot").to_dict("records")
    assert row["params.template"] == "a photo of {}"
