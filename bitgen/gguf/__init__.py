"""GGUF files: container, metadata, tensor types; read as a Checkpoint, and written from one."""
