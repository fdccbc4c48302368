"""The passes, one idea per file."""

PASSES = {
    "trim-vocabulary": "trim_vocabulary:TrimVocabulary",
    "prune": "prune:Prune",
    "distill": "distill:Distill",
    "quantization-aware": "quantization_aware:QuantizationAware",
    "attention": "attention:Attention",
    "fuse": "fuse:Fuse",
    "smooth": "smooth:Smooth",
    "sparsify": "sparsify:Sparsify",
    "quantize-embeddings": "quantize_embeddings:QuantizeEmbeddings",
    "quantize-weights": "quantize_weights:QuantizeWeights",
    "quantize-dynamic": "quantize_dynamic:QuantizeDynamic",
    "quantize-static": "quantize_static:QuantizeStatic",
    "mixed-precision": "mixed_precision:MixedPrecision",
    "tensorrt": "tensorrt:Tensorrt",
}
"""The names of the passes, in the order in which a plan may use them, and where each stands in this folder.

They are loaded when they are used: reading a recipe must be quick.
"""
