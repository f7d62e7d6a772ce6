"""Models as shapes and weights, whatever file they come from."""
