"""Training steps of kinds that the project's own workloads do not have, one H100 each, f32 unless said.

A program is a function that gives its loss, its parameters and the shapes of its batch.
"""

from unseen import first, fourth, second, third

PARTS = {"first": first.ALL | second.ALL, "second": third.ALL, "third": fourth.ALL}
"""Name to function, by part: the one that rules were found on, and two that they were then tried on."""
