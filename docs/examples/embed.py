"""Vectors of texts; their dot products say how alike texts are."""

from bitgen import Model

texts = ["The cat sat on the mat.", "A cat lay on a rug.", "He drove to the city."]
with Model.load() as model:
    vectors = model.embed(texts, pooling="mean")  # float32 [3, hidden], of length one
    for text, row in zip(texts, vectors @ vectors.T, strict=True):
        print(" ".join(f"{value:.3f}" for value in row), text)
