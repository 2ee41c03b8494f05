"""The model and its configuration."""

from .configuration import BipeConfig
from .modeling import BipeForCausalLM, BipeModel
from .schemes import SCHEMES, Scheme

__all__ = ["SCHEMES", "BipeConfig", "BipeForCausalLM", "BipeModel", "Scheme"]
