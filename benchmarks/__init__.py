"""The measurements: benchmarks that compare packages in pairs, and the gate that judges them."""

# It says, before torch is imported, that files of torch belong into the cache and not into /tmp.
import lepto.compiler as _compiler  # noqa: F401 - imported for what it sets
