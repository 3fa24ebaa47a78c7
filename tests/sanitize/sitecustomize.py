"""For `make sanitize`: the package comes from PYTHONPATH, although an editable install says otherwise."""

import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "_editable_skbc_farrier"]
