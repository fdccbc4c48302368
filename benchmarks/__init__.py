"""The measurements: benchmarks that compare packages in pairs, and the gate that judges them."""
