"""The libraries that attacks are compared with: torchattacks, foolbox, adv-lib (tests/peers.txt).

Their imports warn, and adv-lib wants a plotting server that is not used here.
"""

import sys
import warnings
from types import ModuleType

sys.modules.setdefault("visdom", ModuleType("visdom"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import adv_lib.attacks
    import foolbox
    import torchattacks

__all__ = ["adv_lib", "foolbox", "torchattacks"]
