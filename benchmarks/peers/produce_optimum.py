"""The peer ``optimum``: Optimum's optimization levels and its int8 quantizer; runs in the peer's environment."""

from __future__ import annotations

import shutil

from lepto.benchmarks.peers.produced import Job, Production, Variant, first_line, run

# O3 is what its documentation recommends for CPUs; the others show how far the quantizer can follow.
_LEVELS = ("O3", "O2", "O1", None)


def produce(job: Job) -> Production:
    """Optimum: export, each optimization level, each then quantized to dynamic int8 for AVX-512 with VNNI."""
    from optimum.onnxruntime import ORTModelForSequenceClassification, ORTOptimizer, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig, AutoQuantizationConfig

    model = ORTModelForSequenceClassification.from_pretrained(job.source, export=True)
    plain = job.output / "plain"
    model.save_pretrained(plain)
    variants, notes = [], []
    for level in _LEVELS:
        name = f"{level} + int8" if level else "int8"
        folder = job.output / level if level else plain
        try:
            if level:
                options = getattr(AutoOptimizationConfig, level)()
                ORTOptimizer.from_pretrained(model).optimize(save_dir=folder, optimization_config=options)
            file = next(folder.glob("*.onnx")).name
            ORTQuantizer.from_pretrained(folder, file_name=file).quantize(
                save_dir=folder / "int8",
                quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True),
            )
        except Exception as error:  # whatever the tool raises is what this level is worth
            notes.append(f"{name}: {first_line(error)}")
            continue
        kept = f"{level or 'plain'}-int8.onnx"
        next((folder / "int8").glob("*.onnx")).rename(job.output / kept)
        variants.append(Variant(name, "onnx", (kept,)))
    for level in ("plain", *filter(None, _LEVELS)):
        shutil.rmtree(job.output / level, ignore_errors=True)
    return Production(
        recipe="ORTModel export, ORTOptimizer at each level, ORTQuantizer avx512_vnni dynamic, per channel",
        variants=tuple(variants),
        notes=tuple(notes),
    )


if __name__ == "__main__":
    run(produce)
