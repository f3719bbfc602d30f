"""One limit for every reader, set by one variable."""

import pytest

from medmllm_plugins.data.readers.decode_limit import DEFAULT, VARIABLE, check_decoded_size, max_decoded_bytes
from medmllm_plugins.errors import DataError, OptionError


@pytest.mark.parametrize(
    ("text", "size"), [("", DEFAULT), ("1000", 1000), ("2K", 2048), ("3m", 3 * 1024**2), (" 2 GiB ", 2 * 1024**3)]
)
def test_the_variable_takes_bytes_and_units(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    assert max_decoded_bytes() == size


@pytest.mark.parametrize("text", ["much", "-1", "0", "1T", "1e9", "9" * 40])
def test_other_values_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(OptionError, match=r"MEDMLLM_MAX_DECODED: expected a size"):
        max_decoded_bytes()


@pytest.mark.parametrize("size", [DEFAULT + 1, 1024**3, 5 * 1024**3 + 7])
def test_the_message_names_a_limit_that_lets_the_file_pass(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as caught:
        check_decoded_size("scan.nii", size)
    monkeypatch.setenv(VARIABLE, str(caught.value).rsplit("=", 1)[1].rstrip("."))
    check_decoded_size("scan.nii", size)


def test_a_size_at_the_limit_passes() -> None:
    check_decoded_size("scan.nii", DEFAULT)
