"""The plugin is found, and its intervention passes the checks of medmllm-plugins."""

from medmllm_plugins import discover
from medmllm_plugins.testing import parametrize_with_checks

from medmllm_turned_image import medmllm_interventions


@parametrize_with_checks(medmllm_interventions())
def test_intervention(spec, check):
    """Try the intervention on the demo model."""
    check(spec)


def test_plugin_is_found(monkeypatch):
    """It is installed, and nothing about it fails."""
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    manager = discover()
    assert manager.failures == []
    assert "turned_image" in manager.interventions()
