"""torch-fidelity as an oracle: the numbers of its modules, whose package needs torchvision."""

import importlib
import importlib.util
import sys
import types

import pytest

LOADED_FROM = "torch_fidelity"


@pytest.fixture(scope="session")
def fidelity():
    """Return a function that imports one module of torch-fidelity without its package.

    The metrics import helpers that read files and run networks; those are left out, the functions
    from features to numbers are the real ones.
    """
    spec = importlib.util.find_spec(LOADED_FROM)
    if spec is None:
        pytest.skip("torch-fidelity is not installed")

    class Unused(types.ModuleType):
        def __getattr__(self, name):
            return None

    def load(name):
        before = {n: sys.modules.pop(n) for n in list(sys.modules) if n.startswith(LOADED_FROM)}
        sys.modules[LOADED_FROM] = importlib.util.module_from_spec(spec)
        sys.modules[f"{LOADED_FROM}.utils"] = Unused(f"{LOADED_FROM}.utils")
        try:
            return importlib.import_module(f"{LOADED_FROM}.{name}")
        finally:
            for n in [n for n in sys.modules if n.startswith(LOADED_FROM)]:
                del sys.modules[n]
            sys.modules.update(before)

    return load
