"""The gate's checks: one idea a file, each a pure function from measured values to a small value that explains itself.

``REGISTRY`` in :mod:`lepto.benchmarks.checks.registry` has them by the name that a gate file uses.
"""
