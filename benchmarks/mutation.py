"""Mutation testing: small faults put into the modules that matter most, and whether their tests notice.

``SPWNET_MUTANTS`` is the number of faults a module, drawn at random; ``SPWNET_MODULES`` names the modules.
"""

from __future__ import annotations

import ast
import copy
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
MUTANTS = 60
TESTS = {
    "losses": ["test_losses.py", "reference"],
    "graph": ["test_graph.py"],
    "classes": ["test_classes.py"],
    "naming": ["test_naming.py"],
    "blocks": ["test_blocks.py"],
    "codebook": ["test_codebook.py"],
    "gallery": ["test_gallery.py"],
}
PATIENCE = 5
"""A mutant that takes so many times the processor's time of none, and ten seconds more, hangs: that is noticed, too."""
UNUSED = 99
"""Status of tests that never imported the mutant."""
WAITING = 10
"""So many times as long by the clock, for one that waits instead."""
SWAPS: dict[type, list[type]] = {
    ast.Lt: [ast.LtE, ast.Gt], ast.LtE: [ast.Lt], ast.Gt: [ast.GtE, ast.Lt], ast.GtE: [ast.Gt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn],
    ast.NotIn: [ast.In], ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Add], ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Mult], ast.Mod: [ast.FloorDiv], ast.And: [ast.Or], ast.Or: [ast.And], ast.BitOr: [ast.BitAnd],
    ast.BitAnd: [ast.BitOr], ast.USub: [ast.UAdd], ast.Pow: [ast.Mult],
}  # fmt: skip


def main() -> None:
    """Print, for each module, how many mutants its tests killed, and those that survived."""
    limit = int(os.environ.get("SPWNET_MUTANTS", MUTANTS))
    modules = os.environ.get("SPWNET_MODULES", ",".join(TESTS)).split(",")
    # Once, for all children that are forked from here; they import spwnet, and what pytest rewrites, themselves.
    import scipy.ndimage
    import skimage.measure
    import sklearn.cluster
    import torch  # noqa: F401

    del scipy, skimage, sklearn
    print("| module | mutants there are | tried | killed | survived | score | s |")
    print("| --- " * 7 + "|")
    stories = []
    for name in modules:
        source = (ROOT / "src" / "spwnet" / f"{name}.py").read_text(encoding="utf-8")
        every = mutants(source)
        rng = np.random.default_rng([0, *name.encode()])
        chosen = sorted(rng.choice(len(every), min(limit, len(every)), replace=False).tolist())
        start = time.perf_counter()
        status, usual = run_tests(name, None, 600)
        if status != 0:
            raise SystemExit(f"the tests of {name} fail without any mutant")
        most = PATIENCE * usual + 10
        counts: Counter[bool] = Counter()
        for k in chosen:
            line, what, tree = every[k]
            status, _ = run_tests(name, ast.unparse(tree), most)
            if status == UNUSED:
                raise SystemExit(f"the tests of {name} do not import it, or another one than the mutant")
            killed = status != 0
            counts[killed] += 1
            if not killed:
                stories.append(f"{name}.py:{line}: {what}")
        score = counts[True] / max(len(chosen), 1)
        seconds = time.perf_counter() - start
        row = (len(every), len(chosen), counts[True], counts[False], f"{score:.0%}", f"{seconds:.0f}")
        print(f"| {name} | {' | '.join(map(str, row))} |", flush=True)
    print("\nSurvived:\n\n" + "\n".join(f"- {story}" for story in stories))


def mutants(source: str) -> list[tuple[int, str, ast.Module]]:
    """Return every small fault of a module: its line, what it is, and the module with it."""
    found: list[tuple[int, str, ast.Module]] = []
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        if in_words(tree, node):
            continue
        for what, change in changes_of(node):
            other = copy.deepcopy(tree)
            target = next(one for k, one in enumerate(ast.walk(other)) if k == number)
            change(target)
            found.append((getattr(node, "lineno", 0), f"{ast.unparse(node)[:70]}: {what}", other))
    return found


def changes_of(node: ast.AST) -> list[tuple[str, Any]]:
    """Return the faults that can be put into one place: what each is, and what makes it."""
    if isinstance(node, ast.Compare):
        return [
            (f"{type(old).__name__} → {new.__name__}", lambda n, k=k, new=new: n.ops.__setitem__(k, new()))
            for k, old in enumerate(node.ops)
            for new in SWAPS.get(type(old), [])
        ]
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.AugAssign):
        if isinstance(node.op, ast.Not):
            return [("Not → nothing", lambda n: setattr(n, "op", ast.UAdd()))]
        return [
            (f"{type(node.op).__name__} → {new.__name__}", lambda n, new=new: setattr(n, "op", new()))
            for new in SWAPS.get(type(node.op), [])
        ]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return [("turned", lambda n: setattr(n, "value", not n.value))]
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return [("one more", lambda n: setattr(n, "value", n.value + 1))]
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        return [("always", lambda n: setattr(n, "test", ast.Constant(True))),
                ("never", lambda n: setattr(n, "test", ast.Constant(False)))]  # fmt: skip
    return []


def in_words(tree: ast.Module, node: ast.AST) -> bool:
    """Whether a place is in a message, an annotation, what type checkers read, or a check of what cannot happen."""
    for parent in ast.walk(tree):
        outer = isinstance(parent, ast.JoinedStr | ast.Raise | ast.AnnAssign | ast.arg | ast.Assert)
        if isinstance(parent, ast.keyword) and parent.arg in ("strict", "frozen", "copy"):
            outer = True
        if isinstance(parent, ast.AnnAssign | ast.arg):
            inside = [] if parent.annotation is None else [parent.annotation]
        elif isinstance(parent, ast.FunctionDef):
            outer, inside = True, [*parent.decorator_list, *([parent.returns] if parent.returns else [])]
        elif isinstance(parent, ast.If) and ast.unparse(parent.test) == "TYPE_CHECKING":
            outer, inside = True, [parent]
        else:
            inside = [parent]
        if outer and any(one is node for part in inside for one in ast.walk(part)):
            return True
    return False


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Gives a module another source."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source, self.used = name, source, False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def get_source(self, fullname: str) -> str:
        self.used = True
        return self.source


def run_tests(name: str, source: str | None, seconds: float) -> tuple[int, float]:
    """Run the tests of a module in a child with another source of it; return how it ended, and its processor's time."""
    child = os.fork()
    if child:
        _, ended, used = os.wait4(child, 0)
        return os.waitstatus_to_exitcode(ended), used.ru_utime + used.ru_stime
    # Of the processor, because a busy machine must not pass for a mutant that was noticed.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(int(WAITING * seconds))
    status = 1
    try:
        import pytest

        # What was imported before would be taken as it is.
        for module in [module for module in sys.modules if module.partition(".")[0] in ("spwnet", "tests")]:
            del sys.modules[module]
        mutated = Mutated(f"spwnet.{name}", source or "")
        if source is not None:
            sys.meta_path.insert(0, mutated)
        tests = [str(ROOT / "tests" / test) for test in TESTS[name]]
        flags = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:napari", "--hypothesis-seed=0"]
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        status = int(pytest.main([*flags, *tests]))
        if source is not None and not mutated.used:
            status = UNUSED
    finally:
        os._exit(status)
