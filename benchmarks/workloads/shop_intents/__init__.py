"""What customers write to a shop, in 18 intents: the embedded default."""
