"""What the fusion pass needs from Python: hints, generated kernels, references of kernels."""
