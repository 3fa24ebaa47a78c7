"""Collectives: what they cost, where a schedule leaves them exposed, and our own order."""
