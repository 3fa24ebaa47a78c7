"""The ``farrier`` command."""
