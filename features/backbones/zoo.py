"""torchvision, imported in a tenth of the time: without torch._dynamo, which nothing but its roi_align asks for."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_SLOW = "torch._dynamo.utils"  # takes 1.3 s of processor time


def _stand_in() -> ModuleType:
    """Return a module that knows what torchvision asks for, and becomes the real one where it asks for more."""
    module = ModuleType(_SLOW)

    def real(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # for Python itself asks for some
        sys.modules.pop(_SLOW, None)
        return getattr(importlib.import_module(_SLOW), name)

    vars(module).update(is_compile_supported=lambda device: False, __getattr__=real)
    return module


def _without_dynamo() -> ModuleType:
    importlib.import_module("torch")
    stand_in = sys.modules.setdefault(_SLOW, _stand_in())
    try:
        importlib.import_module("torchvision.models.feature_extraction")
        return importlib.import_module("torchvision")
    finally:
        if sys.modules.get(_SLOW) is stand_in and "torch._dynamo" not in sys.modules:
            del sys.modules[_SLOW]


torchvision: Any = _without_dynamo()
create_feature_extractor = torchvision.models.feature_extraction.create_feature_extractor
get_graph_node_names = torchvision.models.feature_extraction.get_graph_node_names
