"""GPUs a program can be compiled for: facts, XLA target configuration, device meshes."""

from farrier._src.targets.facts import DeviceFacts as DeviceFacts
from farrier._src.targets.facts import builtin_names as builtin_names
from farrier._src.targets.facts import load_facts as load_facts
from farrier._src.targets.target import Target as Target
from farrier._src.targets.target import attached_target as attached_target
