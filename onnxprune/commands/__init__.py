"""Commands of `onnxprune.cli` that have a module of their own. They print, as `cli` does; nothing else does."""
