"""Seeing a compiled step: memory over time, the schedule, the kernels, and why."""

from farrier._src.report.build import explain as explain
from farrier._src.report.build import from_artifact as from_artifact
from farrier._src.report.dump import Artifact as Artifact
from farrier._src.report.dump import compile_with_dump as compile_with_dump
from farrier._src.report.dump import read_folder as read_folder
from farrier._src.report.dump import read_proto as read_proto
from farrier._src.report.model import Report as Report
