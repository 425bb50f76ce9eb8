"""Tokens are read from a file, and no server is open by mistake."""

import pytest

from drexperts.runtime.errors import UserError
from drexperts.serve.guard import check_open, read_tokens


@pytest.fixture
def token_file(tmp_path):
    def make(text, mode=0o600):
        path = tmp_path / "tokens"
        path.write_text(text)
        path.chmod(mode)
        return path

    return make


def test_tokens_are_lines(token_file) -> None:
    path = token_file(f"# of the gallery\n{'a' * 16}\n\n{'b' * 32}\n")
    assert read_tokens(path) == ("a" * 16, "b" * 32)


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n", f"{'a' * 16} {'b' * 16}\n", "é"])
def test_what_is_no_token_is_refused(token_file, text) -> None:
    with pytest.raises(UserError, match="tokens"):
        read_tokens(token_file(text))


def test_a_file_that_everybody_reads_is_refused(token_file) -> None:
    with pytest.raises(UserError, match="chmod"):
        read_tokens(token_file("a" * 16, 0o644))


def test_only_a_loopback_is_open_without_being_told() -> None:
    for host in ("localhost", "127.0.0.1", "127.0.0.2", "::1"):
        check_open(host, (), no_token=False)
    for host in ("0.0.0.0", "::", "10.1.2.3", "iqa.example", ""):
        with pytest.raises(UserError, match="--no-token"):
            check_open(host, (), no_token=False)
        check_open(host, ("a" * 16,), no_token=False)
        check_open(host, (), no_token=True)
    with pytest.raises(UserError, match="exclude"):
        check_open("::", ("a" * 16,), no_token=True)
