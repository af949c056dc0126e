"""What makes up CAREamics' LadderVAE, importable even where CAREamics as a whole is not.

`import careamics` brings readers, plotting and trainers, and a hundred megabytes of packages with them. The model needs
none of that, so on a machine that lacks some of it the packages' own `__init__` are left out; the modules that define
the model and its loss are the installed ones either way.
"""

import importlib
import importlib.util
import sys
from types import ModuleType

_PACKAGES = ("careamics", "careamics.config", "careamics.models")


def _import_without_init() -> None:
    """Put packages into sys.modules that know where their modules are, and nothing else."""
    spec = importlib.util.find_spec("careamics")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("CAREamics is not installed; run: pip install careamics", name="careamics")
    for name in [name for name in sys.modules if name.partition(".")[0] == "careamics"]:
        del sys.modules[name]
    for name in _PACKAGES:
        package = ModuleType(name)
        package.__path__ = ["/".join((folder, *name.split(".")[1:])) for folder in spec.submodule_search_locations]
        sys.modules[name] = package


try:
    importlib.import_module("careamics")
except Exception:  # not only ImportError: a package may be there in a version that its import cannot bear
    _import_without_init()

_losses = importlib.import_module("careamics.losses.lvae.lvae_losses")
LVAEConfig = importlib.import_module("careamics.config.architectures.lvae_config").LVAEConfig
LVAELossConfig = importlib.import_module("careamics.config.losses.loss_config").LVAELossConfig
GaussianLikelihood = importlib.import_module("careamics.models.lvae.likelihoods").GaussianLikelihood
NormalStochasticBlock = importlib.import_module("careamics.models.lvae.stochastic").NormalStochasticBlock
LadderVAE = importlib.import_module("careamics.models.lvae.lvae").LadderVAE
hdn_loss = _losses.hdn_loss
get_kl_divergence_loss = _losses.get_kl_divergence_loss
get_reconstruction_loss = _losses.get_reconstruction_loss
