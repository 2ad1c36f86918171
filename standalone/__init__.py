"""What an exported stage needs to run, copied beside it: standard library, and torch or onnxruntime."""
