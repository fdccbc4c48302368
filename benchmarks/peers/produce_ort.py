"""The peer ``ort``: the recipe that ONNX Runtime documents, with its own tools; runs in the peer's environment."""

from __future__ import annotations

import importlib
from typing import Any

from lepto.benchmarks.peers.produced import Job, Production, Variant, fusion_type, run


def produce(job: Job) -> Production:
    """Export with the old exporter, fuse with onnxruntime.transformers, quantize_dynamic to U8S8 per channel."""
    import torch
    import transformers
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    auto: Any = transformers.AutoModelForSequenceClassification
    # The fusions recognise the written-out attention only.
    model = auto.from_pretrained(job.source, attn_implementation="eager").eval()
    model.config.return_dict = False
    tokenizer: Any = transformers.AutoTokenizer
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in _inputs(tokenizer, job)]
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in names}
    if "token_type_ids" in example:
        example["token_type_ids"] = torch.zeros(2, 8, dtype=torch.int64)
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "sequence"} for name in names}
    torch.onnx.export(
        model,
        (example,),
        str(job.output / "float.onnx"),
        input_names=names,
        output_names=["logits"],
        dynamic_axes={**axes, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    config = model.config
    fused = optimizer.optimize_model(
        str(job.output / "float.onnx"),
        model_type=fusion_type(config.model_type),
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
    )
    fused.save_model_to_file(str(job.output / "fused.onnx"))
    counts = {name: count for name, count in fused.get_fused_operator_statistics().items() if count}
    quantize_dynamic(
        str(job.output / "fused.onnx"),
        str(job.output / "model.onnx"),
        per_channel=True,
        weight_type=QuantType.QInt8,
        # Without it the quantizer does not know the type behind the operators that the optimizer put in.
        extra_options={"DefaultTensorType": importlib.import_module("onnx").TensorProto.FLOAT},
    )
    for name in ("float.onnx", "fused.onnx"):
        (job.output / name).unlink()
    return Production(
        recipe=f"torch.onnx.export(dynamo=False), onnxruntime.transformers (fused: {counts}), quantize_dynamic U8S8",
        variants=(Variant("int8", "onnx", ("model.onnx",)),),
    )


def _inputs(tokenizer: Any, job: Job) -> list[str]:
    names: list[str] = tokenizer.from_pretrained(job.source).model_input_names
    return names


if __name__ == "__main__":
    run(produce)
