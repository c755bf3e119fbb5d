"""A model without its head, and the head."""

from peft import LoraConfig, get_peft_model

from sleep_trl.models.head import backbone
from tests.tiny import tiny_model


def test_the_backbone_of_a_model_with_adapters_is_the_one_they_are_in():
    """Of a PEFT model as of the model inside it, which knows its adapters by the same attribute."""
    wrapped = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM"))
    inner = wrapped.get_base_model()
    assert hasattr(inner, "peft_config")
    assert backbone(wrapped) is backbone(inner) is inner.model
