"""The peer ``openvino``: OpenVINO's conversion and NNCF's int8; runs in the peer's environment."""

from __future__ import annotations

from typing import Any

from lepto.benchmarks.peers.produced import Job, Production, Variant, run

_FILES = ("model.xml", "model.bin")


def produce(job: Job) -> Production:
    """OpenVINO: convert the PyTorch model; NNCF: post-training int8, calibrated on training texts."""
    import nncf  # type: ignore[import-not-found]  # in the peer's environment only
    import numpy as np
    import openvino  # type: ignore[import-not-found]  # in the peer's environment only
    import torch
    import transformers

    auto: Any = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(job.source).eval()
    model.config.return_dict = False
    tokenizers: Any = transformers.AutoTokenizer
    tokenizer = tokenizers.from_pretrained(job.source)
    feeds = [
        {
            name: np.asarray(array, dtype=np.int64)
            for name, array in tokenizer(text, return_tensors="np", truncation=True, max_length=job.max_length).items()
        }
        for text in job.texts
    ]
    example = {name: torch.from_numpy(np.repeat(array, 2, axis=0)) for name, array in feeds[0].items()}
    converted = openvino.convert_model(model, example_input=example)
    quantized = nncf.quantize(
        converted, nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds)
    )
    openvino.save_model(quantized, str(job.output / _FILES[0]))
    variants = [Variant("int8", "openvino", _FILES, {"INFERENCE_PRECISION_HINT": "f32"})]
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        # The same files: what was not quantized is computed in bfloat16.
        variants.append(Variant("int8 + bf16", "openvino", _FILES, {"INFERENCE_PRECISION_HINT": "bf16"}))
    return Production(
        recipe=f"openvino.convert_model, nncf.quantize (transformer, SmoothQuant, {len(feeds)} training texts)",
        variants=tuple(variants),
    )


if __name__ == "__main__":
    run(produce)
