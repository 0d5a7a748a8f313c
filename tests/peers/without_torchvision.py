"""open_clip and timm without torchvision, which has no build beside the CPU's torch; their models and tokenizers need none of it.

  from tests.peers.without_torchvision import open_clip
"""
import importlib.abc
import importlib.machinery
import sys
import types


class _Any(type):
  """A class whose every attribute is another such class, so that modules that only name torchvision's things can be imported."""

  def __getattr__(cls, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return _Any(name, (), {})


class _Module(types.ModuleType):
  __path__: list[str] = []

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return _Any(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  def find_spec(self, fullname, path=None, target=None):
    return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] == "torchvision" else None

  def create_module(self, spec):
    return _Module(spec.name)

  def exec_module(self, module):
    pass


def _imported():
  """open_clip, and timm's vision transformer; nothing else sees the stand-in for torchvision."""
  from transformers.utils import is_torchvision_available
  assert not is_torchvision_available()          # asked once and remembered, so that transformers does not take the stand-in
  finder = _Finder()
  sys.meta_path.insert(0, finder)
  try:
    import open_clip
    import timm.models.vision_transformer
  finally:
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
      del sys.modules[name]
  return open_clip, timm.models.vision_transformer


open_clip, vision_transformer = _imported()
