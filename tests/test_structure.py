"""The packages' order: imports point downwards, without circles; modules stay short; importing the package is cheap."""

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "sentiment_core"
FLOORS = (  # from the ground up; packages of one floor do not import each other
    ("errors",),
    ("config",),
    ("text",),
    ("runtime",),
    ("data",),
    ("model",),
    ("inference", "report"),
    ("api",),
    ("training", "scoring"),
    ("analysis",),
    ("serving", "evaluation"),
    ("nightly", "demo", "adoption", "cascading", "distillation"),
    ("commands", "subcommands"),
    ("cli",),
    ("__main__",),
)
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
MODULE_LINES = 400
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
IMPORT_SECONDS = 0.3


@cache
def imports(module: str) -> frozenset[str]:
    """Return the modules of this package that `module` imports: at its top, in functions, and for type checkers."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(filter(None, map(module_file, names)))


def module_file(name: str) -> str | None:
    """Return the file of `sentiment_core.package.module.name`, None for modules of others and for the top package."""
    parts = name.split(".")
    if parts[0] != "sentiment_core":
        return None
    for stop in range(len(parts), 1, -1):
        path = "/".join(parts[1:stop])
        if path + ".py" in MODULES:
            return path + ".py"
    return None


def package(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


def test_every_package_has_its_floor():
    assert {package(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    upwards = {
        other
        for other in imports(module)
        if package(other) != package(module) and FLOOR[package(other)] >= FLOOR[package(module)]
    }
    assert not upwards, f"{module} imports {upwards} from its own floor or above"


def test_no_imports_form_a_circle():
    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(imports(module)):
                visit(other, (*path, module))
            done.add(module)

    done: set[str] = set()
    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_enough_to_read_in_one_sitting(module):
    lines = len((ROOT / module).read_text().splitlines())
    assert lines <= MODULE_LINES, f"{module} has {lines} lines, {MODULE_LINES} at most: split it"


@pytest.mark.parametrize("module", [module for module in MODULES if module.endswith("__init__.py")])
def test_packages_begin_with_a_docstring_and_nothing_else(module):
    tree = ast.parse((ROOT / module).read_text())
    assert len(tree.body) == 1, f"{module} has code; expected a docstring only"
    assert ast.get_docstring(tree), f"{module} has no docstring"


def test_importing_the_package_is_cheap_and_changes_nothing():
    code = """
import json, os, sys, time
before = dict(os.environ)
started = time.perf_counter()
import sentiment_core
seconds = time.perf_counter() - started
print(json.dumps([seconds, sorted(sys.modules), dict(os.environ) == before]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    runs = []
    for _ in range(3):  # the quickest counts: other work may hold the processor
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        seconds, modules, same_environment = json.loads(done.stdout)
        assert not {"torch", "ray", "transformers", "pyarrow", "numpy"} & set(modules)
        assert same_environment
        runs.append(seconds)
    assert min(runs) < IMPORT_SECONDS


@pytest.mark.parametrize(
    "module", ["training.monitor", "runtime.task_guard", "runtime.preflight", "scoring.stages", "scoring.plan"]
)
def test_planning_and_small_ray_processes_import_no_model_library(module):
    code = f"import sys, sentiment_core.{module}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
