"""The registry of trainers' formats: modules in `export/formats`, each declaring its own.

Adding one: a module there with `FORMATS = {name: Format(...)}`, and the name in `config.files.TrainerFormat`, which the
command line reads without loading any of them.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import get_args

from direct_anneal.config.files import TrainerFormat
from direct_anneal.export import formats
from direct_anneal.export.shards import Format

_FOUND: dict[str, Format] = {
    name: format
    for module in iter_modules(formats.__path__)
    for name, format in import_module(f"{formats.__name__}.{module.name}").FORMATS.items()
}
FORMATS: dict[str, Format] = {name: _FOUND[name] for name in get_args(TrainerFormat)}
