"""DR.Experts in PyTorch: its configuration, its modules and its checkpoints."""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.model.checkpoint import Checkpoint as Checkpoint
    from drexperts.model.checkpoint import load_checkpoint as load_checkpoint
    from drexperts.model.checkpoint import save_checkpoint as save_checkpoint
    from drexperts.model.config import DRExpertsConfig as DRExpertsConfig
    from drexperts.model.daclip import convert_daclip as convert_daclip
    from drexperts.model.dr_experts import DRExperts as DRExperts
    from drexperts.model.dr_experts import Prediction as Prediction
    from drexperts.model.dr_experts import new_model as new_model

_HOMES = {
    "Checkpoint": "checkpoint",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "DRExpertsConfig": "config",
    "convert_daclip": "daclip",
    "DRExperts": "dr_experts",
    "Prediction": "dr_experts",
    "new_model": "dr_experts",
}
__getattr__ = lazy_exports(__name__, _HOMES)
