"""Test of the installed plugin."""

from medmllm_plugins.plugins.manager import get_manager


def test_model_is_discovered() -> None:
    """The model is found with its sizes and without a failure."""
    spec = get_manager().models()["of_mine"]
    assert spec.sizes["7b"] == "our-hospital/qwen2.5-vl-7b-radiology"
    assert not [failure for failure in get_manager().describe()["failures"] if "of_mine" in str(failure)]
