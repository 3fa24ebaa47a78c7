"""farrier: compiler passes for JAX programs on GPUs."""

from farrier._src.collectives.driver import Collectives as Collectives
from farrier._src.drivers.remat import Remat as Remat
from farrier._src.errors import BudgetError as BudgetError
from farrier._src.errors import CallbackError as CallbackError
from farrier._src.errors import CompileError as CompileError
from farrier._src.errors import DistributedError as DistributedError
from farrier._src.errors import Error as Error
from farrier._src.errors import InputError as InputError
from farrier._src.errors import InternalError as InternalError
from farrier._src.errors import MissingPluginError as MissingPluginError
from farrier._src.errors import OptionError as OptionError
from farrier._src.errors import PassError as PassError
from farrier._src.errors import PlanError as PlanError
from farrier._src.errors import StalePlanError as StalePlanError
from farrier._src.errors import TargetError as TargetError
from farrier._src.everywhere import Everything as Everything
from farrier._src.everywhere import from_environment as _from_environment
from farrier._src.everywhere import optimize_all as optimize_all
from farrier._src.fusion.driver import Fusion as Fusion
from farrier._src.fusion.hints import hint as hint
from farrier._src.optimize import optimize as optimize
from farrier._src.plan import Plan as Plan
from farrier._src.stages import OptimizeWarning as OptimizeWarning
from farrier._src.targets import Target as Target

_from_environment()
