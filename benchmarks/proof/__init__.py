"""The proof of the gate: how often it is wrong, measured."""
