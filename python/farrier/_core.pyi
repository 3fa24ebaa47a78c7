"""
farrier's MLIR: parse, run passes, print. Private; use the public modules.
"""



class Diagnostic:
    @property
    def severity(self) -> str: ...

    @property
    def message(self) -> str: ...

    @property
    def location(self) -> str: ...

    @property
    def notes(self) -> list[Diagnostic]: ...

class Remark:
    @property
    def kind(self) -> str: ...

    @property
    def category(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def message(self) -> str: ...

    @property
    def location(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def args(self) -> list[tuple[str, str]]: ...

class PassRecord:
    @property
    def name(self) -> str: ...

    @property
    def operation(self) -> str: ...

    @property
    def seconds(self) -> float: ...

    @property
    def counters(self) -> dict[str, int]: ...

class RunResult:
    @property
    def passes(self) -> list[PassRecord]: ...

    @property
    def remarks(self) -> list[Remark]: ...

    @property
    def diagnostics(self) -> list[Diagnostic]: ...

class DiagnosticError(RuntimeError):
    pass

class Module:
    @staticmethod
    def parse(text: object, *, verify: bool = True) -> Module: ...

    def print(self, *, generic: bool = True, locations: bool = True) -> bytes: ...

    def clone(self) -> Module: ...

    def run(self, pipeline: str, *, verify_each: bool = True, on_pass: object | None = None, reproducer_dir: str | None = None) -> RunResult: ...

    def query(self, name: str, options: str = '{}') -> str: ...

    @property
    def constants(self) -> object: ...

    @constants.setter
    def constants(self, arg: object, /) -> None: ...

    @property
    def revision(self) -> int: ...

    @property
    def num_ops(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

def query_names() -> list[str]: ...

def dialect_operations(dialect: str) -> dict[str, list[str]]: ...

def schedule(request: str) -> str:
    """
    Simulates or reorders a scheduled program: JSON in, JSON out. Raises ValueError on a malformed request.
    """
