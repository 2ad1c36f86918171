"""Standalone code that runs an exported stage, copied beside it: standard library, torch or onnxruntime."""
