"""Test of the installed plugin."""

from medmllm_plugins import discover
from medmllm_plugins.testing import parametrize_with_checks

from medmllm_of_mine import medmllm_models


@parametrize_with_checks(medmllm_models())
def test_models(spec, check):
    """Try both models on tiny checkpoints with random weights."""
    check(spec)


def test_models_are_discovered():
    """The models are found with their sizes and without a failure."""
    manager = discover()
    assert manager.models()["of_mine"].sizes["7b"] == "our-hospital/qwen2.5-vl-7b-radiology"
    assert manager.models()["convnet_of_mine"].family == "medmllm_of_mine.convnet:ConvFamily"
    assert not [failure for failure in manager.describe()["failures"] if "of_mine" in str(failure)]
