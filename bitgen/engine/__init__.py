"""The runtime from Python: models, sessions, tokenizers."""
