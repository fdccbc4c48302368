"""From PyTorch to what runs."""
