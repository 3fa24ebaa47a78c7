"""Reports on compiled steps: memory over time, schedule, kernels, what changed. See docs/report.md."""

from farrier._src.report import Report as Report
from farrier._src.report import explain as explain
from farrier._src.report import from_artifact as from_artifact
from farrier._src.report import read_folder as read_folder
from farrier._src.report import read_proto as read_proto
from farrier._src.report.diff import Diff as Diff
from farrier._src.report.diff import compare as compare
from farrier._src.report.measured import lay_beside as lay_beside
from farrier._src.report.measured import read_trace as read_trace
from farrier._src.report.merge import Merged as Merged
from farrier._src.report.merge import merge as merge
