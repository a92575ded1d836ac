"""Fingerprint of a pipeline: hashes of the inputs, the configuration and the code that a dataset is made from.

Equal fingerprints mean equal work: an unfinished build may be resumed, a finished one reused. The code that counts
is what the pipeline's own stages, source and sink reach, never whole packages (decision 0041):

- It starts from the modules that define the source, the sink, the steps and their arguments, down to the functions in
  the closure of a filter, and from `pipelines.corpora.<corpus>` where there is one (its steps may all be generic).
- It follows the imports of these modules, also those inside functions, within the packages of the project and of the
  steps. The standard library and installed packages do not count.
- Of the engine only `ENGINE` counts: what is done to the table of a shard. Storage, workspace, runners, progress and
  checks do not decide what is in a shard, and neither do the hooks that run on the finished dataset (report).

A module is hashed by its syntax tree without docstrings: comments, docstrings and formatting do not change the hash.
"""

import ast
import hashlib
import json
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from functools import cache, cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.core.pipeline import EngineError, Pipeline
from schemas.manifest import Fingerprint
from schemas.sample import canonical_json

PROJECT = ("pipelines", "schemas", "emu")
"""Packages whose imports are followed wherever they are installed."""
CORE = "pipelines.core"
ENGINE = (
    f"{CORE}.stage_runner",
    f"{CORE}.publishing",
    f"{CORE}.contracts",
    f"{CORE}.division",
)
CORPORA = "pipelines.corpora"
_SHOWN = 5
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
_INSTALLED = {"site-packages", "dist-packages"}


class PipelineFingerprint:
    """The fingerprint of a pipeline as it is now, and what differs from that of a dataset."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @cached_property
    def modules(self) -> dict[str, str]:
        """The modules that count, each with the hash of its code."""
        return reached_modules(self._pipeline)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as JSON values; raises `EngineError` if it has others."""
        try:
            return json.loads(canonical_json(dict(self._pipeline.config)))
        except (TypeError, ValueError) as error:
            raise EngineError(
                f"the config of pipeline '{self._pipeline.corpus}' is not JSON: {error}"
            ) from error

    @cached_property
    def hashes(self) -> Fingerprint:
        """Hashes of the inputs, the configuration and the code."""
        pipeline = self._pipeline
        stages = [s.name for s in pipeline.stages]
        described = {"corpus": pipeline.dataset, "stages": stages, "config": self.config}
        return Fingerprint(
            inputs=pipeline.source.fingerprint(),
            config=_sha256(canonical_json(described).encode()),
            code=_sha256(canonical_json(self.modules).encode()),
        )

    def differences(
        self, other: Fingerprint, config: Mapping[str, Any], modules: Mapping[str, str]
    ) -> str:
        """In words, what differs from a dataset of that fingerprint; empty if nothing does."""
        found = []
        if other.inputs != self.hashes.inputs:
            found.append(_input_words(other.inputs, self.hashes.inputs))
        if other.config != self.hashes.config:
            found.append(f"the configuration ({_config_words(config, self.config)})")
        if other.code != self.hashes.code:
            found.append(f"the code ({_code_words(modules, self.modules)})")
        return "; ".join(found)


def reached_modules(pipeline: Pipeline) -> dict[str, str]:
    """The modules that decide what is in a shard of the pipeline, each with the hash of its code."""
    roots = _defining((pipeline.source, pipeline.sink, pipeline.stages))
    roots |= {*ENGINE, *_with_submodules(f"{CORPORA}.{pipeline.corpus}")}
    hooks = set(_defining(pipeline.finish)) - roots
    open_, found = [m for m in sorted(roots) if _counts(m)], {}
    packages = {*PROJECT, *(_top(m) for m in open_)}
    while open_:
        name = open_.pop()
        file = _file(name)
        if name in found or name in hooks or file is None or _is_foreign(name, file):
            continue
        if name.startswith(f"{CORE}.") and name not in ENGINE:
            continue
        code = _code(file.read_bytes())
        found[name] = code.digest
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        open_ += [m for m in code.imported(package) if _top(m) in packages]
    return dict(sorted(found.items()))


def _with_submodules(name: str) -> Iterator[str]:
    yield name
    file = _file(name)
    if file is not None and file.name == "__init__.py":
        yield from (f"{name}.{p.stem}" for p in file.parent.glob("*.py") if p != file)


def _defining(value: Any) -> set[str]:
    """The modules that define the functions, classes and instances that a value consists of."""
    found: set[str] = set()
    seen: dict[int, Any] = {}  # keeps what it has seen, so that no id is used twice
    open_ = [value]
    while open_:
        current = open_.pop()
        if id(current) in seen or isinstance(current, str | bytes | int | float | None):
            continue
        seen[id(current)] = current
        if not isinstance(current, Mapping | list | tuple | Set):
            found.add(_module_of(current))
        open_ += _parts(current)
    return found


def _parts(value: Any) -> Iterable[Any]:
    """What a value holds and may call."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | Set):
        return list(value)
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        return [value.__defaults__, value.__kwdefaults__, *_closure(value)]
    if isinstance(value, type):
        return []
    if is_dataclass(value):
        return [getattr(value, f.name) for f in fields(value)]
    return [vars(value)] if hasattr(value, "__dict__") and _counts(_module_of(value)) else []


def _closure(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # a name that the outer function has not bound yet


def _module_of(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        name = value.__name__
    else:
        is_named = isinstance(value, type | types.FunctionType | types.BuiltinFunctionType)
        name = (value if is_named else type(value)).__module__ or ""
    if name != "__main__":
        return name
    # A script that is run, under the name by which others import it.
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name if spec else Path(file).stem if file else name


def _counts(name: str) -> bool:
    file = _file(name)
    return file is not None and not _is_foreign(name, file)


def _is_foreign(name: str, file: Path) -> bool:
    """True for the standard library and installed packages that are not the project's."""
    if _top(name) in PROJECT:
        return False
    return _STANDARD_LIBRARY in file.parents or not _INSTALLED.isdisjoint(file.parts)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _file(name: str) -> Path | None:
    """The source file of a module, found without importing it; null where there is none."""
    top, *rest = name.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # `__main__` without a file, or a name that is none
        return None
    if spec is None:
        return None
    if not rest:
        is_source = spec.origin is not None and spec.origin.endswith(".py")
        return Path(spec.origin or "") if is_source else None
    stems = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
    candidates = (p for s in stems for p in (s.with_name(f"{s.name}.py"), s / "__init__.py"))
    return next((p for p in candidates if p.is_file()), None)


class _Code:
    """What a source file says to Python, without what it says to people."""

    def __init__(self, source: bytes) -> None:
        tree = _WithoutProse().visit(ast.parse(source))
        # Python 3.12 names a field that 3.11 does not have.
        self.digest = _sha256(ast.dump(tree).replace(", type_params=[]", "").encode())
        nodes = list(ast.walk(tree))
        self._imports = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        self._from = [
            (n.level, n.module or "", a.name)
            for n in nodes
            if isinstance(n, ast.ImportFrom)
            for a in n.names
        ]

    def imported(self, package: str) -> Iterator[str]:
        """Names of the modules that a module of the package imports, anywhere in its code."""
        yield from self._imports
        for level, module, name in self._from:
            base = _absolute(level, module, package)
            yield f"{base}.{name}" if _file(f"{base}.{name}") else base


_code = cache(_Code)


class _WithoutProse(ast.NodeTransformer):
    """Takes out docstrings (of attributes too), the sentences of reasons, and imports that only type checkers see."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "Reason" and node.args:
            node.args[0] = ast.Constant("")
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        value = node.value
        is_prose = isinstance(value, ast.Constant) and isinstance(value.value, str)
        return None if is_prose else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse
        return self.generic_visit(node)


def _absolute(level: int, module: str, package: str) -> str:
    if not level:
        return module
    base = package.rsplit(".", level - 1)[0] if level > 1 else package
    return f"{base}.{module}" if module else base


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _input_words(old: str, new: str) -> str:
    there, now = (text.partition(":")[0] if ":" in text else "names" for text in (old, new))
    if there != now:
        return f"how its inputs are recognised (by {there} there, by {now} now)"
    return f"the inputs (compared by their {now})"


def _config_words(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = sorted(n for n in {*old, *new} if old.get(n) != new.get(n))
    if not names:
        return "its corpus or stages"
    return ", ".join(f"{n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in names)


def _code_words(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    if not old:
        return "of another release, which did not note its modules"
    names: Sequence[str] = sorted(n for n in {*old, *new} if old.get(n) != new.get(n))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"of {', '.join(names[:_SHOWN])}{more}"
