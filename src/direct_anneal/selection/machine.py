"""Checks of this machine before a run: its devices, Ray, and the library behind a URL."""

from __future__ import annotations

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.options import require, require_device
from direct_anneal.config.select import SelectConfig
from direct_anneal.distributed import check_installed
from direct_anneal.features import place_at


def check_machine(config: FeaturesConfig) -> None:
    """See that this machine has what a run asks for.

    Raises:
        InputError: it has not; says what.
    """
    if config.features is not None:
        place_at(config.features)
    if config.engine == "ray":
        check_installed()
        walks = isinstance(config, SelectConfig) and "path" in config.needs
        if not isinstance(config, SelectConfig) or (config.is_empirical and not walks):  # the model runs there alone
            return require(config.device in ("cpu", "cuda"), "device", "cpu or cuda", config.device)
    return require_device(config.device)
