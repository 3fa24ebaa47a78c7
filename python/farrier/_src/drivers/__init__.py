"""The passes as `optimize` drives them: decide on farrier's module, apply to farrier's module."""
