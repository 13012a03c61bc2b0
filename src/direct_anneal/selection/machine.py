"""Checks of this machine before a run: its devices, Ray, and the library behind a URL."""

from __future__ import annotations

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.options import require, require_device
from direct_anneal.config.select import SelectConfig
from direct_anneal.distributed import check_installed
from direct_anneal.errors import InputError, option
from direct_anneal.features import place_at
from direct_anneal.io.torchrun import is_launched


def check_machine(config: FeaturesConfig) -> None:
    """See that this machine has what a run asks for.

    Raises:
        InputError: it has not; says what.
    """
    if config.features is not None:
        place_at(config.features)
    if is_launched():
        _check_spread(config)
    if config.engine == "ray":
        check_installed()
        walks = isinstance(config, SelectConfig) and "path" in config.needs
        if not isinstance(config, SelectConfig) or (config.is_empirical and not walks):  # the model runs there alone
            return require(config.device in ("cpu", "cuda"), "device", "cpu or cuda", config.device)
    return require_device(config.device)


def _check_spread(config: FeaturesConfig) -> None:
    """See that torchrun's processes have all of the model's work to do."""
    require(config.engine == "local", "engine", "local where torchrun spreads the model", config.engine)
    if not isinstance(config, SelectConfig):
        return
    require(config.is_empirical, "curvature", "empirical-fisher where torchrun spreads the model", config.curvature)
    if "path" in config.needs:
        raise InputError(
            field="objective",
            must="be one of gradients where torchrun spreads the model",
            got=f"but {config.objective} walks a path, which one process does",
            do=f"choose matching, or let a small model walk with {option('chooser')} and without torchrun",
        )
