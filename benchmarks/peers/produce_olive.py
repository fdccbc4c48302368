"""The peer ``olive``: a workflow of Olive's own passes; runs in the peer's environment."""

from __future__ import annotations

import json
import shutil

from lepto.benchmarks.peers.produced import Job, Production, Variant, fusion_type, run


def produce(job: Job) -> Production:
    """Olive: OnnxConversion, OrtTransformersOptimization, OnnxDynamicQuantization."""
    from olive.workflows import run as run_workflow  # type: ignore[import-not-found]  # in the peer's environment only

    config = json.loads((job.source / "config.json").read_text(encoding="utf-8"))
    work, out = job.output / "work", job.output / "olive"
    passes = {
        # Olive's default exporter is torch's old one, whose graph is the one that the fusions recognise.
        "conversion": {"type": "OnnxConversion", "use_dynamo_exporter": False},
        "optimization": {
            "type": "OrtTransformersOptimization",
            "model_type": fusion_type(config["model_type"]),
            "num_heads": config.get("num_attention_heads") or config["n_heads"],
            "hidden_size": config.get("hidden_size") or config["dim"],
            "opt_level": 0,
        },
        "quantization": {"type": "OnnxDynamicQuantization", "per_channel": True},
    }
    recipe = " -> ".join(str(options["type"]) for options in passes.values()) + ", eager attention, per channel"
    run_workflow(  # it changes what it is given
        {
            "input_model": {
                "type": "HfModel",
                "model_path": str(job.source),
                "task": "text-classification",
                # With the default, sdpa, the optimizer finds no attention and the result is slower.
                "load_kwargs": {"attn_implementation": "eager"},
            },
            "systems": {
                "local": {
                    "type": "LocalSystem",
                    "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
                }
            },
            "host": "local",
            "target": "local",
            "passes": passes,
            "cache_dir": str(work),
            "output_dir": str(out),
            "log_severity_level": 2,
        }
    )
    model = out / "model.onnx"
    if not model.is_file():
        raise FileNotFoundError("Olive's workflow ended without a model: a pass failed, see the log")
    data = sorted(out.glob("*.onnx.data"))
    for file in (model, *data):
        file.rename(job.output / file.name)
    shutil.rmtree(work)
    shutil.rmtree(out)
    return Production(
        recipe=recipe,
        variants=(Variant("int8", "onnx", ("model.onnx", *(file.name for file in data))),),
    )


if __name__ == "__main__":
    run(produce)
