"""The kernels where they are used: cubins, transformers, torch.library."""
