"""The words for what is found and what is done, on which logs, journals and scripts depend."""

from __future__ import annotations

from batv.verdict import FORGED, STATUS_BY_VERDICT, Decision, Disposition, Verdict


def test_verdicts_are_written_as_the_interface_has_them() -> None:
    """Scripts read the first word that `batv verify` prints, and the journal."""
    assert [str(verdict) for verdict in Verdict] == [
        "valid",
        "untagged",
        "malformed",
        "unknown-key",
        "bad-signature",
        "expired",
        "not-a-bounce",
        "foreign",
        "rescued",
        "not-judged",
        "signed",
        "unsigned",
    ]


def test_dispositions_are_written_as_the_interface_has_them() -> None:
    """Settings name them, and the journal."""
    assert [str(disposition) for disposition in Disposition] == [
        "pass",
        "rewrite",
        "discard",
        "quarantine",
        "reject",
        "mark",
        "defer",
    ]


def test_a_status_is_said_for_what_is_genuine_and_each_forged_verdict_and_no_other() -> None:
    """Filters behind us match these words; the first two spellings are batv-tools'."""
    assert set(STATUS_BY_VERDICT) == FORGED | {Verdict.VALID, Verdict.RESCUED}
    assert STATUS_BY_VERDICT[Verdict.VALID] == b"valid"
    assert STATUS_BY_VERDICT[Verdict.UNTAGGED] == b"invalid, missing"
    for verdict in FORGED - {Verdict.UNTAGGED}:
        assert STATUS_BY_VERDICT[verdict].decode() == f"invalid, {verdict}"


def test_mail_that_is_not_a_bounce_never_counts_as_forged() -> None:
    """Nor does what is left alone: such mail is never lost for want of a tag."""
    judged = {Verdict.UNTAGGED, Verdict.MALFORMED, Verdict.UNKNOWN_KEY, Verdict.BAD_SIGNATURE, Verdict.EXPIRED}
    assert judged == FORGED


def test_a_decision_names_no_key_and_no_status_unless_it_has_one() -> None:
    """An unsigned path must not appear under key 0."""
    decision = Decision(Verdict.UNSIGNED, Disposition.PASS, b"<>", "null sender")
    assert decision.key_number is None
    assert decision.status is None
