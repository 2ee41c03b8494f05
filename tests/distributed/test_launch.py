"""The file that accelerate is launched with names what there is."""

from pathlib import Path

from accelerate.commands.config.config_args import load_config_from_file

from bipe.models import BipeForCausalLM

LAUNCH = Path(__file__).parents[2] / "recipes" / "launch"


def test_accelerate_reads_the_file_and_its_layer_is_a_layer_of_the_model() -> None:
    config = load_config_from_file(str(LAUNCH / "fsdp2.yaml"))
    assert config.distributed_type == "FSDP" and config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] in (
        BipeForCausalLM._no_split_modules or ()
    )
