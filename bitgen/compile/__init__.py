"""C text to shared libraries and programs; checkpoints packed for their kernels."""
