"""JAX programs that together cover what JAX emits; see registry.py."""

from programs import arrays, control, dtypes, effects, gpu, models, parallel, special
from programs.registry import Program as Program
from programs.registry import get as get
from programs.registry import parse as parse
from programs.registry import program as program
from programs.registry import programs as programs

GROUPS = (arrays, control, dtypes, effects, gpu, models, parallel, special)
