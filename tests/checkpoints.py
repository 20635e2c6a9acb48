"""Real checkpoints on disk, small and with random weights: one builder for each kind of model."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["BUILDERS", "FIRST_WORDS", "build", "poisoned"]

FIRST_WORDS = ("a triumph from the first frame to the last", "dull", "neither good nor bad")
PIXELS = 32


def build(kind: str, folder: Path) -> Path:
    """Save the checkpoint of a kind in ``folder``."""
    torch.manual_seed(0)
    BUILDERS[kind](folder)
    return folder


def poisoned(checkpoint: Path, folder: Path, ran: Path) -> dict[str, Any]:
    """Copy a checkpoint without its weights; returns others, which make the file ``ran`` when they are unpickled."""
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()

    class Runs:
        def __reduce__(self) -> Any:
            return (Path.touch, (ran,))

    return {"embeddings.word_embeddings.weight": Runs()}


def _encoder(model_type: str, **settings: Any) -> Callable[[Path], None]:
    """A text encoder with MiniLM's tokenizer, of 4 blocks of width 32 where nothing else is said."""

    def save(folder: Path) -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        from sweeper.assets import fetch

        tokenizer = AutoTokenizer.from_pretrained(fetch("minilm", progress=False))
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 128,
        }
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **(settings or sizes))
        AutoModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return save


def _roberta(folder: Path) -> None:
    """RoBERTa with a byte-level tokenizer of its own, in the two files of the published one."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel

    folder.mkdir(parents=True)
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(FIRST_WORDS, vocab_size=300, special_tokens=special)
    tokenizer.save_model(str(folder))
    RobertaModel(
        RobertaConfig(**_TRANSFORMER, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=130)
    ).save_pretrained(folder)


def _sentencepiece(folder: Path, name: str) -> int:
    """Train a SentencePiece model, saved as the only file of a tokenizer; the number of its pieces."""
    import io

    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(FIRST_WORDS * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
        **{"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    )
    (folder / name).write_bytes(model.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size())


def _deberta_v3(folder: Path) -> None:
    """DeBERTa-v3 in the files of the published one: a SentencePiece model, and weights in a pickle."""
    import json

    from transformers import AutoConfig, AutoModel

    pieces = _sentencepiece(folder, "spm.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    config = AutoConfig.for_model("deberta-v2", vocab_size=pieces + 1, **_TRANSFORMER, **_DEBERTA)
    config.save_pretrained(folder)
    torch.save(AutoModel.from_config(config).state_dict(), folder / "pytorch_model.bin")


def _decoder(model_type: str, *, chat: bool = False, **settings: Any) -> Callable[[Path], None]:
    """A decoder with a byte-level tokenizer that, like GPT-2's, has no padding token; one that chats has a template."""

    def save(folder: Path) -> None:
        from tokenizers import ByteLevelBPETokenizer
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

        bytes_only = ByteLevelBPETokenizer()
        bytes_only.train_from_iterator(FIRST_WORDS, vocab_size=300, special_tokens=["<|endoftext|>"])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only._tokenizer, eos_token="<|endoftext|>")
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **settings)
        (AutoModelForCausalLM if chat else AutoModel).from_config(config).save_pretrained(folder)
        if chat:
            tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}label:"
        tokenizer.save_pretrained(folder)

    return save


def _timm(architecture: str, **model_args: Any) -> Callable[[Path], None]:
    """A model of timm with a classifier of 5 classes, as those that were trained on ImageNet have one."""

    def save(folder: Path) -> None:
        from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

        pixels = {"input_size": [3, PIXELS, PIXELS], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
        config = TimmWrapperConfig(
            architecture=architecture, model_args=model_args, num_labels=5, pretrained_cfg={**pixels, "tag": "tiny"}
        )
        model = TimmWrapperForImageClassification(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Residual branches start at zero; after pretraining they do not.
                if not name.endswith("bias") and parameter.abs().max() < 1e-3:
                    parameter.fill_(0.5)
        model.save_pretrained(folder)

    return save


def _timm_on_the_hub(architecture: str, folder: Path) -> None:
    """A model of timm as timm itself publishes it."""
    import timm

    timm.models.save_for_hf(timm.create_model(architecture, num_classes=5), folder, safe_serialization=True)


def _convnext(folder: Path) -> None:
    """ConvNeXt of transformers, whose processor crops."""
    from transformers import AutoConfig, AutoModel, ConvNextImageProcessor

    AutoModel.from_config(
        AutoConfig.for_model("convnext", hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)
    ).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": PIXELS}, crop_pct=0.875).save_pretrained(folder)


def _tower(model_type: str, **settings: Any) -> Callable[[Path], None]:
    """A vision transformer of transformers."""

    def save(folder: Path) -> None:
        from transformers import AutoConfig, AutoModel, CLIPImageProcessor, SiglipImageProcessor, ViTImageProcessor

        AutoModel.from_config(AutoConfig.for_model(model_type, **settings)).save_pretrained(folder)
        size = {"height": PIXELS, "width": PIXELS}
        processors: dict[str, Any] = {
            "vit": lambda: ViTImageProcessor(size=size),
            "siglip": lambda: SiglipImageProcessor(size=size),
            "clip": lambda: CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=size),
        }
        processors[model_type]().save_pretrained(folder)

    return save


def _two_towers(folder: Path) -> None:
    """CLIP with both towers and MiniLM's tokenizer."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPImageProcessor

    from sweeper.assets import fetch

    tokenizer = AutoTokenizer.from_pretrained(fetch("minilm", progress=False))
    text = {**_TRANSFORMER, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"eos_token_id": tokenizer.sep_token_id, "bos_token_id": tokenizer.cls_token_id}
    vision = {**_TRANSFORMER, **_PATCHES}
    config = AutoConfig.for_model("clip", text_config=text, vision_config=vision, projection_dim=16)
    AutoModel.from_config(config).save_pretrained(folder)
    size = {"height": PIXELS, "width": PIXELS}
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


_TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
_DEBERTA = {
    "max_position_embeddings": 128,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_PATCHES = {"image_size": PIXELS, "patch_size": 16}

BUILDERS: dict[str, Callable[[Path], None]] = {
    "bert": _encoder("bert"),
    "distilbert": _encoder("distilbert", dim=32, n_layers=3, n_heads=2, hidden_dim=64, max_position_embeddings=128),
    "deberta": _encoder(
        "deberta-v2",
        **_TRANSFORMER,
        **_DEBERTA,
    ),
    "deberta-v3": _deberta_v3,
    "roberta": _roberta,
    "electra": _encoder("electra", embedding_size=16, max_position_embeddings=128, **_TRANSFORMER),
    "albert": _encoder("albert", embedding_size=16, max_position_embeddings=128, **_TRANSFORMER),
    "gpt2": _decoder("gpt2", n_embd=32, n_layer=3, n_head=2, n_positions=128),
    "llama": _decoder("llama", **_TRANSFORMER, num_key_value_heads=1, max_position_embeddings=128),
    "chat": _decoder("llama", chat=True, **_TRANSFORMER, num_key_value_heads=1, max_position_embeddings=1024),
    "mistral": _decoder("mistral", **_TRANSFORMER, num_key_value_heads=1, max_position_embeddings=128),
    "phi": _decoder("phi", **_TRANSFORMER, num_key_value_heads=1, max_position_embeddings=128),
    "resnet-published": functools.partial(_timm_on_the_hub, "test_resnet"),
    "convnext-transformers": _convnext,
    "resnet": _timm("test_resnet"),
    "efficientnet": _timm("test_efficientnet"),
    "convnext": _timm("test_convnext"),
    "vit-timm": _timm("test_vit"),
    "swin": _timm(
        "swin_tiny_patch4_window7_224",
        img_size=PIXELS,
        window_size=4,
        embed_dim=16,
        depths=(1, 2),
        num_heads=(2, 4),
    ),
    "clip-with-text": _two_towers,
    "vit": _tower("vit", **_TRANSFORMER, **_PATCHES),
    "siglip": _tower(
        "siglip",
        text_config={**_TRANSFORMER, "vocab_size": 100, "max_position_embeddings": 16},
        vision_config={**_TRANSFORMER, **_PATCHES},
    ),
    "clip": _tower(
        "clip",
        text_config={**_TRANSFORMER, "vocab_size": 100, "max_position_embeddings": 16},
        vision_config={**_TRANSFORMER, **_PATCHES},
        projection_dim=16,
    ),
}
