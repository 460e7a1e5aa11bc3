"""ONNX files of face networks, read and run without the onnx package."""
