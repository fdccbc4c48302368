"""Other tools on the same model, side by side: each in its own environment, all timed in one interleaved run.

``produced``, ``produce_*`` and ``worker`` run in the environment of a peer, which has no Lepto: they import nothing of
it but each other.
"""
