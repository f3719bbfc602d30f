"""The plugin is found, and its data set passes the checks of medmllm-plugins."""

from medmllm_plugins import discover
from medmllm_plugins.testing import parametrize_with_checks

from medmllm_discs import medmllm_tasks
from medmllm_discs.draw import draw


@parametrize_with_checks(medmllm_tasks(), data=draw)
def test_data_set(spec, check):
    """Try the data set on drawn images; without ``data``, on those below ``MEDMLLM_DATA``."""
    check(spec)


def test_plugin_is_found(monkeypatch):
    """It is installed, and nothing about it fails."""
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    manager = discover()
    assert manager.failures == []
    assert any(folder.parent.parent.name == "medmllm_discs" for folder in manager.dataset_folders())
