"""Teaching a smaller model: losses, augmentation, and the loop."""
