from __future__ import annotations

import pytest

from wire.enrolment import JoinToken, TrustBundle, bundle_bytes, fingerprint, parse_token
from wire.errors import MalformedError

BUNDLE = TrustBundle(ca_pem="PEM", assignment_keys=["b"], tuf_root=b"{}")
TOKEN = JoinToken("default", "a" * 16, "b" * 32, fingerprint(bundle_bytes(BUNDLE)))


def test_a_token_is_read_as_it_was_written_also_with_a_line_end() -> None:
    assert parse_token(f"{TOKEN}\n") == TOKEN


@pytest.mark.parametrize("text", ["", "secret-of-somebody", str(TOKEN)[:-1], str(TOKEN) + "x", str(TOKEN).upper()])
def test_anything_else_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_token(text)
    assert not text or text not in str(caught.value)


def test_the_secret_stays_out_of_logs() -> None:
    assert TOKEN.secret not in repr(TOKEN)


def test_any_other_bundle_has_another_fingerprint() -> None:
    other = TrustBundle(ca_pem="PEM", assignment_keys=["c"], tuf_root=b"{}")
    assert fingerprint(bundle_bytes(other)) != TOKEN.fingerprint
    assert len(TOKEN.fingerprint) == 52
