"""The passes, one idea per file."""

PASSES = ("fuse", "quantize-dynamic", "quantize-static")
"""The names of the passes, in the order in which a plan may use them."""
