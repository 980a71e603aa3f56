"""Extract features: a job that runs an ONNX model over the images of any dataset and writes a feature set."""
