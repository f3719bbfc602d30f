"""The plugin is found, and its attribution method passes the checks of medmllm-plugins."""

from medmllm_plugins import discover
from medmllm_plugins.testing import parametrize_with_checks

from medmllm_gradient_norm import medmllm_attributions


@parametrize_with_checks(medmllm_attributions())
def test_method(spec, check):
    """Try the method on the demo model and phantoms with a known lesion."""
    check(spec)


def test_plugin_is_found(monkeypatch):
    """It is installed, and nothing about it fails."""
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    manager = discover()
    assert manager.failures == []
    assert "gradient_norm" in manager.attributions()
