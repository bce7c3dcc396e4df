"""onnxprune."""
