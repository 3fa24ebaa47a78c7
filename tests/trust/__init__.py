"""Random programs, damaged inputs, other people's tests: see docs/trust.md."""
