"""The runtime from Python: `Model` on sessions, generation, batches, embeddings, scores and chat."""
