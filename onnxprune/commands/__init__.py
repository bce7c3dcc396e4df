"""Commands with a file of their own; `onnxprune.cli` gathers them."""
