"""Zero-shot probabilities, against what the models themselves compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from strategies import NotApplicable
from sweeper.assets import fetch
from sweeper.models.zero_shot import BATCH_SIZE, zero_shot

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


def test_two_towers_compare_images_with_texts(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    clip = checkpoint("clip-with-text")
    images = [Image.fromarray(np.full((40, 30, 3), shade, dtype=np.uint8)) for shade in (0, 120, 255)]
    found = zero_shot(clip, [*images, images[0].convert("L")], ["black", "white"], modality="image")
    assert found.shape == (4, 2)
    torch.testing.assert_close(found.sum(-1), torch.ones(4))
    torch.testing.assert_close(found[0], found[3])  # a grey image is one with three equal channels
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_an_image_model_without_a_text_tower_says_so(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(NotApplicable, match="needs a text tower"):
        zero_shot(checkpoint("resnet"), [], DESCRIPTIONS, modality="image")
