"""Sources in Hugging Face's format: a directory, or an id on the hub."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lepto.compiler.context import Feed
from lepto.compiler.data import first_line
from lepto.compiler.safety import check_safetensors
from lepto.compiler.source import Axes, Source, Text, read_json, text_digest
from lepto.compiler.words import with_prefix_space
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import FEATURE_EXTRACTION, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, Preprocessing

if TYPE_CHECKING:
    import torch

    from lepto.compiler.embedding import Pooling

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab*", "merges.txt")
_POOLING = ("modules.json", "*_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
_FILES = ("config.json", *_TOKENIZER, *_WEIGHTS, *_POOLING, "*.safetensors", "pytorch_model-*.bin")


def open_huggingface(reference: str, task: str | None) -> Source:
    """Open a directory or hub id without loading the weights.

    Raises:
        LeptoError: It is no model, its weights are broken, or its task is not known.
    """
    folder = _folder(reference)
    config_file = folder / "config.json"
    if not config_file.exists():
        raise LeptoError(
            f"{folder} is no model: it has no config.json. Give the folder that save_pretrained() wrote, "
            "an .onnx file, or package.module:factory"
        )
    raw = read_json(config_file)
    weights = _weight_files(folder)
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a class of transformers may raise anything on values it does not expect
        remote = "auto_map" in raw
        why = "it needs code from its own repository, which Lepto does not run" if remote else first_line(error)
        raise LeptoError(f"{config_file}: the configuration is not understood: {why}") from error
    architecture = (config.architectures or [""])[0]
    known = getattr(transformers, architecture, None) if architecture else None
    if known is None:
        raise LeptoError(
            f"{config_file}: transformers {transformers.__version__} has no class {architecture or '(none is named)'!r}"
        )
    found = _task_of(known)
    if task is not None and found is not None and task != found:
        raise LeptoError(
            f"{reference} is a {architecture}, made for {found}, not {task}: leave --task out or give --task {found}"
        )
    task = task or found
    if task is None:
        raise LeptoError(f"{reference}: the task of {architecture} is not known: name it with --task")
    # transformers leaves id2label out of the file where it is the default, LABEL_0 and LABEL_1.
    labels = (labels_of(raw) or labels_of(config.to_dict())) if task.endswith("classification") else None
    if task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION):
        _check_single_label(config_file, config, labels)
    forward = set(inspect.signature(known.forward).parameters)
    text: Text | None = None
    pooling: Pooling | None = None
    maximum: dict[str, int] = {}
    if (folder / "tokenizer.json").exists() or (folder / "tokenizer_config.json").exists():
        text = text_of(folder, tuple(forward), _positions(known, config), words=task == TOKEN_CLASSIFICATION)
        if task == FEATURE_EXTRACTION:
            text, pooling = _pooled(folder, text)
        example, axes = _text_example(config, text)
        maximum = {"sequence": text.preprocessing.max_length}
    elif "input_ids" in forward:
        raise LeptoError(f"{folder} has no tokenizer (tokenizer.json): save it beside the model, text needs it")
    else:
        example, axes = _dummy_example(config, task, forward)
    digest = hashlib.sha256(config_file.read_bytes())
    for file in weights:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    digest.update(text_digest(text))
    if pooling is not None:
        digest.update(repr(pooling).encode())
    return Source(
        kind="hugging-face",
        reference=reference,
        description=f"{architecture} ({config.model_type}) from {folder.name if folder.exists() else reference}"
        + (f"; {pooling}" if pooling is not None else ""),
        architecture=architecture,
        task=task,
        digest=digest.hexdigest(),
        parameters=_parameters(weights),
        bytes=sum(file.stat().st_size for file in weights if not file.name.endswith(".json")),
        labels=labels,
        text=text,
        axes=axes,
        example=example,
        layers=_layers(config),
        maximum=maximum,
        load_module=lambda: _load(known, folder, weights, pooling),
    )


def _pooled(folder: Path, text: Text) -> tuple[Text, Pooling]:
    """A sentence encoder's pooling, and its tokenizer cut at the length that the folder asks for."""
    from tokenizers import Tokenizer

    from lepto.compiler.embedding import read_pooling

    tokenizer = Tokenizer.from_str(text.tokenizer)
    pooling = read_pooling(folder, lowercases=tokenizer.encode("Ab").ids == tokenizer.encode("ab").ids)
    if "attention_mask" not in text.preprocessing.inputs:
        raise LeptoError(f"{folder}: its tokenizer gives no attention_mask, which pooling needs")
    longest = min(text.preprocessing.max_length, pooling.max_length or text.preprocessing.max_length)
    cut = text.preprocessing.model_copy(update={"max_length": longest})
    return dataclasses.replace(text, preprocessing=cut), pooling


def text_of(folder: Path, accepted: tuple[str, ...], positions: int | None, *, words: bool = False) -> Text:
    """Read the tokenizer and its settings.

    Args:
        folder: Where ``tokenizer.json`` or another format lies.
        accepted: Names of the model's inputs, or of its forward function's arguments.
        positions: Longest sequence that the model has positions for, None if it has no limit.
        words: Whether it reads rows of words.
    """
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, use_fast=True)
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # tokenizers raises plain Exception
        raise LeptoError(f"{folder}: its tokenizer could not be read: {first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        raise LeptoError(f"{folder}: its tokenizer has no padding token: set pad_token and save it again")
    backend.no_padding()
    backend.no_truncation()
    longest = min(int(tokenizer.model_max_length), positions or 512)
    names: tuple[Literal["input_ids", "attention_mask", "token_type_ids"], ...]
    names = ("input_ids", "attention_mask", "token_type_ids")
    produced = set(tokenizer.model_input_names)
    return Text(
        with_prefix_space(backend.to_str()) if words else backend.to_str(),
        Preprocessing(
            kind="words" if words else "text",
            max_length=longest,
            pad_id=int(tokenizer.pad_token_id),
            pad_type_id=int(getattr(tokenizer, "pad_token_type_id", 0) or 0),
            pad_token=str(tokenizer.pad_token),
            inputs=tuple(n for n in names if n in produced and n in accepted),
        ),
    )


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels in the order of the outputs, from ``id2label``; None where the configuration names none."""
    mapping = config.get("id2label")
    if not isinstance(mapping, Mapping) or not mapping:
        return None
    try:
        ordered = sorted((int(index), str(label)) for index, label in mapping.items())
    except ValueError as error:
        raise LeptoError(f"config.json: id2label must map integers to labels: {error}") from error
    if [index for index, _ in ordered] != list(range(len(ordered))):
        raise LeptoError(f"config.json: id2label must count from 0 without a gap, got {[i for i, _ in ordered][:10]}")
    return tuple(label for _, label in ordered)


def _folder(reference: str) -> Path:
    path = Path(reference)
    if path.is_dir():
        return path
    if path.is_absolute() or reference.startswith(".") or reference.count("/") > 1 or not reference.strip():
        raise LeptoError(
            f"model {reference!r} does not exist: give a folder, a hub id, an .onnx file or module:factory"
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(reference, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub raises many kinds, from a bad id to no network
        raise LeptoError(
            f"model {reference!r} is no folder here, and could not be had from the Hugging Face hub: "
            f"{first_line(error)}"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    for name in _WEIGHTS:
        file = folder / name
        if not file.exists():
            continue
        if not name.endswith(".index.json"):
            if file.suffix == ".safetensors":
                check_safetensors(file)
            return [file]
        mapping = read_json(file).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise LeptoError(f"{file} is no index of weights: it has no weight_map")
        parts = sorted({str(part) for part in mapping.values()})
        for part in parts:
            if Path(part).name != part or not (folder / part).is_file():
                raise LeptoError(f"{file}: the weights {part!r} that it names do not lie beside it")
            if part.endswith(".safetensors"):
                check_safetensors(folder / part)
        return [file, *(folder / part for part in parts)]
    others = [
        file.name for pattern in ("*.pkl", "*.pickle", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern)
    ]
    hint = f" ({', '.join(others[:3])} may hold code and is not read: save it with save_pretrained())" if others else ""
    raise LeptoError(f"{folder} has no weights: none of {', '.join(_WEIGHTS)} is there{hint}")


def _parameters(weights: list[Path]) -> int:
    total = 0
    for file in weights:
        if file.suffix == ".safetensors":
            total += sum(int(np.prod(shape)) for shape in check_safetensors(file).values())
        elif file.suffix == ".bin":
            total += sum(tensor.numel() for tensor in _read_bin(file).values() if hasattr(tensor, "numel"))
    return total


def _read_bin(file: Path) -> dict[str, Any]:
    """Read a ``.bin`` as tensors only: anything else that a pickle can hold is refused."""
    import torch

    try:
        # The format before torch 1.6 is no zip file and cannot be mapped.
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch raises pickle, zip and runtime errors
        raise LeptoError(
            f"{file} is refused: read as plain tensors (weights_only) it fails: {first_line(error)}. A pickle can run "
            "code: save the model again as safetensors"
        ) from error
    if not isinstance(loaded, dict):
        raise LeptoError(f"{file} must hold a state dict, got {type(loaded).__name__}")
    return loaded


def _task_of(architecture: type) -> str | None:
    from optimum.exporters.tasks import TasksManager

    try:
        return str(TasksManager.infer_task_from_model(architecture))
    except (ValueError, KeyError, AttributeError):
        return None


def _check_single_label(file: Path, config: Any, labels: tuple[str, ...] | None) -> None:
    problem = getattr(config, "problem_type", None)  # token classifiers have none
    if problem not in (None, "single_label_classification"):
        raise LeptoError(f"{file}: problem_type is {problem!r}; only single_label_classification can be compiled")
    if labels is None or len(labels) < 2:
        raise LeptoError(f"{file}: a classifier needs at least two labels in id2label, got {len(labels or ())}")


def _positions(known: Any, config: Any) -> int | None:
    """Longest sequence the position embeddings allow, None where the configuration has no such limit."""
    import torch

    count = getattr(config, "max_position_embeddings", None)
    if count is None or count <= 0:
        return None
    with torch.device("meta"), _quiet():  # the modules without their weights
        module = known(config)
    tables = [m for m in module.modules() if isinstance(m, torch.nn.Embedding) and m.num_embeddings == count]
    # RoBERTa and its kin number positions from the padding index + 1: their table of positions has a padding index.
    taken = min((0 if m.padding_idx is None else m.padding_idx + 1 for m in tables), default=0)
    return int(count) - taken


def _layers(config: Any) -> int | None:
    from optimum.utils import NormalizedConfigManager

    try:
        normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
        return int(normalized.num_layers)
    except (KeyError, AttributeError, TypeError):
        return None


def _text_example(config: Any, text: Text) -> tuple[Feed, Axes]:
    """Inputs of batch 2 and length 7, the second row with padding, so that no size and no mask is burnt in."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (2, 7))
    mask = np.ones((2, 7), dtype=np.int64)
    mask[1, 5:] = 0
    ids[1, 5:] = text.preprocessing.pad_id
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros((2, 7), dtype=np.int64)}
    names = text.preprocessing.inputs
    return {n: arrays[n] for n in names}, {n: {0: "batch", 1: "sequence"} for n in names}


def _dummy_example(config: Any, task: str, forward: set[str]) -> tuple[Feed, Axes]:
    """Inputs from optimum's generators for models that take no text."""
    from optimum.utils import DummyVisionInputGenerator, NormalizedConfigManager

    try:
        normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError as error:
        raise LeptoError(f"optimum has no configuration for {config.model_type!r}: use module:factory") from error
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    generator = DummyVisionInputGenerator(
        task, normalized, batch_size=2, num_channels=getattr(config, "num_channels", 3), height=height, width=width
    )
    names = [name for name in generator.SUPPORTED_INPUT_NAMES if name in forward]
    if not names:
        raise LeptoError(f"no input of a {config.model_type!r} model for {task} is known: use module:factory")
    return {n: generator.generate(n).numpy() for n in names[:1]}, {n: {0: "batch"} for n in names[:1]}


def _load(known: Any, folder: Path, weights: list[Path], pooling: Pooling | None) -> torch.nn.Module:
    import torch

    # The pooler reads the first token for classifiers; sentence encoders are often saved without it.
    without = {"add_pooling_layer": False} if pooling and _takes(known, "add_pooling_layer") else {}
    safetensors = any(file.suffix == ".safetensors" for file in weights)
    if not safetensors:
        for file in weights:
            if file.suffix == ".bin":
                _read_bin(file)
    with _quiet():
        try:
            model, info = known.from_pretrained(
                folder,
                # The written-out attention: what the fusions recognise, and what "PyTorch eager" means in the reports.
                attn_implementation="eager",
                use_safetensors=safetensors,
                dtype=torch.float32,
                output_loading_info=True,
                **without,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise LeptoError(f"{folder}: the model could not be loaded: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise LeptoError(
            f"{folder}: the weights lack {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}, which would be "
            f"random: is this checkpoint fine-tuned for its task ({known.__name__})?"
        )
    module: torch.nn.Module = model
    if pooling is not None:
        from lepto.compiler.embedding import SentenceEncoder

        return SentenceEncoder(module, pooling)
    return module


def _takes(known: Any, argument: str) -> bool:
    return argument in inspect.signature(known.__init__).parameters


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or advice of transformers among our own output."""
    import transformers

    log: Any = transformers.logging  # its functions have no types
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
