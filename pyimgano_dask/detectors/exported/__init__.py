"""Detectors that run models exported by other programs: ONNX, TorchScript, torch.export."""
