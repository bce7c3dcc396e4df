"""Reading, normalising, shaping, editing and writing ONNX graphs: the only room that imports onnx."""
