"""The model and its configuration; importing this registers both with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .bounded_cache import BoundedCache
from .configuration import BipeConfig
from .decoder import BipeModel
from .modeling import BipeForCausalLM
from .schemes import SCHEMES, Scheme

AutoConfig.register(BipeConfig.model_type, BipeConfig)
AutoModel.register(BipeConfig, BipeModel)
AutoModelForCausalLM.register(BipeConfig, BipeForCausalLM)

__all__ = ["SCHEMES", "BipeConfig", "BipeForCausalLM", "BipeModel", "BoundedCache", "Scheme"]
