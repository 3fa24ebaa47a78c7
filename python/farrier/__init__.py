"""farrier: compiler passes for JAX programs on GPUs."""
